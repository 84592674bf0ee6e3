"""Which engine decodes a model: the native one where it is built and can, else torch, said on standard error."""

import os
import sys
from pathlib import Path
from typing import Any

from openafm.engine.native_engine import NativeEngine, missing, unfit
from openafm.engine.package import Package, find_package
from openafm.engine.protocol import Engine
from openafm.engine.speculation import LOOK_UP
from openafm.model.config import load_config

CHOICE = "OPENAFM_ENGINE"
"""Environment variable: `native` (an error where it cannot), `torch`, or unset for the better of the two."""
DRAFT = "OPENAFM_DRAFT"
"""Environment variable: `lookup`, or the folder of a smaller model with the same tokenizer; unset, plain decoding."""


def open_engine(folder: Path, choice: str | None = None) -> Engine:
    """Open a package or model folder, by `choice` or the environment's.

    Raises ValueError where it is damaged, or the engine asked for cannot run it.
    """
    if choice is None:
        choice = os.environ.get(CHOICE, "")
    if choice not in ("", "native", "torch"):
        raise ValueError(f"{CHOICE}={choice}: use native or torch")
    found = find_package(folder)
    package = None if found is None else Package(found, verify=False)
    reason = "OPENAFM_ENGINE=torch" if choice == "torch" else missing() or _unfit(folder, package)
    if reason is None:
        options = {"draft": _draft(os.environ.get(DRAFT))}
        return NativeEngine.load(folder, **options) if package is None else NativeEngine.open(package, **options)
    if choice == "native":
        raise ValueError(f"{folder} cannot be run by the native engine: {reason}")
    print(f"torch decodes, several times slower: {reason}", file=sys.stderr)
    from openafm.engine.torch_engine import TorchEngine

    return TorchEngine.load(folder) if package is None else TorchEngine.open(package)


def _draft(named: str | None) -> Any:
    """What proposes tokens: nothing, look-up by its name, or the model in a folder."""
    if not named or named == LOOK_UP:
        return named or None
    if not Path(named).is_dir():
        raise ValueError(f"{DRAFT}={named}: use {LOOK_UP}, or the folder of a small model with the same tokenizer")
    return NativeEngine.load(Path(named))


def _unfit(folder: Path, package: Package | None) -> str | None:
    if package is None:
        return unfit(load_config(folder), {})
    store = package.adapters
    return unfit(package.config, {name: int(store.card(name)["rank"]) for name in store.names()})
