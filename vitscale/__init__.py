"""Exact, elastic pretraining and fine-tuning of Vision Transformers.

`from vitscale import build_model, load_pretrained` is the public door; importing it loads no torch until a name is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitscale.pretrained import build_model as build_model
    from vitscale.pretrained import load_pretrained as load_pretrained

__all__ = ["build_model", "load_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("vitscale")
    if name in __all__:
        from vitscale import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'vitscale' has no attribute {name!r}")
