"""Fitting the device: palettization, bit allocation, packages, adapters (steps compress, recovery, summariser)."""

from openafm.compression.palettize import palettize
from openafm.engine.packed import Palettized

__all__ = ["Palettized", "palettize"]
