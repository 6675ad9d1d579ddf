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
