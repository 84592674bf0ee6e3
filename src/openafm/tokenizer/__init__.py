"""Text to tokens and back, and conversations to tokens: the one door to both kinds of tokenizer."""

from openafm.tokenizer.chat import Message
from openafm.tokenizer.tokenizer import Tokenizer, load

__all__ = ["Message", "Tokenizer", "load"]
