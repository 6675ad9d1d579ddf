"""Policies in files: what is loaded, what is refused and how, and what a digest knows."""

import pickle
import sys
from pathlib import Path

import pytest

from splitwise.scheduling.policies import default
from splitwise.scheduling.policies.policy import DEFAULT, SHIPPED, PolicyError, load_policy

ALONE = """
from splitwise.scheduling.decision import Placement

def place(cluster, request, rules):
    return Placement({}, {}, False)
"""


def written(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_ones_go_by_name(name: str) -> None:
    policy = load_policy(name)
    assert policy == load_policy(name.replace("-", "_"))
    assert policy.name == name
    assert (policy.hooks.place is default.place) == (name == "default")


def test_what_a_file_does_not_define_is_the_default_s(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path / "mine.py", ALONE.format(3, 3)))
    assert policy.own == {"place"}
    assert policy.name == "mine.py"
    assert policy.hooks.place(None, None, None) == (3, 3, False)
    assert not DEFAULT.own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def placement(cluster, request, rules): ...", "placement, .* did you mean place"),
        ("def plase(cluster, request, rules): ...", "did you mean place"),
        ("def place(cluster, request): ...", r"takes \(cluster, request\); it must take \(cl.*les"),
        ("def place(cluster, rules, request): ...", r"takes \(cluster, rules, request\)"),
        ("def place(cluster, request, *, rules): ...", r"takes \(cluster, request, \*, rules\)"),
        ("def place(*asked): ...", r"takes \(\*asked\)"),
        ("def order(waiting, rules): ...", r"order takes \(waiting, rules\); it must take \(requ"),
        ("def orders(request): ...", "did you mean order"),
        ("place = 7", "place is 7; make it a function"),
        (
            "def compose(batch): ...",
            r"takes \(batch\); it must take \(batch, prompt_tokens\)",
        ),
        ("THRESHOLD = 7", "defines no decision; define one of place, order, compose, victim"),
        ("import nothing_of_that_name", "mine.py, line 1: ModuleNotFoundError: .*nothing_of"),
        ("x = 1\n\ny = 1 / 0", "mine.py, line 3: ZeroDivisionError"),
        ("def place(cluster,\n  request rules): ...", "mine.py, line 2: SyntaxError"),
        ("raise SystemExit(3)", "mine.py, line 1: SystemExit"),
    ],
)
def test_refusals_say_what_is_wrong_and_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        load_policy(written(tmp_path / "mine.py", text))


def test_an_error_in_what_it_imports_is_named_there(tmp_path: Path) -> None:
    written(tmp_path / "helping.py", "\n\nraise ValueError('no')")
    with pytest.raises(PolicyError, match=r"helping.py, line 3: ValueError: no"):
        load_policy(written(tmp_path / "mine.py", "import helping\n" + ALONE.format(1, 1)))


@pytest.mark.parametrize("source", ["two-choice", "no/such/file.py", ".", "mine.txt"])
def test_a_policy_that_is_not_there(source: str) -> None:
    with pytest.raises(PolicyError, match=r"choose from default, two-choices|no such file"):
        load_policy(source)


def test_two_policies_with_helpers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    sources = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "helping.py", f"CHOSEN = {len(sources)}")
        text = "from helping import CHOSEN\n" + ALONE.format("CHOSEN", "CHOSEN")
        sources.append(written(tmp_path / folder / "mine.py", text))
    before = dict(sys.modules)
    one, two = map(load_policy, sources)
    assert one.hooks.place(0, 0, 0) != two.hooks.place(0, 0, 0)
    assert one.digest != two.digest
    assert "helping" not in sys.modules
    assert {name: sys.modules[name] for name in before} == before
    assert str(tmp_path / "one") not in sys.path


def test_a_helper_hides_a_module_of_its_name_only_from_the_policy(tmp_path: Path) -> None:
    import colorsys as known

    written(tmp_path / "colorsys.py", "CHOSEN = 4")
    text = "import colorsys\n" + ALONE.format("colorsys.CHOSEN", 4)
    policy = load_policy(written(tmp_path / "mine.py", text))
    assert policy.hooks.place(0, 0, 0) == (4, 4, False)
    assert sys.modules["colorsys"] is known


def test_the_digest_knows_what_a_policy_imports_and_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "deeper.py", "CHOSEN = 1")
    written(tmp_path / "helping.py", "import deeper\ndef of(x):\n    return deeper.CHOSEN")
    text = (
        "import os\nimport numpy as np\nfrom helping import of\nLIMIT = os.environ['LIMIT']\n"
        "TABLE = np.fromfile(os.environ['TABLE'], dtype=np.int8)\n" + ALONE.format("of(1)", 1)
    )
    table = tmp_path / "table"
    mine = written(tmp_path / "mine.py", text)
    monkeypatch.setenv("LIMIT", "1")
    monkeypatch.setenv("TABLE", str(table))
    table.write_bytes(b"12")
    digests = [load_policy(mine).digest]

    def changed() -> bool:
        digests.append(load_policy(mine).digest)
        return digests[-1] not in digests[:-1]

    assert load_policy(mine).digest == digests[0]
    monkeypatch.setenv("LIMIT", "2")
    assert changed()
    table.write_bytes(b"13")
    assert changed()
    written(tmp_path / "deeper.py", "CHOSEN = 12")
    assert changed()
    written(tmp_path / "helping.py", "import deeper\ndef of(x):\n    return -deeper.CHOSEN")
    assert changed()
    written(tmp_path / "mine.py", text + "\n")
    assert changed()


def test_a_policy_goes_to_another_process_as_what_it_is(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.py", ALONE.format(1, 1))
    for policy in (DEFAULT, load_policy("two-choices"), load_policy(mine)):
        there = pickle.loads(pickle.dumps(policy))
        assert there == policy
        assert there.own == policy.own
    sent = pickle.dumps(load_policy(mine))
    written(tmp_path / "mine.py", ALONE.format(2, 1))
    with pytest.raises(PolicyError, match=r"mine.py differs from what this work began with"):
        pickle.loads(sent)
