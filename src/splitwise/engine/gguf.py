"""Turns a GGUF file into a Hugging Face folder, once.

Life cycle:
1. The folder's name in the cache is made of the file's name, its size and a hash of its content.
   If it is there and none of its weights are lost or cut short, that is all.
2. Else a file lock is taken, so that of several processes one converts and the others wait. The
   kernel drops the lock when its holder ends, however it ends.
3. What a killed conversion left behind is removed, and a folder that was damaged.
4. A child process (``gguf_conversion``, so that the caller never holds torch or the weights) writes
   into a folder named ``*.partial``, and the finished folder is renamed into place in one step.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from splitwise.engine.errors import ModelError
from splitwise.engine.weight_files import damage

CONVERT_TIMEOUT_S = 3600.0
_LOCK_POLL_S = 0.1
_HASHED_BYTES = 8 << 20
_WAY_OF_CONVERTING = b"2"
"""Another one, when what is converted otherwise must be converted again."""


def cache_folder() -> Path:
    """``$SPLITWISE_CACHE``, else ``splitwise/`` in the XDG cache folder."""
    if chosen := os.environ.get("SPLITWISE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitwise"


def converted_folder(source: Path) -> Path:
    """The folder with the weights (float32), tokenizer and configuration of a GGUF file.

    Raises:
        ModelError: the file cannot be converted; the message holds the last lines of the reason.
    """
    target = cache_folder() / "models" / _key(source)
    if _is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    message = f"Converting {source.name} (once; kept in {target.parent})"
    with _lock(target.with_name(target.name + ".lock")):
        if _is_whole(target):
            return target
        shutil.rmtree(target, ignore_errors=True)
        for leftover in target.parent.glob(f"{target.name}.*.partial"):
            shutil.rmtree(leftover)
        if console.is_terminal:
            with console.status(message):
                _convert_in_child(source, target)
        else:
            _convert_in_child(source, target)
    return target


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").is_file() and damage(folder) is None


def _key(source: Path) -> str:
    """Name, size, and a hash of the header (all the metadata) and of the last weights."""
    size_bytes = source.stat().st_size
    digest = hashlib.sha256(_WAY_OF_CONVERTING)
    with source.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(0, size_bytes - _HASHED_BYTES))
        digest.update(file.read())
    return f"{source.stem}-{size_bytes}-{digest.hexdigest()[:16]}"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, waiting for it at most ``CONVERT_TIMEOUT_S``."""
    deadline = time.monotonic() + CONVERT_TIMEOUT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ModelError(
                        f"another process has held {path} for {CONVERT_TIMEOUT_S:.0f} s; "
                        "end it or set SPLITWISE_CACHE to another folder"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        yield


def _convert_in_child(source: Path, target: Path) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    command = [sys.executable, "-m", "splitwise.engine.gguf_conversion", str(source), str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_TIMEOUT_S)
        if done.returncode != 0:
            reason = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise ModelError(
                f"{source} cannot be converted: {reason}\n"
                "Give a Hugging Face folder of the model instead, or another GGUF file."
            )
        partial.rename(target)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"converting {source} took longer than {CONVERT_TIMEOUT_S:.0f} s; "
            "give a Hugging Face folder of the model instead"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
