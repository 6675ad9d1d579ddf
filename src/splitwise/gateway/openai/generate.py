"""Running a validated request on the cluster, from submission to the last byte.

1. A ``Job`` says what to generate and how to show it (``chat`` and ``completions`` make it).
2. ``Runner`` starts its generation requests and guarantees that each is stopped, counted and freed,
   however it ends.
3. ``_deltas`` merges their chunks as they come; ``Answer`` makes text of them.
4. ``_stream`` sends an event a chunk; ``_collect`` one body at the end.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import msgspec

from splitwise.gateway.http.exchange import Reply
from splitwise.gateway.openai.answer import Answer, Delta
from splitwise.gateway.openai.protocol import StreamOptions, TokenIds, Usage
from splitwise.gateway.openai.rendering import DONE, Renderer
from splitwise.gateway.openai.validation import OutputOptions
from splitwise.gateway.pace import Pace, Turns
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics
from splitwise.protocol.generation import (
    Chunk,
    GenerationRequest,
    Generator,
    TokenStream,
)

SAMPLES_AT_ONCE: Final = 256
"""Of a chunk: a client that reads slowly finds thousands, and to make text of them takes long."""
LOGPROBS_AT_ONCE: Final = 32
"""The same where each comes with its alternatives."""


@dataclass(frozen=True)
class Job:
    """A request to the API, ready to run. ``requests`` are its choices, in order."""

    requests: list[GenerationRequest]
    prompt_tokens: int
    output: OutputOptions
    renderer: Renderer
    streams: bool
    stream_options: StreamOptions

    def usage(self, answers: list["Running"]) -> Usage:
        """Each prompt counts once, whatever ``n`` is."""
        completion = sum(running.answer.tokens for running in answers)
        return Usage(self.prompt_tokens, self.prompt_tokens + completion, completion)


class Running:
    """An answer with the stream that it is made of, and the times its tokens come."""

    def __init__(
        self, answer: Answer, stream: TokenStream, metrics: Metrics, arrived_s: float
    ) -> None:
        self.answer = answer
        self._stream: TokenStream | None = stream
        """None once it has ended: a hundred long histories take long to free in one go."""
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._last_s = 0.0
        self._at_once = LOGPROBS_AT_ONCE if answer.has_logprobs else SAMPLES_AT_ONCE

    async def next(self) -> Chunk:
        """Wait for the next chunk."""
        assert self._stream is not None
        return await self._stream.next()

    def take(self, chunk: Chunk) -> Iterator[Delta]:
        """What it adds to the answer; a long chunk in pieces."""
        for piece in _pieces(chunk, self._at_once):
            yield self._take(piece)
            if self.answer.finish is not None:
                self._end(is_over=chunk.finish is not None)
                return

    def _take(self, chunk: Chunk) -> Delta:
        before = self.answer.tokens
        delta = self.answer.take(chunk)
        now_s = time.perf_counter()
        if count := self.answer.tokens - before:
            if before:
                self._metrics.tokens(count, now_s - self._last_s)
            else:
                self._metrics.first_token(now_s - self._arrived_s, count)
            self._last_s = now_s
        return delta

    def _end(self, is_over: bool) -> None:
        """Free what still runs of it, unless all of it ``is_over``."""
        if self._stream is not None and not is_over:
            self._stream.cancel()
        self._stream = None

    def close(self, reason_if_unfinished: str) -> None:
        """Free what still runs, and count how it ended."""
        self._end(is_over=self.answer.finish is not None)
        reason = self.answer.finish or reason_if_unfinished
        self._metrics.finished(reason, time.perf_counter() - self._arrived_s)


class Runner:
    """Runs jobs on the cluster."""

    def __init__(
        self, generator: Generator, codec: TextCodec, metrics: Metrics, turns: Turns
    ) -> None:
        self._generator = generator
        self._codec = codec
        self._metrics = metrics
        self._turns = turns

    async def run(self, job: Job, reply: Reply, arrived_s: float) -> None:
        """Generate and send everything.

        Raises:
            Overloaded, Unavailable, GenerationFailed: the cluster gave up. If ``reply.started``
                is set then part of the answer is out.
        """
        pace = self._turns.pace()
        answers: list[Running] = []
        reason = "abort"  # of a task that is cancelled: the client left, or the server stops
        try:
            for request in job.requests:
                if answers:
                    await pace.rest()
                answers.append(self._submit(job, request, len(answers), arrived_s))
            if job.streams:
                await _stream(job, answers, reply, pace)
            else:
                await _collect(job, answers, reply, pace)
        except Exception:
            reason = "error"
            raise
        finally:
            for running in answers:
                running.close(reason)

    def _submit(
        self, job: Job, request: GenerationRequest, index: int, arrived_s: float
    ) -> Running:
        stream = self._generator.submit(request)
        answer = Answer(index, request.prompt, job.output, self._codec)
        self._metrics.admitted(len(request.prompt))
        return Running(answer, stream, self._metrics, arrived_s)


def _pieces(chunk: Chunk, at_most: int) -> Sequence[Chunk]:
    """The chunk in pieces of so many samples."""
    samples = chunk.samples
    if len(samples) <= at_most:
        return (chunk,)
    pieces = [Chunk(samples[i : i + at_most], None) for i in range(0, len(samples), at_most)]
    pieces[-1] = Chunk(pieces[-1].samples, chunk.finish)
    return pieces


async def _stream(job: Job, answers: list[Running], reply: Reply, pace: Pace) -> None:
    each = job.stream_options.continuous_usage_stats
    async with aclosing(_deltas(answers, pace)) as deltas:
        async for running, delta in deltas:
            usage = job.usage(answers) if each else None
            await reply.events(job.renderer.event(running.answer, delta, usage))
    end = DONE
    if job.stream_options.include_usage:
        end = job.renderer.usage_event(job.usage(answers)) + DONE
    await reply.events(end)
    await reply.end()


async def _collect(job: Job, answers: list[Running], reply: Reply, pace: Pace) -> None:
    parts: list[list[Delta]] = [[] for _ in answers]
    async with aclosing(_deltas(answers, pace)) as deltas:
        async for running, delta in deltas:
            parts[running.answer.index].append(delta)
    pace.begin()
    whole = [
        (running.answer, _joined(deltas)) for running, deltas in zip(answers, parts, strict=True)
    ]
    await reply.body(200, await job.renderer.whole(whole, job.usage(answers), pace))


def _joined(deltas: list[Delta]) -> Delta:
    return Delta(
        "".join(delta.text for delta in deltas),
        [entry for delta in deltas for entry in delta.logprobs],
        _joined_ids(deltas),
    )


def _joined_ids(deltas: list[Delta]) -> TokenIds:
    known = [delta.token_ids for delta in deltas if delta.token_ids is not msgspec.UNSET]
    return [token for ids in known for token in ids] if known else msgspec.UNSET


async def _deltas(
    answers: list[Running], pace: Pace
) -> AsyncGenerator[tuple[Running, Delta], None]:
    """Every answer's deltas as they come. A single answer needs no task of its own."""
    if len(answers) == 1:
        running = answers[0]
        while running.answer.finish is None:
            chunk = await running.next()
            for place, delta in enumerate(running.take(chunk)):
                if place:
                    await pace.rest()
                yield running, delta
        return
    waiting = {asyncio.create_task(running.next()): running for running in answers}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            pace.begin()
            for task in done:
                running = waiting.pop(task)
                for delta in running.take(task.result()):
                    yield running, delta
                    await pace.rest()
                if running.answer.finish is None:
                    waiting[asyncio.create_task(running.next())] = running
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
