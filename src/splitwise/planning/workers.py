"""Where simulations run: in this process, on all cores, or on a Ray cluster.

    crew.map(task, items)   ->   task(judge, item) for each, in order, anywhere

Every worker has its own ``Judge`` over the same store. Nothing is lost when the work is
interrupted: each outcome is stored as it is made.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

from splitwise.planning.errors import PlanningError
from splitwise.planning.question import Question
from splitwise.planning.store import OutcomeStore
from splitwise.planning.trial import Judge

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Task = Callable[[Judge, Item], Answer]
Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and how much there is."""


class Mapper(Protocol):
    """Runs a function on many items, and gives the answers in the items' order."""

    def __call__(
        self, function: Callable[[Item], Answer], items: Sequence[Item], /
    ) -> Iterator[Answer]: ...


class Crew:
    """Works on questions, with a store and a way to run many tasks."""

    def __init__(
        self, mapper: Mapper, store: Path | None, progress: Progress | None = None
    ) -> None:
        self._mapper = mapper
        OutcomeStore(store).close()  # made, or refused, before many processes open it at once
        self._store = store
        self._progress = progress or (lambda what, done, total: None)

    def map(
        self, what: str, question: Question, task: Task[Item, Answer], items: Sequence[Item]
    ) -> list[Answer]:
        """``task`` for each item; ``what`` names the work to whoever watches."""
        return self.map_each(what, task, [(question, item) for item in items])

    def map_each(
        self, what: str, task: Task[Item, Answer], items: Sequence[tuple[Question, Item]]
    ) -> list[Answer]:
        """The same with a question for each item."""
        answers: list[Answer] = []
        self._progress(what, 0, len(items))
        for answer in self._mapper(partial(_run, self._store, task), items):
            answers.append(answer)
            self._progress(what, len(answers), len(items))
        return answers


def _run(store: Path | None, task: Task[Item, Answer], asked: tuple[Question, Item]) -> Answer:
    question, item = asked
    with OutcomeStore(store) as outcomes:
        return task(Judge(question, outcomes), item)


def here(function: Callable[[Item], Answer], items: Sequence[Item], /) -> Iterator[Answer]:
    """One after the other, in this process."""
    return map(function, items)


@contextmanager
def on_cores(count: int) -> Iterator[Mapper]:
    """``count`` processes of this machine; they end at once when the block is left."""
    context = get_context("spawn")
    with context.Pool(count, initializer=_leave_interrupts_to_parent) as pool:

        def mapper(
            function: Callable[[Item], Answer], items: Sequence[Item], /
        ) -> Iterator[Answer]:
            return pool.imap(function, items)

        yield mapper


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def on_ray(address: str) -> Iterator[Mapper]:
    """The workers of a Ray cluster; ``local`` starts one on this machine.

    Raises:
        PlanningError: Ray is not installed, or does not answer there.
    """
    try:
        ray = import_module("ray")
    except ImportError as missing:
        raise PlanningError("ray: not installed; pip install 'splitwise-llm[ray]'") from missing
    found = None if address == "local" else address
    try:
        ray.init(address=found, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as lost:
        raise PlanningError(f"ray is {address!r}: {lost}") from lost

    def mapper(function: Callable[[Item], Answer], items: Sequence[Item], /) -> Iterator[Answer]:
        remote = ray.remote(_call)
        shared = ray.put(function)
        for answer in [remote.remote(shared, item) for item in items]:
            try:
                yield ray.get(answer)
            except ray.exceptions.RayTaskError as failed:
                raise failed.cause from None  # as itself, not as Ray's account of where it was

    try:
        yield mapper
    finally:
        ray.shutdown()


def _call(function: Callable[[Item], Answer], item: Item) -> Answer:
    return function(item)


@contextmanager
def _only(mapper: Mapper) -> Iterator[Mapper]:
    yield mapper


def open_mapper(cores: int, ray: str | None) -> AbstractContextManager[Mapper]:
    """Ray where an address is given, else as many processes as ``cores``; one core: none."""
    if ray is not None:
        return on_ray(ray)
    return on_cores(cores) if cores > 1 else _only(here)
