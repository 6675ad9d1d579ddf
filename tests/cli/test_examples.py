"""The example units and manifests call the command as it is."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from splitwise.cli.main import app
from splitwise.engine.vllm.gpus import gpus_a_machine

EXAMPLES = Path(__file__).parents[2] / "examples"
UNITS = sorted((EXAMPLES / "systemd").glob("*.service"))
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))


def documents(manifest: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(manifest.read_text()))


def parse(arguments: list[str]) -> dict[str, Any]:
    """What the subcommand makes of them; numbers are checked, nothing is run."""
    command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    with command.make_context(arguments[0], arguments[1:]) as context:
        return dict(context.params)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units(unit: Path) -> None:
    started = re.search(r"^ExecStart=\S+/splitwise (.+)$", unit.read_text(), re.MULTILINE)
    assert started is not None
    options = parse(started[1].replace("%i", "prompt").split())
    if "join" in options:
        assert options["role"] == "prompt" and options["machine_id"] == "%H-prompt"
    else:
        assert options["scheduler_port"] == 7000 and options["external_workers"] == 2


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.name)
def test_manifests(manifest: Path) -> None:
    for document in documents(manifest):
        if document["kind"] != "Deployment":
            continue
        pod = document["spec"]["template"]
        assert document["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
        container = pod["spec"]["containers"][0]
        assert parse(container["args"])
        named = {variable["name"] for variable in container["env"]}
        used = set(re.findall(r"\$\(?(\w+)", str(container)))
        assert used <= named and "SPLITWISE_CLUSTER_KEY" in named


EVERYTHING = [document for manifest in MANIFESTS for document in documents(manifest)]
WORKERS = {
    d["metadata"]["name"]: d["spec"]["template"]["spec"]["containers"][0]
    for d in EVERYTHING
    if d["kind"] == "Deployment" and d["metadata"]["name"] != "splitwise-gateway"
}


@pytest.mark.parametrize("name", WORKERS)
def test_workers_dial_a_service_of_the_gateway(name: str) -> None:
    services = {d["metadata"]["name"]: d["spec"] for d in EVERYTHING if d["kind"] == "Service"}
    options = parse(WORKERS[name]["args"])
    host, port = options["join"].split(":")
    assert [p["port"] for p in services[host]["ports"]] == [int(port)]
    assert name.endswith(options["role"])


def test_vllm_workers_agree_in_what_shapes_a_cache_and_have_their_gpus() -> None:
    workers = [WORKERS[f"splitwise-vllm-{role}"] for role in ("prompt", "token")]
    told = [parse(worker["args"]) for worker in workers]
    assert told[0]["vllm_args"] == told[1]["vllm_args"] and told[0]["model"] == told[1]["model"]
    for worker, options in zip(workers, told, strict=True):
        assert (options["engine"], options["device"]) == ("vllm", "cuda")
        ranks = gpus_a_machine(options["vllm_args"].split())
        assert worker["resources"]["limits"] == {"nvidia.com/gpu": ranks}
