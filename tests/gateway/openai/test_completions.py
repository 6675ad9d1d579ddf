"""``/v1/completions`` through the official client, against a parrot."""

from collections import defaultdict

import openai
import pytest
from api_server import MODEL, Running

TEXT = "The quick brown fox 🦊 jumps over naïve café tables — twice! And then: END of it."


@pytest.fixture(params=[[1], [3, 1, 7]], ids=["one by one", "in chunks"])
def chunked(request: pytest.FixtureRequest, server: Running) -> None:
    server.parrot.chunk_sizes = request.param


def said(client: openai.OpenAI, prompt: object = TEXT, **settings: object) -> str:
    """The text of a streamed answer, which must be the text of the same one unstreamed."""
    whole = client.completions.create(model=MODEL, prompt=prompt, **settings)
    parts = []
    finish = None
    for chunk in client.completions.create(model=MODEL, prompt=prompt, stream=True, **settings):
        parts.append(chunk.choices[0].text)
        finish = finish or chunk.choices[0].finish_reason
    assert "".join(parts) == whole.choices[0].text
    assert finish == whole.choices[0].finish_reason
    return "".join(parts)


def count(server: Running, text: str) -> int:
    return len(server.codec._encode(text, True))


@pytest.mark.usefixtures("chunked")
def test_text_comes_back_whole(client: openai.OpenAI, server: Running) -> None:
    tokens = count(server, TEXT)
    assert said(client, max_tokens=tokens) == TEXT
    answer = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=tokens)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == tokens
    assert answer.usage.completion_tokens == tokens
    assert answer.usage.total_tokens == 2 * tokens


def test_an_incomplete_character_at_the_end(client: openai.OpenAI, server: Running) -> None:
    """As the tokenizer's full decode shows it."""
    tokens = server.codec._encode("🦊", True)
    assert len(tokens) > 1
    assert said(client, prompt="🦊", max_tokens=1) == "�"


def test_default_is_sixteen_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=TEXT)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("END", TEXT.split("END", maxsplit=1)[0]),
        (["zebra", " — twice"], TEXT.split(" — twice", maxsplit=1)[0]),
        ("ïve", TEXT.split("ïve", maxsplit=1)[0]),
        ("T", ""),
        ("zebra", TEXT),
        (["over the", "of it. no"], TEXT),
    ],
)
def test_stop_strings(
    client: openai.OpenAI, server: Running, stop: str | list[str], left: str
) -> None:
    tokens = count(server, TEXT)
    assert said(client, max_tokens=tokens, stop=stop) == left
    answer = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=tokens, stop=stop)
    assert answer.usage is not None
    if left == TEXT:
        assert answer.choices[0].finish_reason == "length"
        assert server.parrot.cancelled() == []
    else:
        assert answer.choices[0].finish_reason == "stop"
        assert len(server.parrot.cancelled()) == len(server.parrot.streams) == 3
        # The tokens up to the one that completes the stop string, none after it.
        found = next(s for s in ([stop] if isinstance(stop, str) else stop) if s in TEXT)
        texts = server.codec._encode(TEXT, True)
        until = next(
            n
            for n in range(1, tokens + 1)
            if found in server.codec._decode(texts[:n], skip_special_tokens=True)
        )
        assert answer.usage.completion_tokens == until


MARKED = "Yes. <|im_end|>\nNo.<|im_start|>user Why?"


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("<|im_end|>", "Yes. "),
        ([" <|im_end|>\n", "never"], "Yes."),
        ("No.<|im_start|>user", "Yes. \n"),
        (["<|im_start|>", "Why"], "Yes. \nNo."),
        ([" Yes", "user"], "Yes. \nNo."),
        ("im_end", "Yes. \nNo.user Why?"),  # part of a token that is not shown
        ("<|im_start|><|im_end|>", "Yes. \nNo.user Why?"),
    ],
)
def test_special_tokens_are_stop_strings_though_they_are_not_shown(
    client: openai.OpenAI, server: Running, stop: str | list[str], left: str
) -> None:
    settings = {"prompt": MARKED, "max_tokens": count(server, MARKED), "stop": stop}
    assert said(client, **settings, extra_body={"ignore_eos": True}) == left
    shown = {"ignore_eos": True, "skip_special_tokens": False}
    if stop == "<|im_end|>":
        assert said(client, **settings, extra_body=shown) == left
        kept = {"ignore_eos": True, "include_stop_str_in_output": True}
        assert said(client, **settings, extra_body=kept) == "Yes. <|im_end|>"


def test_a_stop_string_may_end_with_the_models_own_end(
    client: openai.OpenAI, server: Running
) -> None:
    """That ends the output anyhow; what stands before it in the stop string is taken away."""
    prompt = "Yes. Bye.<|im_end|>"
    tokens = count(server, prompt) + 5
    assert said(client, prompt=prompt, max_tokens=tokens) == "Yes. Bye."
    assert said(client, prompt=prompt, max_tokens=tokens, stop=" Bye.<|im_end|>") == "Yes."


def test_stop_string_can_be_kept(client: openai.OpenAI) -> None:
    extra = {"include_stop_str_in_output": True}
    assert said(client, max_tokens=99, stop="over", extra_body=extra).endswith(" jumps over")


@pytest.mark.usefixtures("chunked")
def test_end_of_text_is_counted_but_not_shown(client: openai.OpenAI, server: Running) -> None:
    prompt = "All said.<|im_end|>"
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=99)
    assert answer.usage is not None
    assert answer.choices[0].text == "All said."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == count(server, prompt)


def test_ignore_eos(client: openai.OpenAI, server: Running) -> None:
    prompt = "Go on.<|im_end|>"
    tokens = count(server, prompt)
    body = {"ignore_eos": True}
    assert said(client, prompt, max_tokens=2 * tokens, extra_body=body) == "Go on.Go on."
    body |= {"skip_special_tokens": False}
    assert said(client, prompt, max_tokens=tokens, extra_body=body) == prompt


def test_min_tokens_where_nothing_ends_earlier(client: openai.OpenAI, server: Running) -> None:
    """As load generators ask for an exact number of tokens."""
    prompt = "Go on.<|im_end|>"
    tokens = 2 * count(server, prompt)
    body = {"ignore_eos": True, "min_tokens": tokens}
    assert said(client, prompt, max_tokens=tokens, extra_body=body) == "Go on.Go on."
    assert said(client, prompt, max_tokens=tokens, extra_body={"min_tokens": 0}) == "Go on."


@pytest.mark.parametrize(
    "early_end",
    [
        {"ignore_eos": False},
        {"stop": "Go"},
        {"stop_token_ids": [5]},
        {"min_tokens": 9},
        {"min_tokens": -1},
    ],
)
def test_min_tokens_that_would_not_be_kept(
    client: openai.OpenAI, server: Running, early_end: dict[str, object]
) -> None:
    body: dict[str, object] = {"ignore_eos": True, "min_tokens": 8} | early_end
    with pytest.raises(openai.BadRequestError, match="min_tokens") as refused:
        client.completions.create(model=MODEL, prompt="Go on.", max_tokens=8, extra_body=body)
    assert refused.value.param == "min_tokens"
    assert server.parrot.requests == []


def test_stop_token_ids(client: openai.OpenAI, server: Running) -> None:
    tokens = server.codec._encode("one two three", True)
    body = {"stop_token_ids": [tokens[1]]}
    assert said(client, "one two three", max_tokens=9, extra_body=body) == "one"
    kept = body | {"include_stop_str_in_output": True}
    assert said(client, "one two three", max_tokens=9, extra_body=kept) == "one two"
    assert server.parrot.requests[-1].stop_token_ids == [*server.facts.stop_token_ids, tokens[1]]


def test_every_form_of_prompt(client: openai.OpenAI, server: Running) -> None:
    one, two = (server.codec._encode(text, True) for text in ("hello there", "good night"))
    for prompt in (["hello there", "good night"], [one, two]):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2, n=2)
        assert [choice.text for choice in answer.choices] == [
            "hello there",
            "hello there",
            "good night",
            "good night",
        ]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(one) + len(two)
        assert answer.usage.completion_tokens == 8
    assert client.completions.create(model=MODEL, prompt=one).choices[0].text.startswith("hello")


def test_choices_have_seeds_of_their_own(client: openai.OpenAI, server: Running) -> None:
    def seeds(**settings: int) -> list[int]:
        before = len(server.parrot.requests)
        client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=1, **settings)
        return [request.sampling.seed for request in server.parrot.requests[before:]]

    first = seeds(seed=7, n=3)
    assert first[0] == 7
    assert len(set(first)) == 3
    assert first[:3] == first[3:]  # a prompt's choices do not depend on its neighbours
    assert seeds(seed=7, n=3) == first
    assert seeds(seed=7) == [7, 7]
    assert seeds(seed=-1)[0] == 2**63 - 1
    drawn = {seeds()[0] for _ in range(4)}
    assert len(drawn) == 4
    ids = [request.request_id for request in server.parrot.requests]
    assert len(set(ids)) == len(ids)


@pytest.mark.usefixtures("chunked")
def test_streams_of_several_choices_are_merged_by_index(client: openai.OpenAI) -> None:
    texts: dict[int, str] = defaultdict(str)
    finishes: dict[int, str | None] = {}
    for chunk in client.completions.create(
        model=MODEL, prompt=["hello there", "good night"], n=2, max_tokens=2, stream=True
    ):
        (choice,) = chunk.choices
        assert choice.index not in finishes, "text after the end"
        texts[choice.index] += choice.text
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert texts == {0: "hello there", 1: "hello there", 2: "good night", 3: "good night"}
    assert finishes == dict.fromkeys(range(4), "length")


def test_sampling_settings_arrive(client: openai.OpenAI, server: Running) -> None:
    client.completions.create(
        model=MODEL,
        prompt="a",
        max_tokens=3,
        seed=5,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1},
    )
    (request,) = server.parrot.requests
    sampling = request.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_p) == (5, 0.5, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (40, 0.05, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.25, -0.5)
    assert sampling.logprobs is None
    assert request.max_tokens == 3


def test_nulls_mean_defaults(client: openai.OpenAI, server: Running) -> None:
    nulls = ["temperature", "top_p", "n", "stop", "seed", "logprobs", "max_tokens", "echo", "top_k"]
    client.completions.create(
        model=MODEL, prompt="a", extra_body=dict.fromkeys([*nulls, "logit_bias", "best_of"])
    )
    sampling = server.parrot.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)


@pytest.mark.usefixtures("chunked")
def test_usage_in_the_stream(client: openai.OpenAI, server: Running) -> None:
    prompt = "hello there"
    tokens = count(server, prompt)
    *events, last = client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert all(event.choices and event.usage is None for event in events)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (tokens, 4)

    counts = [
        event.usage.completion_tokens
        for event in client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=4,
            stream=True,
            extra_body={"stream_options": {"continuous_usage_stats": True}},
        )
        if event.usage
    ]
    assert counts == ([1, 2, 3, 4] if server.parrot.chunk_sizes == [1] else [3, 4])


@pytest.mark.usefixtures("chunked")
def test_logprobs(client: openai.OpenAI, server: Running) -> None:
    """The parrot's log-probabilities are -0.5 for its token, then -1, -2, ... for 100, 101, ..."""
    prompt = "€ is naïve"
    tokens = server.codec._encode(prompt, True)
    answer = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=len(tokens), logprobs=2
    )
    shown = answer.choices[0].logprobs
    assert shown is not None
    assert shown.token_logprobs == [-0.5] * len(tokens)
    texts = [server.codec.token_text(token) for token in tokens]
    assert shown.tokens == texts
    decoded = [len(server.codec._decode(tokens[:n], False).rstrip("�")) for n in range(len(tokens))]
    assert shown.text_offset == decoded
    other = server.codec.token_text(100)
    assert shown.top_logprobs == [{text: -0.5, other: -1.0} for text in texts]

    streamed = [
        chunk.choices[0].logprobs or pytest.fail("no logprobs")
        for chunk in client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=len(tokens), logprobs=0, stream=True
        )
    ]
    assert [token for part in streamed for token in part.tokens or []] == texts
    # The token that was chosen is always shown, also when no alternatives are asked for.
    tops = [top for part in streamed for top in part.top_logprobs or []]
    assert tops == [{text: -0.5} for text in texts]


def test_logprobs_leave_out_the_hidden_stop_token(client: openai.OpenAI, server: Running) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Said<|im_end|>", max_tokens=9, logprobs=1
    )
    shown = answer.choices[0].logprobs
    assert shown is not None and shown.tokens is not None
    assert "".join(shown.tokens) == "Said"


def test_metrics_count_what_was_said(client: openai.OpenAI, server: Running) -> None:
    def series() -> dict[str, float]:
        text = server.metrics.render().decode()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    before = series()
    client.completions.create(model=MODEL, prompt="hello there", max_tokens=5, n=2)
    after = series()
    changed = {
        name.removeprefix("splitwise:").replace(f'model_name="{MODEL}"', ""): after[name] - value
        for name, value in before.items()
        if after[name] != value
    }
    assert changed["prompt_tokens_total{}"] == 2 * count(server, "hello there")
    assert changed["generation_tokens_total{}"] == 10
    assert changed["time_to_first_token_seconds_count{}"] == 2
    assert changed["inter_token_latency_seconds_count{}"] == 8
    assert changed["e2e_request_latency_seconds_count{}"] == 2
    assert changed['request_success_total{finished_reason="length",}'] == 2
