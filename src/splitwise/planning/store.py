"""What has been simulated already, by everything that it depends on.

An outcome is kept under a digest of its inputs and of the simulator's own source, so that
interrupted work goes on where it stopped, and a changed field simulates only what it touches. Many
processes may use one file.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Self

import msgspec

from splitwise.planning.errors import PlanningError
from splitwise.planning.outcome import Outcome
from splitwise.simulation.compiled import cache_home, digest_of

NO_CACHE: Final = "none"
_SOURCES: Final = (
    *("scheduling", "simulation", "workload", "hardware/iteration_times.py"),
    *("planning/demand.py", "planning/outcome.py", "planning/trial.py"),
)
"""What an outcome depends on beside its key."""
_TIMEOUT_S: Final = 60.0
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS outcomes (key BLOB PRIMARY KEY, source TEXT, value BLOB) "
    "WITHOUT ROWID"
)


@contextmanager
def store_path(name: str | None) -> Iterator[Path]:
    """The file that a user names; None: the usual one; ``none``: one that is gone afterwards."""
    if name == NO_CACHE:
        with TemporaryDirectory(prefix="splitwise-") as folder:
            yield Path(folder) / "outcomes.sqlite"
    else:
        yield Path(name) if name else cache_home() / "outcomes.sqlite"


class OutcomeStore:
    """A dictionary of outcomes in a file, or in memory with ``path`` None.

    Raises:
        PlanningError: the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._source = digest_of(*_SOURCES)
        try:
            self._open(path)
        except (OSError, sqlite3.Error) as error:
            raise PlanningError(f"cache {path}: {error}; name another file, or none") from error

    def _open(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # A writer says so before it reads, and there is no write-ahead log: to go to one, or to
        # leave one, may find the file locked at once, however long the timeout.
        self._connection = sqlite3.connect(
            path or ":memory:", timeout=_TIMEOUT_S, isolation_level="IMMEDIATE"
        )
        self._connection.execute("PRAGMA synchronous=NORMAL")
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(_TABLE)
            # Nobody asks again for what an older simulator said.
            self._connection.execute("DELETE FROM outcomes WHERE source != ?", (self._source,))

    def get(self, key: bytes) -> Outcome | None:
        """The outcome under ``key``, if it is known."""
        found = self._connection.execute(
            "SELECT value FROM outcomes WHERE key = ?", (key,)
        ).fetchone()
        return None if found is None else msgspec.msgpack.decode(found[0], type=Outcome)

    def put(self, key: bytes, outcome: Outcome) -> None:
        """Keep an outcome, at once."""
        row = (key, self._source, msgspec.msgpack.encode(outcome))
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", row)

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
