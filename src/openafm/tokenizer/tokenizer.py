"""The two kinds of tokenizer behind one face: SentencePiece (trained here) and Hugging Face `tokenizers` (imported).

A tokenizer folder holds `tokenizer.model` or `tokenizer.json` and `tokenizer_config.json`; every model folder carries
the same files, so `load` takes either. Special tokens only ever come from `render_chat`, never from text.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from openafm.tokenizer.calls import CallForm, form_of
from openafm.tokenizer.chat import Message, compiled, render_chat

CONFIG = "tokenizer_config.json"
SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character


def _bytes() -> dict[str, int]:
    """The bytes that the letters of a byte-level vocabulary stand for (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _bytes()


def _whole(text: str) -> str:
    """The text, unless it holds half of a surrogate pair: UnicodeEncodeError (a ValueError), not a library's own."""
    if not text.isascii():
        text.encode()
    return text


class Tokenizer(Protocol):
    """What every stage may ask of a tokenizer."""

    vocab_size: int
    bos_id: int
    eos_id: int
    end_of_turn_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens of `text`: no bos or eos, and never a special token whatever the text says.

        Raises ValueError for half of a surrogate pair, which is no text.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; special tokens are left out, broken UTF-8 becomes U+FFFD."""

    def piece(self, token: int) -> bytes:
        """What one token adds to a text, maybe part of a character only; of a special token, its name."""

    def render_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Tokens of a conversation under the model's chat template; see `openafm.tokenizer.chat`."""

    def call_form(self) -> CallForm | None:
        """How the template writes calls of tools; None where it knows none."""


class _Special(ABC):
    """Special tokens and the chat template, read from `tokenizer_config.json`."""

    def __init__(self, config: dict[str, Any], special: dict[str, int], source: Path) -> None:
        for key in ("bos", "eos", "end_of_turn", "pad"):
            if config[key] not in special:
                raise ValueError(f"{source}: {key} is {config[key]!r}, which is not a special token of this tokenizer")
        self.bos_id, self.eos_id = special[config["bos"]], special[config["eos"]]
        self.end_of_turn_id, self.pad_id = special[config["end_of_turn"]], special[config["pad"]]
        self._special = special
        self._template = config["chat_template"]
        self._names = {"bos_token": config["bos"], "eos_token": config["eos"], "pad_token": config["pad"]}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """As `Tokenizer` has it."""

    def render_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Tokens of a conversation; contents cannot inject special tokens."""
        return render_chat(
            messages,
            add_generation_prompt,
            template=self._template,
            names=self._names,
            special=self._special,
            encode=self.encode,
            tools=tools,
        )

    def call_form(self) -> CallForm | None:
        """How the template writes calls of tools; None where it knows none."""
        template = compiled(self._template)
        return form_of(lambda **shown: template.render(**shown, **self._names), self._special)


class SentencePieceTokenizer(_Special):
    """A SentencePiece model with byte fallback: any text comes back exactly, U+2581 included."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        path = folder / "tokenizer.model"
        self._model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        self.vocab_size: int = self._model.vocab_size()
        control = [i for i in range(self.vocab_size) if self._model.is_control(i)]
        super().__init__(config, {self._model.id_to_piece(i): i for i in control}, path)
        # A literal U+2581 would come back as a space: it goes in as its three bytes, which decode to themselves.
        self._space_mark = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens of `text`."""
        first, *rest = _whole(text).split(SPACE_MARK)
        tokens: list[int] = self._model.encode(first)
        for part in rest:
            tokens += self._space_mark + self._model.encode(part)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special tokens left out."""
        text: str = self._model.decode([int(token) for token in tokens])
        return text

    def piece(self, token: int) -> bytes:
        """What one token adds to a text; of a special token, its name."""
        name: str = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(name[1:-1], 16)])
        return name.encode() if self._textless(token) else name.replace(SPACE_MARK, " ").encode()

    def pieces(self) -> list[bytes | None]:
        """The bytes that each token stands for; None for those that stand for no text."""
        return [None if self._textless(token) else self.piece(token) for token in range(self.vocab_size)]

    def _textless(self, token: int) -> bool:
        return bool(self._model.is_control(token) or self._model.is_unknown(token) or self._model.is_unused(token))


class HuggingFaceTokenizer(_Special):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library (byte-level BPE of an imported model)."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        path = folder / "tokenizer.json"
        self._model = tokenizers.Tokenizer.from_file(str(path))
        self._model.no_padding()
        self._model.no_truncation()
        self._model.encode_special_tokens = True  # special tokens in text are spelled out, not recognised
        self.vocab_size: int = self._model.get_vocab_size()
        added = self._model.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        super().__init__(config, {token.content: i for i, token in sorted(added.items()) if token.special}, path)

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens of `text`."""
        return self._model.encode(_whole(text), add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special tokens left out."""
        return self._model.decode([int(token) for token in tokens], skip_special_tokens=True)

    def piece(self, token: int) -> bytes:
        """What one token adds to a text; of a special token, its name."""
        if token in self._added:
            return self._added[token].encode()
        return bytes(BYTES[letter] for letter in self._model.id_to_token(token) or "")

    def json(self) -> str:
        """The text of `tokenizer.json`."""
        return str(self._model.to_str())


def load(folder: Path) -> Tokenizer:
    """Open the tokenizer in a tokenizer or model folder. Raises ValueError when it holds none that is known here."""
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} holds no {CONFIG}: give a tokenizer folder or a model folder")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("kind") == "sentencepiece":
        return SentencePieceTokenizer(folder, config)
    if config.get("kind") == "tokenizers":
        return HuggingFaceTokenizer(folder, config)
    raise ValueError(f'{path}: "kind" is {config.get("kind")!r}, known are "sentencepiece" and "tokenizers"')
