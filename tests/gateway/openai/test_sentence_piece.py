"""A model whose tokenizer is SentencePiece's: texts begin in the place where they stand."""

import openai
import pytest
from api_server import MODEL, Running, Serve
from sentence_piece import bytes_of, sentence_piece
from tokenizers import Tokenizer

from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return sentence_piece("llama")


@pytest.fixture
def running(serve: Serve, tokenizer: Tokenizer) -> Running:
    facts = ModelFacts(MODEL, 2048, tokenizer.get_vocab_size(), ())
    return serve(codec=TextCodec(tokenizer, TEMPLATE), facts=facts)


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_keeps_its_first_space(client: openai.OpenAI, stream: bool) -> None:
    """The parrot says " Hello world!" after "Hello world!"."""
    settings = {"model": MODEL, "prompt": "Hello world!", "max_tokens": 3, "n": 2}
    answer = client.completions.create(stream=stream, **settings)
    texts = ["", ""]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == [" Hello world!"] * 2
    # A stop string may begin with that space.
    stopped = client.completions.create(**settings, stop=" Hello")
    assert [choice.text for choice in stopped.choices] == ["", ""]


def test_an_answer_in_a_chat_stands_after_its_prompt(
    client: openai.OpenAI, running: Running, tokenizer: Tokenizer
) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12)
    prompt = running.parrot.requests[0].prompt
    said = [prompt[i % len(prompt)] for i in range(12)]
    expected = tokenizer.decode(prompt + said).removeprefix(tokenizer.decode(prompt))
    assert answer.choices[0].message.content == expected


def test_a_character_may_be_split_between_prompt_and_answer(
    client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    """The prompt says its end, then its beginning: the parrot goes on with the end."""
    ids = bytes_of(tokenizer)
    first, second = "é".encode()
    prompt = [ids[second], tokenizer.token_to_id("a"), ids[first]]
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2)
    assert answer.choices[0].text == "éa"
