"""What a model's folder says of sampling, ends and templates, through the whole server."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from splitwise.engine.model_files import ModelFolder, read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.process import Gateway, ServeOptions
from splitwise.launch.local_server import ServerError, running_server

WORDS = words_of(read_model_info(null_model()).vocab_size, read_stop_token_ids(null_model()))
PROMPT = list(range(4, 30))
ARGUMENTS = ["--engine=null", "--mixed=1", "--kv-cache-gib=0.01"]
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The null model with settings of its own and without a chat template."""
    folder = tmp_path / "own"
    shutil.copytree(null_model().path, folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template")
    file.write_text(json.dumps(config))
    settings = {"temperature": 0.0, "max_new_tokens": 5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def complete(client: httpx.Client, **settings: Any) -> list[int]:
    body = {"prompt": PROMPT, "return_token_ids": True, **settings}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def test_its_settings_are_the_default(folder: Path) -> None:
    greedy, seeded = SamplingParams(temperature=0), SamplingParams(seed=5)
    with (
        running_server(str(folder), *ARGUMENTS) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert complete(client, seed=5) == continuation(PROMPT, 5, greedy, WORDS)
        said = {"seed": 5, "temperature": 1, "max_tokens": 9}
        assert complete(client, **said) == continuation(PROMPT, 9, seeded, WORDS)
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 400
        assert "--chat-template FILE" in refused.json()["error"]["message"]


def test_they_and_the_template_can_be_set_aside(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    arguments = ["--generation-config=none", f"--chat-template={template}"]
    with (
        running_server(str(folder), *ARGUMENTS, *arguments) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        seeded = SamplingParams(seed=5)
        assert complete(client, seed=5) == continuation(PROMPT, 16, seeded, WORDS)
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, answer.text


def test_every_end_that_the_files_name_ends_a_text(folder: Path, tmp_path: Path) -> None:
    tokens = {
        entry["content"]: entry["id"]
        for entry in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    start, end = tokens["<|start|>"], tokens["<|end|>"]
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        config |= {"eos_token": "<|start|>", "eos_token_id": start}
        (folder / name).write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, start]}))

    def ends(**settings: Any) -> list[int]:
        return Gateway(ServeOptions(**settings), ModelFolder(folder, "own"))._stop_token_ids

    assert ends() == sorted({7, start})
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    assert ends(chat_template=template) == sorted({7, start, end})


def test_what_makes_no_sense_ends_the_start(folder: Path, tmp_path: Path) -> None:
    def refusal(*arguments: str) -> str:
        with (
            pytest.raises(ServerError) as error,
            running_server(str(folder), *ARGUMENTS, *arguments),
        ):
            pass
        return str(error.value)

    assert "--generation-config" in refusal(f"--generation-config={tmp_path}")
    (folder / "generation_config.json").write_text('{"top_p": 7}')
    assert "top_p is 7" in refusal()
    (folder / "tokenizer.json").unlink()
    said = refusal("--generation-config=none")
    assert "tokenizer.json is missing" in said
    assert "Traceback" not in said
