"""A generator that says its prompt back, so that tests know the answer from the question.

``Parrot`` fulfils ``Generator``: token ``i`` of the output is token ``i`` of the prompt, over and
over, until a stop token comes up or ``max_tokens`` are said.

A test sets how tokens come (``chunk_sizes``), holds them back (``hold``, ``release``), lets it
fail (``fail_after_tokens``, ``refuse_with``), and looks at what was asked and what was cancelled.
The server runs in another thread; ``wait_for`` is how a test waits for what happens there.
"""

import asyncio
import threading
from itertools import cycle, islice
from typing import Any

from splitwise.engine.sampling import Sample
from splitwise.protocol.generation import (
    Chunk,
    FinishReason,
    GenerationFailed,
    GenerationRequest,
)


class Parrot:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.reset()

    def reset(self) -> None:
        with self._changed:
            self.requests: list[GenerationRequest] = []
            self.streams: list[ParrotStream] = []
            self.chunk_sizes: list[int] = [1]
            self.fail_after_tokens: int | None = None
            self.refuse_with: Exception | None = None
            self.refuse_after_requests = 0
            self.held_after_tokens: int | None = None

    def submit(self, request: GenerationRequest) -> "ParrotStream":
        with self._changed:
            if self.refuse_with is not None and len(self.requests) >= self.refuse_after_requests:
                raise self.refuse_with
            stream = ParrotStream(self, request)
            self.requests.append(request)
            self.streams.append(stream)
            self._changed.notify_all()
            return stream

    def hold(self, after_tokens: int) -> None:
        """Every stream waits once it has said ``after_tokens`` tokens."""
        self.held_after_tokens = after_tokens

    def release(self) -> None:
        self.held_after_tokens = None
        for stream in self.streams:
            stream.wake()

    def note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, condition: Any, timeout_s: float = 10.0) -> None:
        """Wait until ``condition(parrot)`` holds."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout_s):
                raise AssertionError("the parrot did not get there in time")

    def cancelled(self) -> list[str]:
        return [stream.request.request_id for stream in self.streams if stream.cancels]


class ParrotStream:
    def __init__(self, parrot: Parrot, request: GenerationRequest) -> None:
        self.request = request
        self.cancels = 0
        self.said = 0
        self.readers = 0
        self.ended = False
        self._parrot = parrot
        self._sizes = cycle(parrot.chunk_sizes)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    async def next(self) -> Chunk:
        assert not self.ended, "next after the end"
        assert not self.readers, "two readers of one stream"
        self.readers += 1
        self._parrot.note()
        try:
            return await self._next()
        finally:
            self.readers -= 1

    async def _next(self) -> Chunk:
        size = next(self._sizes)
        await asyncio.sleep(0)
        while (held := self._parrot.held_after_tokens) is not None and self.said >= held:
            self._woken.clear()
            await self._woken.wait()
        chunk = Chunk([])
        while len(chunk.samples) < size and chunk.finish is None:
            if self.said == self._parrot.fail_after_tokens:
                self.ended = True
                raise GenerationFailed("the parrot fell off its perch")
            chunk.samples.append(self._say())
            chunk.finish = self._finish(chunk.samples[-1].token)
        self.ended = chunk.finish is not None
        self._parrot.note()
        return chunk

    def _say(self) -> Sample:
        prompt = self.request.prompt
        token = prompt[self.said % len(prompt)]
        self.said += 1
        asked = self.request.sampling.logprobs
        if asked is None:
            return Sample(token)
        others = [other for other in islice(range(100, 200), asked) if other != token]
        top = [(token, -0.5), *((other, -1.0 - place) for place, other in enumerate(others))]
        return Sample(token, -0.5, top[:asked])

    def _finish(self, token: int) -> FinishReason | None:
        if token in self.request.stop_token_ids:
            return FinishReason.STOP
        if self.said >= self.request.max_tokens:
            return FinishReason.LENGTH
        return None

    def cancel(self) -> None:
        self.cancels += 1
        self._parrot.note()

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)
