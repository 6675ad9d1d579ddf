"""What the core install lacks: a command that needs an extra names it instead of a traceback."""

from typing import Any, Final

import typer
from typer.core import TyperGroup

from splitwise.cli.errors import fail

EXTRA_OF: Final = {
    "torch": "engine",
    "transformers": "engine",
    "tokenizers": "engine",
    "huggingface_hub": "engine",
    "safetensors": "engine",
    "accelerate": "engine",
    "gguf": "engine",
    "uvicorn": "serve",
    "uvloop": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "jinja2": "serve",
    "yaml": "serve",
    "matplotlib": "report",
    "pyarrow": "report",
    "ray": "ray",
    "vllm": "vllm",
    "nixl": "nixl",
    "aiconfigurator_core": "predict",
}
"""By module, the extra of the distribution that brings it."""
_OF_SERVING: Final = ("serve", "worker")
"""Commands that need more than the engine, which comes with ``serve`` too."""


class Commands(TyperGroup):
    """The subcommands. One that cannot import an extra's module ends with code 1 and its name."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except ImportError as missing:
            module = (missing.name or "").split(".")[0]
            if module not in EXTRA_OF:
                raise
            command = ctx.invoked_subcommand or ""
            extra = EXTRA_OF[module]
            if extra == "engine" and command in _OF_SERVING:
                extra = "serve"
            fail(f"{command} needs {module} ({missing}); pip install 'splitwise-llm[{extra}]'")
