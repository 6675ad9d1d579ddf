"""Which sampling settings and which ends a model's files name."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitwise.engine.errors import ModelError
from splitwise.engine.generation_config import GenerationDefaults, read_generation_defaults
from splitwise.engine.model_files import ModelFolder, read_stop_token_ids


def write(folder: Path, **content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_the_fields_that_count_are_read(tmp_path: Path) -> None:
    read = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05}
    others = {"do_sample": False, "num_beams": 4, "eos_token_id": [3]}
    folder = write(tmp_path, **read, repetition_penalty=1.05, max_new_tokens=77, **others)
    expected = GenerationDefaults(0.6, 20, 0.95, 0.05, 1.05, 77)
    assert read_generation_defaults(folder) == expected
    assert read_generation_defaults(folder, "auto") == expected
    for chosen in ("none", "vllm"):
        assert read_generation_defaults(folder, chosen) == GenerationDefaults()


def test_what_is_not_said_is_neutral(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults()
    write(tmp_path, temperature=None, top_k=-1)
    assert read_generation_defaults(tmp_path) == GenerationDefaults(top_k=-1)
    write(tmp_path, temperature=1)
    assert read_generation_defaults(tmp_path) == GenerationDefaults()


def test_another_folder_may_be_chosen(tmp_path: Path) -> None:
    model = write(tmp_path / "model", temperature=0.1, eos_token_id=3)
    other = write(tmp_path / "other", temperature=0.9, eos_token_id=[4, 5])
    assert read_generation_defaults(model, str(other)).temperature == 0.9
    assert read_stop_token_ids(ModelFolder(model, "m"), str(other)) == [3, 4, 5]
    assert read_stop_token_ids(ModelFolder(model, "m"), "none") == [3]
    for nothing in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(ModelError, match=r"--generation-config .*generation_config\.json"):
            read_generation_defaults(model, nothing)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", "warm"),
        ("temperature", True),
        ("temperature", 2.5),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, **{name: value})
    with pytest.raises(ModelError, match=f"{name} is {value!r}.*--generation-config none"):
        read_generation_defaults(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config\.json .*--generation-config none"):
        read_generation_defaults(tmp_path)
