"""``/v1/chat/completions`` through the official client, against a parrot.

The parrot says the rendered prompt back, up to the first end-of-text token in it, so what the
client must see follows from transformers' own rendering of the messages.
"""

import asyncio
from typing import Any

import openai
import pytest
from api_server import MODEL, Running
from transformers import AutoTokenizer

from splitwise.engine.model_files import ModelFolder

SYSTEM = {"role": "system", "content": "Answer as a parrot 🦜."}
USER = {"role": "user", "content": "Who's a clever bird?"}


@pytest.fixture(scope="module")
def reference(model_folder: ModelFolder) -> Any:
    return AutoTokenizer.from_pretrained(model_folder.path)


def test_the_prompt_is_the_models_template(
    client: openai.OpenAI, server: Running, reference: Any
) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[SYSTEM, USER], max_tokens=99)
    expected = reference.apply_chat_template(
        [SYSTEM, USER], add_generation_prompt=True, return_dict=False
    )
    assert server.parrot.requests[0].prompt == expected
    until_end = expected[: expected.index(reference.eos_token_id)]
    assert answer.choices[0].message.content == reference.decode(
        until_end, skip_special_tokens=True
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected)
    assert answer.usage.completion_tokens == len(until_end) + 1


@pytest.mark.parametrize("chunk_sizes", [[1], [2, 5]])
def test_stream(client: openai.OpenAI, server: Running, chunk_sizes: list[int]) -> None:
    server.parrot.chunk_sizes = chunk_sizes
    whole = client.chat.completions.create(model=MODEL, messages=[SYSTEM, USER])
    chunks = list(client.chat.completions.create(model=MODEL, messages=[SYSTEM, USER], stream=True))
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks] == [
        "assistant",
        *[None] * (len(chunks) - 1),
    ]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [
        *[None] * (len(chunks) - 1),
        "stop",
    ]


def test_async_client(server: Running) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=MODEL, messages=[{"role": "system", "content": f"Bird {i}"}]
                    )
                    for i in range(20)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [f"system\nBird {i}" for i in range(20)]


def test_content_may_come_in_parts(client: openai.OpenAI, server: Running) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    client.chat.completions.create(
        model=MODEL, messages=[{"role": "developer", "content": parts}], max_tokens=1
    )
    client.chat.completions.create(
        model=MODEL, messages=[{"role": "system", "content": "one\ntwo"}], max_tokens=1
    )
    first, second = server.parrot.requests
    assert first.prompt == second.prompt


def test_default_is_all_that_fits(client: openai.OpenAI, server: Running) -> None:
    client.chat.completions.create(model=MODEL, messages=[USER])
    (request,) = server.parrot.requests
    assert request.max_tokens == server.facts.max_context_tokens - len(request.prompt)


def test_max_completion_tokens_comes_first(client: openai.OpenAI, server: Running) -> None:
    client.chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=5, max_completion_tokens=3
    )
    assert server.parrot.requests[0].max_tokens == 3


def test_without_a_generation_prompt(
    client: openai.OpenAI, server: Running, reference: Any
) -> None:
    client.chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=1, extra_body={"add_generation_prompt": False}
    )
    assert server.parrot.requests[0].prompt == reference.apply_chat_template(
        [USER], add_generation_prompt=False, return_dict=False
    )


def test_logprobs(client: openai.OpenAI, server: Running) -> None:
    messages = [{"role": "user", "content": "€"}]
    whole = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=12, logprobs=True, top_logprobs=3
    )
    entries = (whole.choices[0].logprobs or pytest.fail("no logprobs")).content or []
    prompt = server.parrot.requests[0].prompt
    assert [entry.bytes for entry in entries] == [
        list(server.codec.token_bytes(token)) for token in prompt[:12]
    ]
    assert all(entry.logprob == -0.5 for entry in entries)
    assert [top.logprob for top in entries[0].top_logprobs] == [-0.5, -1.0, -2.0]
    assert [top.token for top in entries[0].top_logprobs[1:]] == [
        server.codec.token_text(100),
        server.codec.token_text(101),
    ]
    streamed = [
        entry.token
        for chunk in client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=12, logprobs=True, stream=True
        )
        for entry in (chunk.choices[0].logprobs or pytest.fail("no logprobs")).content or []
    ]
    assert streamed == [entry.token for entry in entries]
    assert server.parrot.requests[1].sampling.logprobs == 0


def test_tools_that_may_not_be_used_are_harmless(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "fly", "parameters": {}}}
    client.chat.completions.create(
        model=MODEL,
        messages=[USER],
        max_tokens=1,
        tools=[tool],
        tool_choice="none",
        response_format={"type": "text"},
        user="Ann",
        metadata={"purpose": "test"},
        extra_body={"unheard_of": [1]},
    )


def test_models(client: openai.OpenAI, server: Running) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "splitwise")
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("smol/other")
