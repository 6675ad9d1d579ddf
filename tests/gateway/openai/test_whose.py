"""Whose a request is and how urgent: what the cluster is told of it."""

from typing import Any

import httpx
import pytest
from api_server import Running, Serve

from splitwise.gateway.api_keys import ApiKeys
from splitwise.gateway.openai.gate import Gate

KEYS = ["sk-first", "sk-second", "sk-first"]
USER = [{"role": "user", "content": "hi"}]


def whose(server: Running, path: str = "completions", key: str = "", **fields: Any) -> str:
    body = {"prompt": "hi"} if path == "completions" else {"messages": USER}
    answer = httpx.post(
        f"{server.url}/v1/{path}",
        json={**body, "max_tokens": 1, **fields},
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )
    assert answer.status_code == 200, answer.text
    return server.parrot.requests[-1].client


def test_with_keys_it_is_the_keys_whatever_user_is_named(serve: Serve) -> None:
    server = serve(gate=Gate(ApiKeys(KEYS)))
    first = whose(server, key="sk-first")
    assert whose(server, "chat/completions", key="sk-first", user="somebody") == first
    second = whose(server, key="sk-second", user="somebody", safety_identifier=first)
    assert second != first
    assert not any(key in name for key in KEYS for name in (first, second))


def test_without_keys_it_is_the_users_at_its_address(server: Running) -> None:
    address = whose(server)
    assert address == whose(server, user="") == whose(server, user=None) == "127.0.0.1"
    ann, bob = whose(server, user="Ann"), whose(server, "chat/completions", user="Bob")
    assert len({address, ann, bob}) == 3
    assert whose(server, user="Bob", safety_identifier="Ann") == ann
    assert ann.startswith(address)  # somebody elsewhere who says to be Ann is another
    assert len(whose(server, user="x" * 100_000)) < 500


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("priority", [None, 0, 3, -7, 2**63 - 1, -(2**63)])
def test_the_priority_reaches_the_cluster(server: Running, path: str, priority: int | None) -> None:
    whose(server, path, priority=priority, n=2)
    assert [request.priority for request in server.parrot.requests] == [priority or 0] * 2


OPEN = None
KEYED = Gate(
    ApiKeys(["sk-usual", "sk-urgent min_priority=-10", "sk-last name=batch min_priority=5"])
)
BOUND = Gate(ApiKeys(["sk-usual", "sk-urgent min_priority=-10"]), min_priority=2)
BOUND_OPEN = Gate(min_priority=-3)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize(
    ("gate", "key", "asked", "given"),
    [
        (OPEN, "", -(2**63), -(2**63)),
        (KEYED, "sk-usual", -1, None),
        (KEYED, "sk-usual", 0, 0),
        (KEYED, "sk-usual", 7, 7),
        (KEYED, "sk-urgent", -10, -10),
        (KEYED, "sk-urgent", -11, None),
        (KEYED, "sk-urgent", None, 0),
        (KEYED, "sk-last", 4, None),
        (KEYED, "sk-last", 0, None),
        (KEYED, "sk-last", None, 5),
        (BOUND, "sk-usual", 1, None),
        (BOUND, "sk-usual", None, 2),
        (BOUND, "sk-urgent", -10, -10),
        (BOUND_OPEN, "", -3, -3),
        (BOUND_OPEN, "", -4, None),
        (BOUND_OPEN, "", None, 0),
    ],
)
def test_how_urgent_a_request_may_be(
    serve: Serve, path: str, gate: Gate | None, key: str, asked: int | None, given: int | None
) -> None:
    """``given`` is what the cluster is told; None: it is refused by name."""
    server = serve(gate=gate)
    if given is not None:
        whose(server, path, key, priority=asked)
        assert server.parrot.requests[-1].priority == given
        return
    body = {"prompt": "hi"} if path == "completions" else {"messages": USER}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.post(
        f"{server.url}/v1/{path}", json={**body, "priority": asked}, headers=headers
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "priority"
    assert str(asked) in answer.json()["error"]["message"]
    assert server.parrot.requests == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("priority", value) for value in (2**63, -(2**63) - 1, 1.5, "high", True, [])),
        *(("user", value) for value in (5, ["Ann"])),
        *(("safety_identifier", value) for value in (5, {})),
    ],
)
def test_what_does_not_fit_is_named(server: Running, field: str, value: Any) -> None:
    body = {"prompt": "hi", field: value}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert server.parrot.requests == []
