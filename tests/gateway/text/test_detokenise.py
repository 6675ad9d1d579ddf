"""Streams of text against the tokenizer's own full decode, and stop strings against a search."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_piece import bytes_of, sentence_piece
from tokenizers import Tokenizer, decoders, models

from splitwise.engine.model_files import resolve_model
from splitwise.gateway.text.codec import TextCodec
from splitwise.gateway.text.detokenise import TextStream

CODEC = TextCodec.load(resolve_model().path)
FULL = Tokenizer.from_file(str(resolve_model().path / "tokenizer.json"))
VOCABULARY = FULL.get_vocab_size()
BYTE_0 = 5


def llama_like() -> Tokenizer:
    """A SentencePiece-style tokenizer with byte fallback, as Llama 2 and Mistral have."""
    pieces = {"<unk>": 0, "</s>": 1, "▁a": 2, "b": 3, "▁": 4}
    pieces |= {f"<0x{byte:02X}>": BYTE_0 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(pieces, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.fixture(params=["llama", "gemma", "t5"], scope="module")
def style(request: pytest.FixtureRequest) -> Tokenizer:
    return sentence_piece(request.param)


LLAMA = llama_like()
LLAMA_CODEC = TextCodec(LLAMA)


def said(stream: TextStream, tokens: Iterable[int]) -> list[str]:
    return [*(stream.push(token) for token in tokens), stream.flush()]


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_text_survives_its_own_tokens(text: str) -> None:
    tokens = FULL.encode(text, add_special_tokens=False).ids
    assert "".join(said(CODEC.stream(), tokens)) == FULL.decode(tokens, skip_special_tokens=True)


@given(st.lists(st.integers(0, VOCABULARY + 100), max_size=40), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_tokens_give_the_full_decode(tokens: list[int], skip: bool) -> None:
    """Random tokens are full of broken characters; ids past the vocabulary decode to nothing."""
    parts = said(CODEC.stream(skip), tokens)
    assert "".join(parts) == FULL.decode(tokens, skip_special_tokens=skip)


TOKEN_OF_BYTE = {
    CODEC.token_bytes(token)[0]: token
    for token in range(VOCABULARY)
    if len(CODEC.token_bytes(token)) == 1
}


@given(st.lists(st.sampled_from(sorted(TOKEN_OF_BYTE)), max_size=30))
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_the_full_decode(data: list[int]) -> None:
    """Every token is one byte: each character is split at each of its bytes."""
    assert len(TOKEN_OF_BYTE) > 230  # the model never saw some lead bytes
    tokens = [TOKEN_OF_BYTE[byte] for byte in data]
    parts = said(CODEC.stream(), tokens)
    assert "".join(parts) == FULL.decode(tokens)
    assert "".join(parts) == bytes(data).decode("utf-8", "replace")


def test_a_character_comes_whole_with_its_last_byte() -> None:
    tokens = FULL.encode("🦜", add_special_tokens=False).ids
    assert len(tokens) > 1
    parts = said(CODEC.stream(), tokens)
    assert parts[len(tokens) - 1] == "🦜"
    assert parts.count("") == len(tokens)


def test_special_tokens_are_skipped_only_when_asked() -> None:
    end = FULL.token_to_id("<|im_end|>")
    hello = FULL.encode("hello").ids
    assert "".join(said(CODEC.stream(True), [*hello, end, *hello])) == "hellohello"
    assert "".join(said(CODEC.stream(False), [*hello, end])) == "hello<|im_end|>"


@given(
    st.lists(
        st.one_of(
            st.sampled_from([[1], [2], [3], [4]]),
            st.characters(exclude_categories=["Cs"]).map(
                lambda character: [BYTE_0 + byte for byte in character.encode()]
            ),
        ),
        max_size=20,
    )
)
@settings(max_examples=300, deadline=None)
def test_byte_fallback_gives_the_full_decode(groups: list[list[int]]) -> None:
    tokens = [token for group in groups for token in group]
    parts = said(LLAMA_CODEC.stream(), tokens)
    assert "".join(parts) == LLAMA.decode(tokens, skip_special_tokens=True)


def test_leading_space_is_stripped_only_at_the_beginning() -> None:
    assert said(LLAMA_CODEC.stream(), [2, 2, 3]) == ["a", " a", "b", ""]


def test_a_broken_byte_after_a_shown_character_does_not_end_the_stream() -> None:
    """The full decode turns the whole run into U+FFFD; what was shown stays, the rest goes on."""
    broken = [BYTE_0 + 0xC3, BYTE_0 + 0xA9, BYTE_0 + 0x82]
    assert "".join(said(LLAMA_CODEC.stream(), [*broken, 2, 2])) == "é� a a"
    assert "".join(said(LLAMA_CODEC.stream(), broken)) == "é�"


def test_bytes_of_tokens() -> None:
    euro = FULL.encode("€", add_special_tokens=False).ids
    assert b"".join(CODEC.token_bytes(token) for token in euro) == "€".encode()
    assert LLAMA_CODEC.token_bytes(BYTE_0 + 0xE2) == b"\xe2"
    assert LLAMA_CODEC.token_bytes(2) == b" a"
    assert LLAMA_CODEC.token_text(BYTE_0 + 0xE2) == "�"


def in_place(tokenizer: Tokenizer, prompt: list[int], output: list[int], skip: bool) -> str:
    """What a full decode of both adds to that of the prompt."""
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    both = tokenizer.decode(prompt + output, skip_special_tokens=skip)
    assert both.startswith(before)
    return both[len(before) :]


def test_a_completion_keeps_its_first_space(style: Tokenizer) -> None:
    codec = TextCodec(style)
    hello = style.encode("Hello", add_special_tokens=False).ids
    world = style.encode("Hello world!", add_special_tokens=False).ids[len(hello) :]
    assert len(world) > 1
    assert "".join(said(codec.stream(True, hello), world)) == " world!"
    # A chat's prompt ends with special tokens; what stands before them counts.
    special = [style.token_to_id("</s>")] * 3
    assert "".join(said(codec.stream(True, hello + special), world)) == " world!"
    # At the very beginning of a text there is nothing to keep a space from.
    first = style.encode("world", add_special_tokens=False).ids
    alone = style.decode(first)
    assert "".join(said(codec.stream(True, special), first)) == alone
    assert "".join(said(codec.stream(True), first)) == alone


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_an_output_goes_on_from_its_prompt(style: Tokenizer, data: st.DataObject) -> None:
    codec, skip = TextCodec(style), data.draw(st.booleans())
    pieces = st.one_of(
        st.sampled_from(["a", " a", "b", " ", "Hello", " world", "</s>", "!"]).map(
            lambda text: style.encode(text, add_special_tokens=False).ids
        ),
        st.characters(exclude_categories=["Cs"], min_codepoint=0x80).map(
            lambda character: style.encode(character, add_special_tokens=False).ids
        ),
    )
    prompt, output = (
        [token for ids in data.draw(st.lists(pieces, max_size=12)) for token in ids]
        for _ in range(2)
    )
    expected = in_place(style, prompt, output, skip)
    assert "".join(said(codec.stream(skip, prompt), output)) == expected


@pytest.mark.parametrize("character", ["é", "€", "🦜"])
def test_a_character_split_between_prompt_and_output_is_shown_whole(
    style: Tokenizer, character: str
) -> None:
    ids = bytes_of(style)
    data = character.encode()
    a = style.encode("a", add_special_tokens=False).ids
    for cut in range(1, len(data)):
        prompt = a + [ids[byte] for byte in data[:cut]]
        output = [ids[byte] for byte in data[cut:]] + a
        parts = said(TextCodec(style).stream(True, prompt), output)
        expected = style.decode(a + [ids[byte] for byte in data] + a)
        assert "".join(parts) == expected.removeprefix(style.decode(a))
        # One that the output does not finish is the prompt's own.
        parts = said(TextCodec(style).stream(True, prompt), [*a, *a])
        assert "".join(parts) == style.decode(a * 3).removeprefix(style.decode(a))
        assert said(TextCodec(style).stream(True, prompt), []) == [""]


def test_a_broken_byte_of_the_output_is_its_own(style: Tokenizer) -> None:
    ids = bytes_of(style)
    a = style.encode("a", add_special_tokens=False).ids
    prompt = [*a, ids[0xE2]]
    parts = said(TextCodec(style).stream(True, prompt), [ids[0xE2], *a])
    assert "".join(parts) == "\ufffd" + style.decode(a * 2).removeprefix(style.decode(a))
    prompt = [*a, ids[0xC3], ids[0xA9]]
    assert "".join(said(TextCodec(style).stream(True, prompt), [ids[0x82]])) == "\ufffd"


def test_byte_level_characters_may_be_split_too() -> None:
    parrot = [TOKEN_OF_BYTE[byte] for byte in "🦜".encode()]
    a = FULL.encode("a").ids
    for cut in range(1, 4):
        parts = said(CODEC.stream(True, a + parrot[:cut]), parrot[cut:] + a)
        assert "".join(parts) == "🦜a"
        assert "".join(said(CODEC.stream(True, parrot[:cut]), a)) == "a"
    # The first byte goes on, the next does not: what is broken is the output's, too.
    assert "".join(said(CODEC.stream(True, parrot[:1]), [parrot[1], *a])) == "\ufffda"


@given(st.lists(st.integers(0, VOCABULARY + 100), max_size=40), st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_whole_prompt_changes_nothing_of_a_byte_level_text(tokens: list[int], text: str) -> None:
    prompt = FULL.encode(text, add_special_tokens=False).ids
    assert said(CODEC.stream(True, prompt), tokens) == said(CODEC.stream(), tokens)
