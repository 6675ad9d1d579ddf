"""``splitwise worker``: run one machine."""

import os
import socket
from typing import Annotated

import typer

from splitwise.cli.engines import model_folder, run_engine
from splitwise.cli.errors import fail
from splitwise.cli.logs import set_up_logging
from splitwise.cli.settings import with_settings
from splitwise.cli.worker_settings import WorkerSettings
from splitwise.scheduling.policies.policy import load_policy
from splitwise.scheduling.pool import POOL_NAMES


@with_settings
def worker(
    *,
    join: Annotated[str, typer.Option(help="HOST:PORT of the cluster scheduler.")],
    model: Annotated[
        str | None,
        typer.Option(help="Hugging Face folder or name, or GGUF file; as the gateway's."),
    ] = None,
    model_name: Annotated[
        str,
        typer.Option(
            help="The gateway's name for the model, where it is not the one given by --model."
        ),
    ] = "",
    role: Annotated[str, typer.Option(help="prompt (prefill), token (decode) or mixed.")] = "mixed",
    host: Annotated[
        str,
        typer.Option(
            help="Address of this host under which the other machines reach it; by default the "
            "one from which it reaches the cluster scheduler."
        ),
    ] = "",
    transfer_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for caches; 0 picks a free one.")
    ] = 0,
    announce: Annotated[
        str,
        typer.Option(
            help="HOST:PORT under which the other machines reach that port, where it is another, "
            "as behind a port mapping."
        ),
    ] = "",
    rejoin_s: Annotated[
        float,
        typer.Option(min=0, help="How long to dial again when the cluster scheduler is lost."),
    ] = 300.0,
    max_stall_s: Annotated[
        float,
        typer.Option(
            min=1,
            help="How long the engine may hang when the cluster gave it up (then exit code 1).",
        ),
    ] = 300.0,
    machine_id: Annotated[
        str,
        typer.Option(
            help="Name, unique in the cluster, by which it is known when it comes back; "
            "ROLE-HOSTNAME by default."
        ),
    ] = "",
    rank: Annotated[int, typer.Option(help="Number of this worker; picks its GPU.")] = 0,
    cores: Annotated[str, typer.Option(help="Cores for the engine, such as 0,1.")] = "",
    settings: WorkerSettings,
) -> None:
    """Run one machine of a cluster; the cluster key is taken from SPLITWISE_CLUSTER_KEY."""
    set_up_logging(machine_id)
    if role not in POOL_NAMES:
        fail(f"--role {role!r}: choose prompt (prefill), token (decode) or mixed", code=2)
    join_host, join_port = _address("--join", join)
    cluster_key = os.environ.get("SPLITWISE_CLUSTER_KEY", "")
    if not cluster_key:
        fail("SPLITWISE_CLUSTER_KEY is not set: set it to the cluster's key", code=2)
    host = host or _own_address(join_host, join_port)

    from splitwise.engine.errors import ModelError
    from splitwise.engine.model_files import ModelFolder
    from splitwise.transfer import Deadlines
    from splitwise.worker.machine import MachineLimits
    from splitwise.worker.options import WorkerError, WorkerOptions

    try:
        # ValueError says which argument the engine or the transfer cannot work with.
        options = WorkerOptions(
            machine_id=machine_id or f"{role}-{socket.gethostname()}",
            pool=POOL_NAMES[role],
            join_host=join_host,
            join_port=join_port,
            cluster_key=cluster_key,
            host=host,
            transfer_port=transfer_port,
            announce=_address("--announce", announce) if announce else None,
            rejoin_s=rejoin_s,
            max_stall_s=max_stall_s,
            transport=None if settings.transport == "auto" else settings.transport,
            checksum=settings.checksum,
            tls=settings.cluster_tls,
            deadlines=Deadlines(
                connect_s=settings.transfer_connect_s,
                write_s=settings.transfer_write_s,
                answer_s=settings.transfer_answer_s,
                stop_s=settings.transfer_stop_s,
                idle_s=settings.transfer_idle_s,
            ),
            cores=[int(core) for core in cores.split(",") if core],
            limits=MachineLimits(
                prompt_batch_tokens=settings.prompt_batch_tokens,
                batch_requests=settings.batch_requests,
                one_piece_below_tokens=settings.one_piece_below,
            ),
            policy=load_policy(settings.policy),
        )
        found = model_folder(model, settings.engine)
        run_engine(ModelFolder(found.path, model_name or found.name), rank, settings, options)
    except (ModelError, WorkerError, ValueError, OSError) as error:
        fail(error)


def _address(option: str, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    host = host.strip("[]")  # of an IPv6 address
    if not host or not port.isdigit() or int(port) > 65535:
        fail(f"{option} {value!r}: give HOST:PORT", code=2)
    return host, int(port)


def _own_address(join_host: str, join_port: int) -> str:
    from splitwise.transfer.address import own_address

    try:
        return own_address(join_host, join_port)
    except OSError as error:
        fail(f"--join {join_host}:{join_port}: no way leads there ({error})")
