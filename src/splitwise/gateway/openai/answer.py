"""One answer in the making: tokens of one generation request become text, to its end.

A chunk's tokens pass the text stream, then the stop strings. Whatever ends first ends the answer:
a stop string (the rest of the chunk is dropped, and the cluster told to stop), or the chunk that
the cluster marks as the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from splitwise.engine.sampling import Sample
from splitwise.gateway.openai.protocol import TokenIds
from splitwise.gateway.openai.validation import OutputOptions
from splitwise.gateway.text.codec import TextCodec
from splitwise.gateway.text.stops import StopFinder
from splitwise.protocol.generation import Chunk, FinishReason

_NO_TOKEN = -1
_LEAST_LOGPROB = -9999.0
"""JSON has no infinity; vLLM's stand-in."""


@dataclass
class TokenLogprob:
    """A shown token, its natural log-probability, and the likeliest tokens at its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    text_offset: int


@dataclass
class Delta:
    """What one chunk adds to an answer."""

    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: TokenIds = msgspec.UNSET


class Answer:
    """The state of one answer; ``index`` is its place among the request's choices."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        options: OutputOptions,
        codec: TextCodec,
    ) -> None:
        self.index = index
        self.tokens = 0
        self.finish: FinishReason | None = None
        self.has_logprobs = options.logprobs is not None
        self._options = options
        self._text = codec.stream(options.skip_special_tokens, prompt)
        self._stops = StopFinder(options.stops) if options.stops is not None else None
        self._mark_of = options.stops.mark_of if options.stops is not None else {}
        self._decoded_chars = 0

    def take(self, chunk: Chunk) -> Delta:
        """Turn a chunk into text. Sets ``finish`` with the last one."""
        delta = Delta("", token_ids=[] if self._options.return_token_ids else msgspec.UNSET)
        parts: list[str] = []
        last = len(chunk.samples) - 1
        for place, sample in enumerate(chunk.samples):
            self.tokens += 1
            if delta.token_ids is not msgspec.UNSET:
                delta.token_ids.append(sample.token)
            if place == last and chunk.finish is FinishReason.STOP and self._hides(sample):
                parts.append(self._until_stop("", sample.token))
                break
            parts.append(self._take_sample(sample, delta))
            if self.finish is not None:
                break
        if chunk.finish is not None and self.finish is None:
            parts.append(self._flush())
            self.finish = self.finish or chunk.finish
        delta.text = "".join(parts)
        return delta

    def _take_sample(self, sample: Sample, delta: Delta) -> str:
        text = self._text.push(sample.token)
        if self._options.logprobs is not None:
            delta.logprobs.append(self._logprob(sample))
            self._decoded_chars += len(text)
        return self._until_stop(text, sample.token)

    def _until_stop(self, text: str, token: int = _NO_TOKEN) -> str:
        """What can be shown of ``text``, which ``token`` has made certain."""
        if self._stops is None:
            return text
        text = self._stops.push(text + self._mark_of.get(token, ""))
        if self._stops.found is not None:
            self.finish = FinishReason.STOP
        return text

    def _flush(self) -> str:
        """The text that was held back, which may still complete a stop string."""
        text = self._until_stop(self._text.flush())
        if self._stops is not None and self._stops.found is None:
            text += self._stops.flush()
        return text

    def _hides(self, sample: Sample) -> bool:
        """Whether it is the token that ended the output, which counts but is not shown."""
        return sample.token in self._options.stop_token_ids and not self._options.include_stop

    def _logprob(self, sample: Sample) -> TokenLogprob:
        logprob = 0.0 if sample.logprob is None else max(sample.logprob, _LEAST_LOGPROB)
        top = [(token, max(value, _LEAST_LOGPROB)) for token, value in sample.top or ()]
        return TokenLogprob(sample.token, logprob, top, self._decoded_chars)
