"""A machine for the transfer tests in a process of its own, spawned, to which calls go over a pipe
and from which events come back."""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfer_machines import Event, LocalMachine, Settings

from splitwise.transfer import Failed, ReceiverAddress
from waiting import WAIT_S, eventually


class RemoteMachine:
    """A machine in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        context = multiprocessing.get_context("spawn")
        self._calls, calls = context.Pipe()
        self._unanswered = 0
        self._events, events = context.Pipe(duplex=False)
        self.process = context.Process(target=_machine, args=(settings, calls, events), daemon=True)
        self.process.start()
        calls.close()
        events.close()
        self.address: ReceiverAddress = self._answer()

    def call(self, method: str, *args: Any) -> None:
        """``method`` is dotted: ``sender.begin``."""
        self.post(method, *args)
        self._settle()

    def post(self, method: str, *args: Any) -> None:
        """``call`` that does not wait; the next ``call`` does."""
        self._calls.send((method, args))
        self._unanswered += 1
        while self._unanswered and self._calls.poll(0):  # lest the pipe fill up
            self._unanswered -= 1
            self._answer()

    def event(self) -> Event:
        assert self._events.poll(WAIT_S), "no event"
        event: Event = self._events.recv()
        return event

    def _settle(self) -> None:
        while self._unanswered:
            self._unanswered -= 1
            self._answer()

    def no_event(self) -> bool:
        return not self._events.poll(0)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal_number)
        if signal_number == signal.SIGSTOP:  # its threads run on until each is told
            eventually(self._has_stopped)

    def _has_stopped(self) -> bool:
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        states = [(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads]
        return set(states) == {"T"}

    def close(self) -> None:
        self.kill(signal.SIGCONT)
        self._settle()
        self._calls.close()
        self.process.join(WAIT_S)
        assert self.process.exitcode == 0
        self._events.close()

    def reap(self) -> None:
        """After ``kill``."""
        self.process.join(WAIT_S)
        self._calls.close()
        self._events.close()

    def _answer(self) -> Any:
        assert self._calls.poll(WAIT_S), "the machine's process does not answer"
        answer = self._calls.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def begin_until_stopped(prompt: LocalMachine, token: RemoteMachine) -> None:
    """Begin a transfer ``t`` whose receiver stops once it was sent something of the first layer."""
    token.call("receiver.expect", "t", "prompt", [1])
    prompt.sender.begin("t", token.address, [1])
    prompt.sender.layer_ready(["t"], 0)
    eventually(lambda: prompt.sender._transfers["t"].puts > 0)
    token.kill(signal.SIGSTOP)


def check_both_ends_fail(prompt: LocalMachine, stopped: RemoteMachine, reason: str) -> None:
    """The prompt machine gives up for that ``reason``; the stopped one hears of it once it runs."""
    event = prompt.event()
    assert isinstance(event, Failed) and reason in event.reason
    stopped.kill(signal.SIGCONT)
    failed = stopped.event()
    assert isinstance(failed, Failed) and "link from prompt" in failed.reason
    stopped.close()


def _machine(
    settings: Settings,
    calls: multiprocessing.connection.Connection,
    events: multiprocessing.connection.Connection,
) -> None:
    machine = LocalMachine(settings, _reporter(events))
    calls.send(machine.address)
    while True:
        try:
            method, args = calls.recv()
        except EOFError:
            break
        part, _, name = method.partition(".")
        try:
            getattr(getattr(machine, part), name)(*args)
            calls.send(None)
        except ValueError as error:
            calls.send(error)
    machine.close()


def _reporter(events: multiprocessing.connection.Connection) -> Callable[[Event], None]:
    waiting: queue.Queue[Event] = queue.Queue()

    def report(event: Event) -> None:  # from two threads, which must not mix in the pipe
        waiting.put(event)
        with waiting.mutex:
            while waiting.queue:
                events.send(waiting.queue.popleft())

    return report
