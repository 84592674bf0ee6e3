"""The decoder: its shape, its weights on disk, muParam, generation."""

from openafm.model.config import ModelConfig
from openafm.model.presets import PRESETS
from openafm.model.transformer import Cache, Transformer

__all__ = ["PRESETS", "Cache", "ModelConfig", "Transformer"]
