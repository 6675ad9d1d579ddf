"""What ``serve`` is told of its workers, they are told: every field, however it was given."""

import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from splitwise.cli.main import app
from splitwise.cli.settings import options_of
from splitwise.cli.worker_settings import WorkerSettings
from splitwise.cluster.limits import ClusterLimits
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.process import ServeOptions
from splitwise.launch.launcher import worker_command
from splitwise.scheduling.policies.policy import DEFAULT, SHIPPED, load_policy

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=8)


class Served(Exception):
    """``serve`` came as far as to start the gateway."""


def other_than_default(kind: Any, default: Any, meta: msgspec.Meta) -> st.SearchStrategy[Any]:
    if kind is bool:
        return st.just(not default)
    if get_origin(kind) is Literal:
        return st.sampled_from([value for value in get_args(kind) if value != default])
    floats = st.floats(float(meta.ge or 0), 1e9)
    numbers: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(int(meta.ge or 0), 2**31),
        float: floats,
        float | None: floats,
        str: WORDS,
    }
    return numbers[kind].filter(lambda value: value != default)


def changed(struct: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    """A value for every option of the struct, none its default, by the options' names."""
    found = {o.name: other_than_default(o.kind, o.default, o.meta) for o in options_of(struct)}
    assert found
    if "policy" in found:  # no other words name one
        found["policy"] = st.sampled_from([name for name in SHIPPED if name != DEFAULT.source])
    if "vllm_args" in found:  # the words of a command line
        found["vllm_args"] = st.lists(WORDS, min_size=1).map(shlex.join)
    return st.fixed_dictionaries(found)


def served(monkeypatch: pytest.MonkeyPatch, arguments: list[str], env: Any = None) -> ServeOptions:
    """What ``serve`` starts the gateway with."""
    started: list[ServeOptions] = []

    def gateway(options: ServeOptions, *_: object) -> None:
        started.append(options)
        raise Served

    monkeypatch.setattr("splitwise.gateway.process.Gateway", gateway)
    # What the engine says of them is its own tests' business, and vLLM need not be installed.
    monkeypatch.setattr("splitwise.cli.serve.check_engine", lambda *_, **__: None)
    result = CliRunner().invoke(app, ["serve", *arguments], env=env)
    assert isinstance(result.exception, Served), result.output
    return started[0]


def told_to_worker(monkeypatch: pytest.MonkeyPatch, options: ServeOptions) -> tuple[Any, Any]:
    """The settings and ``WorkerOptions`` of the first worker, from its command line."""
    told: list[Any] = []
    monkeypatch.setattr("splitwise.cli.worker.run_engine", lambda *given: told.extend(given[2:]))
    [spec, *_] = options.worker_specs("127.0.0.1:7000")
    command = worker_command(spec)
    arguments = command[command.index("worker") :]
    result = CliRunner().invoke(app, arguments, env={"SPLITWISE_CLUSTER_KEY": "key"})
    assert result.exit_code == 0, result.output
    settings_told, worker_options = told
    return settings_told, worker_options


def as_flags(values: dict[str, Any]) -> list[str]:
    return [
        f"--{name.replace('_', '-')}={value}"
        if not isinstance(value, bool)
        else f"--{'' if value else 'no-'}{name.replace('_', '-')}"
        for name, value in values.items()
    ]


@pytest.mark.parametrize("way", ["flags", "file", "environment"])
@given(values=changed(WorkerSettings))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_setting_of_a_worker_arrives(
    way: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(values) if way == "file" else "")
    options = served(
        monkeypatch,
        [f"--config={file}", *(as_flags(values) if way == "flags" else [])],
        {f"SPLITWISE_{name.upper()}": str(value) for name, value in values.items()}
        if way == "environment"
        else None,
    )
    told, worker_options = told_to_worker(monkeypatch, options)
    assert msgspec.structs.asdict(told) == values
    assert options.threads == values["threads"]
    assert worker_options.checksum == values["checksum"]
    assert worker_options.transport == values["transport"]
    deadlines = worker_options.deadlines
    for name in ("connect_s", "write_s", "answer_s", "stop_s", "idle_s"):
        assert getattr(deadlines, name) == values[f"transfer_{name}"]
    assert worker_options.policy == options.policy == load_policy(values["policy"])
    limits = worker_options.limits
    assert limits.prompt_batch_tokens == values["prompt_batch_tokens"]
    assert limits.batch_requests == values["batch_requests"]
    assert limits.one_piece_below_tokens == values["one_piece_below"]


@given(cluster=changed(ClusterLimits), http=changed(HttpLimits))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_limit_arrives(
    cluster: dict[str, Any], http: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = served(monkeypatch, ["--engine=null", *as_flags(cluster | http)])
    for limits, values in ((options.cluster, cluster), (options.http, http)):
        for option in options_of(type(limits)):
            assert getattr(limits, option.field) == values[option.name]


def test_without_options_workers_have_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    options = served(monkeypatch, ["--engine=null"])
    told, _ = told_to_worker(monkeypatch, options)
    assert told == WorkerSettings(engine="null")
    assert (options.cluster, options.http) == (ClusterLimits(), HttpLimits())


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize(
    "wrong", ["--engine=steam", "--threads=0", "--dtype=int3", "--transport=pigeon"]
)
def test_both_refuse_what_is_out_of_range(command: str, wrong: str) -> None:
    needed = ["--join=127.0.0.1:1"] if command == "worker" else []
    result = CliRunner().invoke(app, [command, *needed, wrong])
    assert result.exit_code == 2
    assert wrong.split("=")[0] in result.output


def test_the_other_name_of_an_option_is_the_same_option(monkeypatch: pytest.MonkeyPatch) -> None:
    options = served(monkeypatch, ["--engine=null", "--max-num-seqs=7"])
    told, _ = told_to_worker(monkeypatch, options)
    assert told.batch_requests == 7
