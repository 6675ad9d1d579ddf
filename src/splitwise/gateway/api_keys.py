"""Who may use the HTTP API: keys from a file or the environment, kept as digests only.

A line of the file is ``KEY [name=NAME] [min_priority=N]``. Keys are never logged and not even
held: an error names the file and the line, a dump of the process's objects shows SHA-256 digests.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

API_KEY_VARIABLE: Final = "SPLITWISE_API_KEY"
PRIORITIES: Final = range(-(2**63), 2**63)
USUAL_PRIORITY: Final = 0
_SCHEME: Final = b"bearer "
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SALT: Final = secrets.token_bytes(16)
"""So that the name of a key that has none says nothing of the key."""


class ApiKeyError(Exception):
    """The keys cannot be used; the message says where they are and what to do."""


class Tenant(msgspec.Struct, frozen=True):
    """Whose a key is. Keys of one name are one tenant's, who can so change from one to another."""

    name: str
    """The same for as long as the process runs, whatever keys come and go."""
    min_priority: int | None = None
    """The most urgent priority it may ask for; None: what the server allows."""


class ApiKeys:
    """Keys that are let in. Without any, everybody is."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """``keys`` are lines as of a file, known to be well-formed."""
        self._tenants = dict(_read_line(line) for line in keys)

    def become(self, others: "ApiKeys") -> None:
        """Let in whom ``others`` lets in, and nobody else, from now on."""
        self._tenants = others._tenants

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def find(self, authorization: bytes) -> Tenant | None:
        """Whose key an ``Authorization`` header carries, if it does.

        How long it takes says nothing of a key: what is looked up is a digest.
        """
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        return self._tenants.get(_digest(authorization[len(_SCHEME) :].strip()))


def read_api_keys(file: Path | None, environment: Mapping[str, str]) -> ApiKeys:
    """The keys in ``file`` (one a line, # comments) and in ``SPLITWISE_API_KEY`` (by commas).

    Raises:
        ApiKeyError: a place that should hold keys has none, or one that no header can carry.
    """
    lines: list[str] = []
    if API_KEY_VARIABLE in environment:
        lines += _checked(environment[API_KEY_VARIABLE].split(","), API_KEY_VARIABLE, "key")
    if file is not None:
        # Last, as what the file says of a key that is in both counts.
        lines += _lines_of_file(file)
    return ApiKeys(lines)


def _lines_of_file(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise ApiKeyError(f"cannot read the API keys in {file}: {reason}") from error
    entries = ["" if line.lstrip().startswith("#") else line for line in lines]
    return _checked(entries, str(file), "line")


def _checked(entries: list[str], source: str, unit: str) -> list[str]:
    lines = []
    for number, entry in enumerate(entries, 1):
        if not entry.strip():
            continue
        try:
            _read_line(entry)
        except ValueError as error:
            raise ApiKeyError(f"{source}, {unit} {number}: {error}") from None
        lines.append(entry)
    if not lines:
        # An empty place is a slip; to take it for "everybody may" would open the server.
        raise ApiKeyError(f"{source} holds no API key: put one there, or do not name it")
    return lines


def _read_line(line: str) -> tuple[bytes, Tenant]:
    """A key's digest, and whose it is.

    Raises:
        ValueError: it is no key that a header can carry, or what follows it is not as above. The
            message quotes none of it: whatever stands there may be part of a key.
    """
    key, *settings = line.split()
    if not all("!" <= char <= "~" for char in key):
        raise ValueError("a key is printable ASCII without spaces; change it")
    digest = _digest(key.encode("ascii"))
    name, least = "key " + _pseudonym(digest), None
    for setting in settings:
        kind, _, value = setting.partition("=")
        if kind == "name" and _NAME.fullmatch(value):
            name = f"name {value}"
        elif kind == "min_priority" and _is_priority(value):
            least = int(value)
        else:
            raise ValueError(
                "after a key, which has no spaces, may stand name=NAME (letters, digits, "
                "'.', '_', '-') and min_priority=N (an integer); change it"
            )
    return digest, Tenant(name, least)


def _is_priority(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,19}", text) is not None and int(text) in PRIORITIES


def _pseudonym(digest: bytes) -> str:
    return hashlib.blake2b(digest, key=_SALT, digest_size=6).hexdigest()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
