"""Tokenizers in the manner of SentencePiece, made for tests."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def sentence_piece(kind: str) -> Tokenizer:
    """As Llama 2, Gemma or T5 would have it: pieces, bytes for what has none, and their decoder."""
    words = ["▁", "▁a", "a", "b", "▁Hello", "Hello", "▁world", "world", "!"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    scores = [(piece, 0.0) for piece in ("<unk>", "</s>")]
    scores += [(piece, -8.0 + len(piece)) for piece in words] + [(piece, -20.0) for piece in bytes_]
    tokenizer = Tokenizer(models.Unigram(scores, 0, byte_fallback=True))
    tokenizer.add_special_tokens(["</s>"])
    scheme = {"llama": "first", "gemma": "never", "t5": "always"}[kind]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fallback = [decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = {
        "llama": lambda: decoders.Sequence(
            [decoders.Replace("▁", " "), *fallback, decoders.Strip(" ", 1, 0)]
        ),
        "gemma": lambda: decoders.Sequence([decoders.Replace("▁", " "), *fallback]),
        "t5": lambda: decoders.Sequence([decoders.Metaspace(prepend_scheme="always"), *fallback]),
    }[kind]()
    return tokenizer


def bytes_of(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
