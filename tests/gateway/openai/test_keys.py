"""API keys: who is let in, what stays open, and that no key is ever said."""

import hashlib
import hmac
import logging
from pathlib import Path

import httpx
import openai
import pytest
from api_server import MODEL, Serve
from parrot import Parrot

from splitwise.gateway import api_keys
from splitwise.gateway.api_keys import ApiKeyError, ApiKeys, Tenant, read_api_keys
from splitwise.gateway.openai.gate import Gate

KEYS = ["sk-first", "sk-second", "sk-third"]
PLAIN = "/v1/completions"
ROUTES = ["/v1/models", "/metrics", f"/v1/models/{MODEL}", "/nowhere", "/"]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_let_in(serve: Serve, key: str) -> None:
    server = serve(gate=Gate(ApiKeys(KEYS)))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        assert client.models.list().data[0].id == MODEL
        answer = client.completions.create(model=MODEL, prompt="hi there", max_tokens=2)
        assert answer.usage is not None and answer.usage.completion_tokens == 2


def test_another_key_is_an_authentication_error(serve: Serve) -> None:
    server = serve(gate=Gate(ApiKeys(KEYS)))
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.completions.create(model=MODEL, prompt="hi")
    assert caught.value.code == "invalid_api_key"
    assert server.parrot.requests == []


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Basic sk-first",
        "sk-first",
        "Bearer sk-firs",
        "Bearer sk-first,sk-second",
        "Bearer SK-FIRST",
        "Bearer sk-first\xe9",
    ],
)
def test_what_is_no_key(serve: Serve, header: str | None) -> None:
    server = serve(gate=Gate(ApiKeys(KEYS)))
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with httpx.Client(base_url=server.url, timeout=20) as http:
        for path in ROUTES:
            answer = http.get(path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert http.post(PLAIN, headers=headers, json={"prompt": "a"}).status_code == 401
    assert server.parrot.requests == []


def test_the_scheme_is_case_insensitive(serve: Serve) -> None:
    server = serve(gate=Gate(ApiKeys(KEYS)))
    answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "bearer  sk-second"})
    assert answer.status_code == 200


def test_what_stays_open(serve: Serve) -> None:
    server = serve(gate=Gate(ApiKeys(KEYS)))
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/version").status_code == 200
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    server = serve(gate=Gate(ApiKeys(KEYS), open_metrics=True))
    assert httpx.get(f"{server.url}/metrics").status_code == 200
    assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_no_key_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    parrot = Parrot()
    parrot.refuse_with = RuntimeError("lost")  # an unexpected failure logs the most
    server = serve(gate=Gate(ApiKeys(KEYS)), parrot=parrot)
    for key in ("sk-second", "sk-wrong"):
        headers = {"Authorization": f"Bearer {key}"}
        httpx.post(f"{server.url}{PLAIN}", json={"prompt": "a"}, headers=headers)
    assert "failed unexpectedly" in caplog.text
    assert "sk-" not in caplog.text
    assert "sk-" not in repr(vars(ApiKeys(KEYS)))


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team's\nsk-a\n\n  sk-b  \n")
    keys = read_api_keys(file, {"SPLITWISE_API_KEY": "sk-c, sk-d"})
    for name in "abcd":
        assert keys.find(f"Bearer sk-{name}".encode())
    assert not keys.find(b"Bearer # the team's")
    assert not keys.find(b"Bearer ")
    assert not read_api_keys(None, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no"),
        (b" # none\n", "holds no"),
        (b"ok\nsecret 1\n", "line 2"),
        (b"\xff", "text"),
    ],
)
def test_a_bad_file_is_named_without_its_keys(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ApiKeyError, match=words) as caught:
        read_api_keys(file, {})
    assert str(file) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_empty_variable_does_not_open_the_server() -> None:
    with pytest.raises(ApiKeyError, match="SPLITWISE_API_KEY"):
        read_api_keys(None, {"SPLITWISE_API_KEY": ""})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ApiKeyError, match="missing-keys"):
        read_api_keys(tmp_path / "missing-keys", {})


def test_a_key_is_looked_up_once_however_many_there_are(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [f"sk-{number}" for number in range(5000)]
    server = serve(gate=Gate(ApiKeys(many)))
    digested: list[bytes] = []
    digest = api_keys._digest

    def count(key: bytes) -> bytes:
        digested.append(key)
        return digest(key)

    monkeypatch.setattr(api_keys, "_digest", count)
    monkeypatch.setattr(hmac, "compare_digest", None)  # nothing is compared one by one
    answer = httpx.post(
        f"{server.url}{PLAIN}",
        json={"prompt": "hi", "max_tokens": 1},
        headers={"Authorization": "Bearer sk-4999"},
    )
    assert answer.status_code == 200
    assert digested == [b"sk-4999"]


def owner(keys: ApiKeys, key: str) -> Tenant:
    found = keys.find(f"Bearer {key}".encode())
    assert found is not None
    return found


def test_names_stay_when_keys_come_and_go(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-a\nsk-b name=team\nsk-c\n")
    keys = read_api_keys(file, {})
    before = {key: owner(keys, key).name for key in ("sk-a", "sk-b", "sk-c")}
    assert len(set(before.values())) == 3
    # The first leaves, another comes before the rest, and the team has a second key.
    file.write_text("sk-new\nsk-c\nsk-b2 name=team\nsk-b name=team\n")
    keys.become(read_api_keys(file, {}))
    assert keys.find(b"Bearer sk-a") is None
    assert owner(keys, "sk-c").name == before["sk-c"]
    assert owner(keys, "sk-b").name == owner(keys, "sk-b2").name == before["sk-b"]
    assert owner(keys, "sk-new").name not in before.values()


def test_an_unnamed_key_cannot_pass_for_a_named_one(tmp_path: Path) -> None:
    unnamed = owner(ApiKeys(["sk-a"]), "sk-a").name
    named = ApiKeys([f"sk-b name={unnamed.split()[1]}"])
    assert owner(named, "sk-b").name != unnamed
    assert hashlib.sha256(b"sk-a").hexdigest()[:12] not in unnamed  # it is logged: no guessing


@pytest.mark.parametrize(
    "setting",
    [
        "1",
        "name=",
        "name=a:b",
        "min_priority=low",
        "min_priority=1e3",
        "x=1",
        f"name={'a' * 65}",
        "min_priority=99999999999999999999",
        "min_priority=9223372036854775808",
    ],
)
def test_a_bad_setting_names_its_line_and_quotes_nothing(tmp_path: Path, setting: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"sk-a\nsk-secret {setting}\n")
    with pytest.raises(ApiKeyError, match=r"line 2: after a key") as caught:
        read_api_keys(file, {})
    assert "sk-" not in str(caught.value)
