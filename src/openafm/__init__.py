"""OpenAFM: the open, end-to-end factory for on-device language models."""

__version__ = "0.1.0"
