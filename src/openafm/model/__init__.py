"""The decoder: its shape, its weights on disk, muParam, generation."""

from typing import TYPE_CHECKING, Any

from openafm.model.config import ModelConfig
from openafm.model.presets import PRESETS

if TYPE_CHECKING:
    from openafm.model.transformer import Cache, Transformer

__all__ = ["PRESETS", "Cache", "ModelConfig", "Transformer"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: the native engine decodes without."""
    if name in ("Cache", "Transformer"):
        from openafm.model import transformer

        return getattr(transformer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
