"""Prompts against transformers' tokenizer, which also reads the model's files."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from splitwise.engine.model_files import read_stop_token_ids, resolve_model
from splitwise.gateway.text.chat_template import ChatTemplateError
from splitwise.gateway.text.codec import LONG_TEXT_CHARS, TextCodec, TextTooLong

FOLDER = resolve_model().path
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": 'Hello <b>there</b> & "you" 🦜'}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  spaces \n\n"}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "name": None},
        {"role": "user", "content": "2+2?", "name": "Ann"},
    ],
]
TEMPLATES = {
    "settings of blocks": """
{%- for message in messages %}
    {% if message.role == 'user' %}
  U: {{ message.content }}
    {% else %}{% generation %}A: {{ message.content }}{% endgeneration %}
    {% endif %}
{%- endfor %}
""",
    "filters and loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ m | tojson }}|{{ m | tojson(indent=1) }}{% endfor %}{{ tools is none }}",
    "tokens": "{{ bos_token }}{{ messages[0]['content'] | trim }}{{ eos_token }}"
    "{{ sep_token is defined }}{{ strftime_now('%Y') | length }}{{ add_generation_prompt }}",
    "extra": "{% if enable_thinking is defined and not enable_thinking %}short{% endif %}",
    "memory": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
}


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load(FOLDER)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("generation", [True, False])
def test_the_models_template(
    codec: TextCodec, reference: Any, chat: list[dict[str, Any]], generation: bool
) -> None:
    expected = reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation)
    assert codec.render_chat(chat, generation) == expected
    tokens = asyncio.run(codec.encode(expected, False, 10_000))
    assert tokens == reference.apply_chat_template(
        chat, add_generation_prompt=generation, return_dict=False
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("chat", CHATS)
def test_what_templates_may_use(reference: Any, template: str, chat: list[dict[str, Any]]) -> None:
    codec = TextCodec(
        Tokenizer.from_file(str(FOLDER / "tokenizer.json")), template, reference.special_tokens_map
    )
    expected = reference.apply_chat_template(
        chat,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert codec.render_chat(chat, True, {"enable_thinking": False}) == expected


def test_special_tokens_are_those_of_the_files(codec: TextCodec, reference: Any) -> None:
    assert codec._template is not None
    assert codec._template._variables == reference.special_tokens_map


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_plain_text(codec: TextCodec, reference: Any, add_special_tokens: bool) -> None:
    long = "The parrot said: nevermore. 🦜\n" * (LONG_TEXT_CHARS // 20)
    for text in ("", " a  b\t\n", "naïve <|im_end|> €", long):
        tokens = asyncio.run(codec.encode(text, add_special_tokens, 10_000))
        assert tokens == reference(text, add_special_tokens=add_special_tokens)["input_ids"]
        assert asyncio.run(codec.decode(tokens)) == reference.decode(tokens)


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system role') }}", "{{ 1 / 0 }}", "{{ messages[9].content + 'x' }}"],
)
def test_a_template_that_refuses(codec: TextCodec, template: str) -> None:
    refusing = TextCodec(codec._tokenizer, template)
    with pytest.raises(ChatTemplateError, match="chat template refuses"):
        refusing.render_chat(CHATS[0])


def test_no_template(codec: TextCodec) -> None:
    with pytest.raises(ChatTemplateError, match=r"no chat template.*--chat-template FILE"):
        TextCodec(codec._tokenizer).render_chat(CHATS[0])


def test_templates_cannot_reach_out(codec: TextCodec) -> None:
    with pytest.raises(ChatTemplateError):
        TextCodec(codec._tokenizer, "{{ ''.__class__.__mro__ }}").render_chat(CHATS[0])


def test_older_ways_to_keep_a_template(tmp_path: Path) -> None:
    """In the tokenizer's settings, alone or by name, with special tokens as objects."""
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "chat_template": [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "{{ bos_token }}default"},
        ],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert TextCodec.load(tmp_path).render_chat(CHATS[0]) == "<s>default"
    config["chat_template"] = "{{ bos_token }}plain"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert TextCodec.load(tmp_path).render_chat(CHATS[0]) == "<s>plain"


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        TextCodec.load(tmp_path)


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        TextCodec.load(tmp_path)


def test_a_text_far_too_long_is_not_tokenised_whole(codec: TextCodec) -> None:
    dense, sparse = "a b " * 100_000, " " * 400_000
    with pytest.raises(TextTooLong, match="more than 2000 tokens"):
        asyncio.run(codec.encode(sparse + dense, False, 1000))
    tokens = asyncio.run(codec.encode(sparse, False, 10_000))
    assert asyncio.run(codec.decode(tokens)) == sparse


TURNS = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}END{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TURNS.replace("END", "<|im_end|>\n"), "<|im_end|>"),
        (TURNS.replace("END", " \n<|im_end|>"), "<|im_end|>"),
        # Not at the end of a conversation, but before the next question.
        (
            "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}"
            "{% else %}{{ m.content }}{% endif %}{% endfor %}",
            "<|im_start|>",
        ),
        # Only of an answer: a question ends otherwise.
        (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>"
            "{% else %}<|im_start|>{% endif %}{% endfor %}",
            "<|im_end|>",
        ),
        ("{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}", None),
        ("{{ raise_exception('never') }}", None),
        ("nothing of the messages <|im_end|>", None),
        (None, None),
    ],
)
def test_what_ends_a_turn_is_seen_in_the_template(
    codec: TextCodec, template: str | None, end: str | None
) -> None:
    expected = [] if end is None else [codec._tokenizer.token_to_id(end)]
    assert TextCodec(codec._tokenizer, template).end_of_turn_ids() == expected


def test_the_default_models_turn_ends_as_its_text_does(codec: TextCodec) -> None:
    assert codec.end_of_turn_ids() == read_stop_token_ids(resolve_model())


def test_another_template_may_be_given(codec: TextCodec, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}mine: {{ messages[0].content }}")
    mine = TextCodec.load(FOLDER, file)
    assert mine.render_chat([{"role": "user", "content": "x"}]).endswith("mine: x")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TextCodec.load(FOLDER, tmp_path / "nowhere.jinja")


def test_a_template_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("fine\n{% for m in messages %}")
    with pytest.raises(ChatTemplateError, match=r"mine\.jinja is no chat template: line 2"):
        TextCodec.load(FOLDER, file)
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ oops")
    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja is .*--chat-template FILE"):
        TextCodec.load(tmp_path)
