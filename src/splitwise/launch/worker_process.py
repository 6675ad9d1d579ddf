"""A worker's process on this host, with all that it starts itself and all that it says.

1. ``start_process``: the worker leads a process group of its own, so that Ctrl-C reaches its parent
   alone, and ends with its parent, whatever that dies of.
2. ``until_end`` passes both of its outputs on to standard error, line by line, for as long as it
   runs, and keeps the last line of each, or that of its reason to end: a worker that cannot start
   says why in its parent.
3. It ends by itself, by ``terminate`` or by ``kill``. Its group is killed then, and whoever still
   holds an output (a child in a group of its own) is waited for no longer than ``LAST_WORDS_S``.

What a worker says is never trusted to have lines, to be text, or to end: lines are cut, and who
says a lot has to wait.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from typing import Final

from splitwise.launch.lines import CHUNK_BYTES, Lines

log = logging.getLogger(__name__)

LAST_WORDS_S: Final = 1.0
PAUSE_S: Final = 0.01
"""After a whole chunk: one output takes no more than CHUNK_BYTES / PAUSE_S, 6.5 MB/s, of us."""
SHOWN_CHARACTERS: Final = 500
"""Of the line that is quoted when a worker has ended."""
REASON_PREFIX: Final = "splitwise: "
"""How the line begins in which our command says why it ends; libraries may complain after it."""
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Output:
    """One output of a process: a pipe, read line by line."""

    def __init__(
        self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport, write_fd: int
    ) -> None:
        self.write_fd = write_fd
        """The process's end; to be closed once it has it."""
        self.last_line = ""
        """The last that was said, or the last of our own reasons."""
        self._reader = reader
        self._transport = transport

    @classmethod
    async def open(cls) -> "Output":
        """
        Raises:
            OSError: this process has too many files open.
        """
        read_fd, write_fd = os.pipe()
        reader = asyncio.StreamReader(CHUNK_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", 0)
        )
        return cls(reader, transport, write_fd)

    async def pass_on(self) -> None:
        """Until everybody who could write to it is gone."""
        lines = Lines()
        try:
            while chunk := await self._reader.read(CHUNK_BYTES):
                self._show(lines.feed(chunk))
                if len(chunk) == CHUNK_BYTES:
                    await asyncio.sleep(PAUSE_S)
        finally:
            self._show(lines.rest())
            self.close()

    def close(self) -> None:
        self._transport.close()

    def _show(self, lines: list[str]) -> None:
        reasons = [line for line in lines if line.startswith(REASON_PREFIX)]
        if reasons or not self.last_line.startswith(REASON_PREFIX):
            self.last_line = next(filter(None, reversed(reasons or lines)), self.last_line)
        # Nobody may be there to read it any more: the process is to be read from all the same.
        with contextlib.suppress(OSError, ValueError):
            print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr, flush=True)


class WorkerProcess:
    """A worker that was started, and its outputs; ``start_process`` makes it."""

    def __init__(
        self, process: asyncio.subprocess.Process, said: Output, complained: Output
    ) -> None:
        self._process = process
        self._said = said
        self._complained = complained

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        """Ask the worker to end."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # It has, and we are not yet told.
                self._process.terminate()

    def kill(self) -> None:
        """End the worker at once, and what it has started; nothing where it has ended."""
        if self._process.returncode is None:
            self._kill_group()

    async def until_end(self) -> str:
        """Pass on what it says until it ends; returns how it ended with what last words."""
        relays = [asyncio.create_task(o.pass_on()) for o in (self._said, self._complained)]
        for relay in relays:
            relay.add_done_callback(self._tell_failure)
        try:
            code = await self._process.wait()
        finally:
            self._kill_group()
            await asyncio.wait(relays, timeout=LAST_WORDS_S)
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
        last_words = self._complained.last_line or self._said.last_line or "no output"
        return f"{_how(code)}: {last_words[:SHOWN_CHARACTERS]}"

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # All have ended.
            os.killpg(self.pid, signal.SIGKILL)

    def _tell_failure(self, relay: asyncio.Task[None]) -> None:
        if not relay.cancelled() and (error := relay.exception()) is not None:
            log.error("what worker %d says is lost from here on", self.pid, exc_info=error)


async def start_process(command: list[str], environment: dict[str, str]) -> WorkerProcess:
    """
    Raises:
        OSError, subprocess.SubprocessError: the host has no room for it, or no such program.
    """
    outputs: list[Output] = []
    try:
        outputs += [await Output.open()]
        outputs += [await Output.open()]
        said, complained = outputs
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said.write_fd,
            stderr=complained.write_fd,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    except BaseException:
        for output in outputs:
            output.close()
        raise
    finally:
        for output in outputs:
            os.close(output.write_fd)
    return WorkerProcess(process, said, complained)


def _how(code: int) -> str:
    names = {int(one): one.name for one in signal.Signals}  # but most of the real-time ones
    return f"signal {names.get(-code, -code)}" if code < 0 else f"exit code {code}"


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
