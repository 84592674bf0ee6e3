"""Decoding: the `Engine` interface, the `.afm` format, the native engine, and the torch engine it is held against."""

from openafm.engine.native_engine import NativeEngine
from openafm.engine.opening import open_engine
from openafm.engine.package import Package, open_package
from openafm.engine.protocol import Engine
from openafm.engine.torch_engine import TorchEngine

__all__ = ["Engine", "NativeEngine", "Package", "TorchEngine", "open_engine", "open_package"]
