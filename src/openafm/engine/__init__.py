"""Decoding: the `Engine` interface, the `.afm` package format, and the torch engine that fills the interface today."""

from openafm.engine.package import Package, open_package
from openafm.engine.protocol import Engine
from openafm.engine.torch_engine import TorchEngine

__all__ = ["Engine", "Package", "TorchEngine", "open_package"]
