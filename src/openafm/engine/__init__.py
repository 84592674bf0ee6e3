"""Decoding: the `Engine` interface, the `.afm` format, the native engine, and the torch engine it is held against."""

from typing import TYPE_CHECKING, Any

from openafm.engine.native_engine import NativeEngine
from openafm.engine.opening import open_engine
from openafm.engine.package import Package, open_package
from openafm.engine.protocol import Engine

if TYPE_CHECKING:
    from openafm.engine.torch_engine import TorchEngine

__all__ = ["Engine", "NativeEngine", "Package", "TorchEngine", "open_engine", "open_package"]


def __getattr__(name: str) -> Any:
    """Import the torch engine when it is asked for: the native one does without torch."""
    if name == "TorchEngine":
        from openafm.engine.torch_engine import TorchEngine

        return TorchEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
