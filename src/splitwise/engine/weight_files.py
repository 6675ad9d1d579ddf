"""Whether a folder's weights are all there, by their files' headers alone.

Light: nothing but the first few kilobytes of each file is read, and no torch is needed. Whether the
tensors are those of the model is seen when it is loaded (``engine.torch.loading``).
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit
_NAMED = 5


def damage(folder: Path) -> str | None:
    """What is wrong with the weights of ``folder``, by file and tensor; None if nothing is.

    Files are looked for in the order in which transformers does.
    """
    for single, index in zip(_SINGLE, _INDEXED, strict=True):
        if (folder / single).is_file():
            return _file_damage(folder / single, set())
        if (folder / index).is_file():
            return _index_damage(folder / index)
    there = sorted(file.name for file in folder.iterdir() if _is_weights(file))
    found = f"; of weights it has only {some(there)}" if there else ""
    return f"there is none of {', '.join(_SINGLE + _INDEXED)}{found}"


def some(names: "list[str] | set[str]") -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more


def _index_damage(index: Path) -> str | None:
    try:
        tensors_of = _shards(json.loads(index.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return f"{index.name} cannot be read ({error})"
    missing = {name for name in tensors_of if not (index.parent / name).is_file()}
    if missing:
        return f"{index.name} names {some(missing)}, which is not there"
    for name, tensors in sorted(tensors_of.items()):
        if found := _file_damage(index.parent / name, tensors):
            return found
    return None


def _shards(index: Any) -> dict[str, set[str]]:
    """The tensors that each file must hold."""
    tensors_of: dict[str, set[str]] = defaultdict(set)
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise ValueError("it has no weight_map")
    for tensor, name in index["weight_map"].items():
        tensors_of[str(name)].add(tensor)
    if not tensors_of:
        raise ValueError("its weight_map is empty")
    return tensors_of


def _file_damage(file: Path, tensors: set[str]) -> str | None:
    if file.suffix != ".safetensors":
        return None  # pickled weights have no header; what they lack is seen when they are loaded
    try:
        header, data_from = _safetensors_header(file)
    except (OSError, ValueError) as error:
        return f"{file.name} is no whole safetensors file ({error})"
    header.pop("__metadata__", None)
    if absent := tensors - header.keys():
        return f"{file.name} lacks {some(absent)}, which the index says it has"
    try:
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"{file.name} is no whole safetensors file (a tensor without its place: {error!r})"
    size, whole = file.stat().st_size, data_from + end
    if size < whole:
        cut = {n for n, entry in header.items() if data_from + entry["data_offsets"][1] > size}
        return f"{file.name} has {size} bytes of {whole}; cut off are {some(cut)}"
    return None


def _safetensors_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins.

    Raises:
        ValueError: there is none.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= min(_LONGEST_HEADER_BYTES, file.stat().st_size - _LENGTH_BYTES):
            raise ValueError(f"{file.stat().st_size} bytes hold no header of {length}")
        header = json.loads(opened.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, _LENGTH_BYTES + length


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack")
