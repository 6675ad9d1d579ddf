"""``splitwise serve``: an OpenAI-compatible server over prompt and token machines."""

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from splitwise.cli.access_settings import AccessSettings
from splitwise.cli.config import defaults_from_environment_and_file
from splitwise.cli.engines import START_LIMITS_S, check_engine, gpus_of, model_folder
from splitwise.cli.errors import fail
from splitwise.cli.logs import set_up_logging
from splitwise.cli.settings import to_arguments, with_settings
from splitwise.cli.worker_settings import WorkerSettings
from splitwise.cluster.limits import ClusterLimits
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.scheduling.policies.policy import load_policy
from splitwise.scheduling.pool import Pool


@with_settings
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hugging Face folder or name, or GGUF file; default SmolLM2-135M-Instruct."
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    prompt: Annotated[
        int | None, typer.Option("--prompt", "--prefill", min=0, help="Prompt machines.")
    ] = None,
    token: Annotated[
        int | None, typer.Option("--token", "--decode", min=0, help="Token machines.")
    ] = None,
    mixed: Annotated[int, typer.Option(min=0, help="Mixed machines.")] = 0,
    external_workers: Annotated[
        int, typer.Option(min=0, help="Wait for so many `splitwise worker`s that others start.")
    ] = 0,
    scheduler_host: Annotated[
        str,
        typer.Option(help="Address that workers dial; beyond loopback with a cluster key only."),
    ] = "127.0.0.1",
    scheduler_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port that workers dial; 0 picks a free one.")
    ] = 0,
    launcher: Annotated[
        str, typer.Option(help="Where workers run: local (this host) or ray (a Ray cluster).")
    ] = "local",
    ray: Annotated[
        str,
        typer.Option(
            help="Ray cluster: HOST:PORT, auto (the one that runs on this host), or local (one of "
            "its own, for as long as the gateway runs)."
        ),
    ] = "auto",
    ray_prompt: Annotated[
        str,
        typer.Option(
            help="What a Ray node must have for a prompt machine, by commas: accelerator types "
            "(H100) and amounts of custom resources (fast_nic=1)."
        ),
    ] = "",
    ray_token: Annotated[str, typer.Option(help="The same for a token machine.")] = "",
    ray_mixed: Annotated[str, typer.Option(help="The same for a mixed machine.")] = "",
    ray_placement_s: Annotated[
        float, typer.Option(min=1, help="Time for Ray to find a node for a worker.")
    ] = 60.0,
    start_limit_s: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Time for a worker from its start to the cluster; default 600, with vLLM 1800.",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="Name of the model in the API.")
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="File of a chat template (jinja), in place of the model's own."),
    ] = None,
    generation_config: Annotated[
        str,
        typer.Option(
            help="Sampling settings of requests that do not say: auto (the model's "
            "generation_config.json), none (or vllm), or a folder with such a file."
        ),
    ] = "auto",
    workers: WorkerSettings,
    cluster: ClusterLimits,
    access: AccessSettings,
    http: HttpLimits,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=defaults_from_environment_and_file,
            is_eager=True,
            help="YAML file of these options; flags win over it, it wins over SPLITWISE_*.",
        ),
    ] = None,
) -> None:
    """Serve a model: by default one prompt machine and one token machine on this host."""
    del config  # Its values have arrived as the other options' defaults.
    set_up_logging()
    machines = _machines(prompt, token, mixed, external_workers)
    is_ray = _is_ray(launcher, workers.device)

    import uvloop

    from splitwise.cli.access import CLUSTER_KEY_VARIABLE, read_access, take_secrets
    from splitwise.engine.errors import ModelError
    from splitwise.gateway.admin import ADMIN_KEY_VARIABLE
    from splitwise.gateway.process import Gateway, ServeOptions
    from splitwise.launch.launcher import LaunchError, LocalLauncher
    from splitwise.launch.ray_launcher import RayLauncher, RayOptions, connect, read_needs

    secrets = take_secrets()
    granted = read_access(host, access, secrets)
    try:
        folder = model_folder(model, workers.engine)
        check_engine(workers, folder, is_here=any(machines) and not is_ray)
        policy = load_policy(workers.policy)
        options = ServeOptions(
            host=host,
            port=port,
            prompt=machines[0],
            token=machines[1],
            mixed=machines[2],
            external_workers=external_workers,
            scheduler_host=scheduler_host,
            scheduler_port=scheduler_port,
            cluster_key=secrets.get(CLUSTER_KEY_VARIABLE, ""),
            cluster_tls=workers.cluster_tls,
            threads=workers.threads,
            served_model_name=served_model_name,
            chat_template=chat_template,
            generation_config=generation_config,
            worker_arguments=[
                f"--model={folder.path.absolute()}",
                f"--model-name={folder.name}",
                *to_arguments(msgspec.structs.replace(workers, policy=policy.source)),
            ],
            start_limit_s=start_limit_s or START_LIMITS_S[workers.engine],
            cluster=cluster,
            http=http,
            access=granted,
            admin_key=secrets.get(ADMIN_KEY_VARIABLE, ""),
            policy=policy,
        )
        on_ray = RayOptions(
            address=ray,
            needs={
                Pool.PROMPT: read_needs("--ray-prompt", ray_prompt),
                Pool.TOKEN: read_needs("--ray-token", ray_token),
                Pool.MIXED: read_needs("--ray-mixed", ray_mixed),
            },
            gpus=gpus_of(workers),
            placement_limit_s=ray_placement_s,
        )
        # A spinner on a terminal, nothing elsewhere.
        status = Console(stderr=True).status(
            f"starting {sum(machines)} machines"
            + (f", waiting for {external_workers}" if external_workers else "")
        )

        def announce(url: str) -> None:
            status.stop()
            _announce(url, gateway.model_name, bool(granted.keys))

        # Ray takes SIGTERM when it connects; the gateway, started later, takes it over.
        with connect(ray) if is_ray else nullcontext(), status:
            new_launcher = partial(RayLauncher, on_ray) if is_ray else LocalLauncher
            gateway = Gateway(options, folder, new_launcher)
            uvloop.run(gateway.run(announce))
    except (ModelError, LaunchError, OSError, ValueError) as error:
        fail(error)


def _machines(
    prompt: int | None, token: int | None, mixed: int, external: int
) -> tuple[int, int, int]:
    """Machines of each pool: 1 + 1 + 0 unless told otherwise; mixed ones can stand alone, and
    where others start workers none need be started here."""
    usual = 0 if mixed or external else 1
    prompt = usual if prompt is None else prompt
    token = usual if token is None else token
    if not external and not mixed and not (prompt and token):
        fail(
            f"--prompt {prompt} --token {token} --mixed {mixed}: a request needs a prompt and a "
            "token machine, or a mixed one; add the kind that is missing, or say how many "
            "--external-workers others start",
            code=2,
        )
    return prompt, token, mixed


def _is_ray(launcher: str, device: str) -> bool:
    if launcher not in ("local", "ray"):
        fail(f"--launcher {launcher!r}: choose local or ray", code=2)
    if launcher == "ray" and device.startswith("cuda:"):
        fail(f"--device {device}: Ray deals the GPUs out; with --launcher ray say cuda", code=2)
    return launcher == "ray"


def _announce(url: str, model: str, with_key: bool) -> None:
    # The first line is for programs (``launch.local_server`` reads it), the rest for people.
    print(f"ready: {url}", flush=True)
    key = " -H 'Authorization: Bearer YOUR_KEY'" if with_key else ""
    print(
        f"""
curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is a llama?"}}]}}'
""",
        file=sys.stderr,
        flush=True,
    )
