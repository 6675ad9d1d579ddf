"""Who may use the HTTP API: keys from a file or the environment, kept as digests only.

Keys are never logged and not even held: an error names the file and the line, a dump of the
process's objects shows SHA-256 digests.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

API_KEY_VARIABLE: Final = "SPLITWISE_API_KEY"
_SCHEME: Final = b"bearer "


class ApiKeyError(Exception):
    """The keys cannot be used; the message says where they are and what to do."""


class ApiKeys:
    """Keys that are let in. Without any, everybody is."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # A key that is given twice is one key.
        self._digests = list(dict.fromkeys(_digest(key.encode("ascii")) for key in keys))

    def become(self, others: "ApiKeys") -> None:
        """Let in whom ``others`` lets in, and nobody else, from now on."""
        self._digests = others._digests

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: bytes) -> bool:
        """Whether an ``Authorization`` header carries one of the keys."""
        return self.find(authorization) > 0

    def find(self, authorization: bytes) -> int:
        """Which of the keys, counted from 1, an ``Authorization`` header carries; 0 if none.

        It takes as long whichever key it is, and whether it is one at all.
        """
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return 0
        given = _digest(authorization[len(_SCHEME) :].strip())
        found = 0
        for number, known in enumerate(self._digests, 1):
            found |= number * hmac.compare_digest(known, given)
        return found


def read_api_keys(file: Path | None, environment: Mapping[str, str]) -> ApiKeys:
    """The keys in ``file`` (one a line, # comments) and in ``SPLITWISE_API_KEY`` (by commas).

    Raises:
        ApiKeyError: a place that should hold keys has none, or one that no header can carry.
    """
    keys: list[str] = []
    if file is not None:
        keys += _keys_of_file(file)
    if API_KEY_VARIABLE in environment:
        keys += _checked(environment[API_KEY_VARIABLE].split(","), API_KEY_VARIABLE, "key")
    return ApiKeys(keys)


def _keys_of_file(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise ApiKeyError(f"cannot read the API keys in {file}: {reason}") from error
    entries = ["" if line.lstrip().startswith("#") else line for line in lines]
    return _checked(entries, str(file), "line")


def _checked(entries: list[str], source: str, unit: str) -> list[str]:
    keys = []
    for number, entry in enumerate(entries, 1):
        key = entry.strip()
        if not all("!" <= char <= "~" for char in key):
            raise ApiKeyError(
                f"{source}, {unit} {number}: a key is printable ASCII without spaces; change it"
            )
        if key:
            keys.append(key)
    if not keys:
        # An empty place is a slip; to take it for "everybody may" would open the server.
        raise ApiKeyError(f"{source} holds no API key: put one there, or do not name it")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
