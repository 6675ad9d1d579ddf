"""In the core install a command that needs an extra names it; nothing ends in a traceback."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from core_install import canonical, core_distributions

from splitwise.cli.extras import EXTRA_OF

ROOT = Path(__file__).parents[2]
SIMULATED = ("conversation", "--rate=1", "--duration=2", "--mixed=1xdgx-h100")


def run_core(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("core_install.py")
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | {"SPLITWISE_CLUSTER_KEY": "key"},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("serve",), "serve"),
        (("serve", "--engine=null"), "serve"),
        (("serve", "--config=serve.yaml"), "serve"),
        (("serve", "--launcher=ray"), "serve"),
        (("worker", "--join=127.0.0.1:1"), "serve"),
        (("worker", "--join=127.0.0.1:1", "--engine=null"), "serve"),
        (("serve", "--engine=vllm"), "serve"),
        (("worker", "--join=127.0.0.1:1", "--engine=vllm"), "serve"),
        (("simulate", *SIMULATED, "--html=report.html"), "report"),
        (("simulate", *SIMULATED, "--requests-table=table.parquet"), "report"),
        (("plan", "coding", "--rate=1", "--offer=dgx-h100:2", "--html=plan.html"), "report"),
        (("plan", "coding", "--rate=1", "--offer=dgx-h100:2", "--ray=local"), "ray"),
        (("reproduce", "poster", "--html=poster.html"), "report"),
        (
            (
                *("plan", "coding", "--rate=1", "--offer=8xh100:2"),
                *("--profile=aiconfigurator", f"--model={ROOT}/examples/llama-3.1-70b"),
            ),
            "predict",
        ),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else value,
)
def test_the_extra_is_named(
    arguments: tuple[str, ...], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run_core(*arguments)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"pip install 'splitwise-llm[{extra}]'" in ended.stderr


def test_the_core_does_its_own_work_without_extras() -> None:
    assert run_core("simulate", *SIMULATED).returncode == 0


def imported_modules() -> set[str]:
    """Names of all modules that the package imports anywhere, by their first part."""
    found: set[str] = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).split(".")[0])
    return found - {"splitwise"} - sys.stdlib_module_names


def test_every_module_beyond_the_core_has_its_extra() -> None:
    core = core_distributions()
    owners = packages_distributions()
    for module in imported_modules():
        of_core = {canonical(owner) for owner in owners.get(module, [])} & core
        assert of_core or module in EXTRA_OF, module


def test_the_extras_bring_what_they_are_named_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    indirect = {"tokenizers", "huggingface_hub"}  # transformers brings them
    named = {"yaml": "pyyaml"}
    for module, extra in EXTRA_OF.items():
        listed = {canonical(re.split(r"[\[<>=]", text)[0]) for text in extras[extra]}
        assert module in indirect or canonical(named.get(module, module)) in listed, module
