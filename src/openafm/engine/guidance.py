"""Guided generation: an answer that a JSON schema, a regular expression or a grammar allows, and no other.

The library llguidance turns a grammar into the set of tokens that may come next; the native sampler draws among them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from openafm.tokenizer import Tokenizer
from openafm.tokenizer.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer

BLANKS = "[ \\n]{0,8}"
"""Between the parts of a JSON text: a model that likes blanks must come to an end."""
WHOLE, FRACTION = 10**15, 1e-10
"""So must one that likes digits: where a schema has no bounds, numbers lie within +-WHOLE, to ten decimals."""
_INWARDS = {
    "minimum": ROUND_CEILING,
    "exclusiveMaximum": ROUND_CEILING,
    "maximum": ROUND_FLOOR,
    "exclusiveMinimum": ROUND_FLOOR,
}
_ONE, _LIST, _NAMED = (
    ("items", "additionalProperties"),
    ("anyOf", "oneOf", "allOf", "prefixItems"),
    ("properties", "patternProperties", "$defs", "definitions"),
)
"""Where a schema holds others: one, a list of them, some by name."""


@contextmanager
def _no_panics() -> Iterator[None]:
    """A panic of Rust is no `Exception` and would end the engine's thread: it is this grammar's error."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which no module exports
            raise
        raise ValueError(f"llguidance failed on this grammar: {error}") from None


def ending(schema: Mapping[str, Any]) -> str:
    """Return a schema as JSON whose numbers come to an end; what fits it fits the one given.

    Raises ValueError for one that is nested too deeply.
    """
    try:
        return json.dumps(_ending(schema))
    except RecursionError:
        raise ValueError("this JSON schema is nested too deeply: make it flatter") from None


def _ending(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    made |= {key: _ending(made[key]) for key in _ONE if key in made}
    made |= {key: [_ending(one) for one in made[key]] for key in _LIST if isinstance(made.get(key), list)}
    for key in _NAMED:
        if isinstance(made.get(key), Mapping):
            made[key] = {name: _ending(one) for name, one in made[key].items()}
    return made | _digits(made)


def _digits(schema: Mapping[str, Any]) -> dict[str, float]:
    """What bounds the digits of a number that a schema leaves without an end, and leaves some."""
    types = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
    if not ("number" in types or "integer" in types) or schema.keys() & {
        "enum",
        "const",
        "multipleOf",
        "allOf",
        "$ref",
    }:
        return {}
    low, high = (schema.get(end, schema.get(f"exclusive{end.capitalize()}")) for end in ("minimum", "maximum"))
    if not all(bound is None or type(bound) in (int, float) for bound in (low, high)):
        return {}  # it is no schema, which llguidance tells
    more: dict[str, float] = {}
    if low is None and (high is None or high > -WHOLE):
        low = more["minimum"] = -WHOLE
    if high is None and low is not None and low < WHOLE:
        high = more["maximum"] = WHOLE
    if "number" in types and low is not None and high is not None and high - low > 1e4 * FRACTION:
        more["multipleOf"] = FRACTION
        bounds = {end: schema[end] for end in _INWARDS if type(schema.get(end)) in (int, float)}
        more |= {end: _inwards(bound, _INWARDS[end]) for end, bound in bounds.items()}
    return more


def _inwards(bound: float, rounding: str) -> float:
    """The outermost number of so many decimals that a bound lets through; llguidance would take the nearest."""
    if abs(bound) >= WHOLE:  # a float there has no decimals
        return bound
    return float(Decimal(repr(bound)).quantize(Decimal(str(FRACTION)), rounding))


@_no_panics()
def json_schema(schema: Mapping[str, Any]) -> str:
    """Return the grammar of the JSON texts that fit a schema. Raises ValueError for what is no schema."""
    made: str = LLMatcher.grammar_from_json_schema(ending(schema), overrides={"whitespace_pattern": BLANKS})
    return _checked(made, "JSON schema")


def regex(pattern: str) -> str:
    """Return the grammar of the texts that a regular expression matches whole."""
    return _checked(LLMatcher.grammar_from_regex(pattern), "regular expression")


def lark(grammar: str) -> str:
    """Return a context-free grammar in the notation of Lark (llguidance's dialect)."""
    return _checked(LLMatcher.grammar_from_lark(grammar), "grammar")


@_no_panics()
def _checked(grammar: str, kind: str) -> str:
    if error := LLMatcher.validate_grammar(grammar):
        raise ValueError(f"this {kind} cannot guide an answer: {error}")
    return grammar


class _Pieces:
    """A SentencePiece vocabulary as llguidance asks for it."""

    def __init__(self, tokenizer: SentencePieceTokenizer):
        pieces = tokenizer.pieces()
        self.tokens = [piece or b"" for piece in pieces]
        self.special_token_ids = [i for i, piece in enumerate(pieces) if piece is None]
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


def vocabulary(tokenizer: Tokenizer, size: int) -> LLTokenizer:
    """Bytes of each of the model's `size` tokens, for looking up; takes up to a second, so an engine makes it once."""
    stop = sorted({tokenizer.eos_id, tokenizer.end_of_turn_id})
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return LLTokenizer(tokenizer.json(), n_vocab=size, eos_token=stop)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return LLTokenizer(TokenizerWrapper(_Pieces(tokenizer)), n_vocab=size, eos_token=stop)


class UnguidableError(ValueError):
    """A grammar that is well-formed and yet more than llguidance follows, as one ambiguous without end."""


class Guide:
    """One answer's place in its grammar."""

    @_no_panics()
    def __init__(self, vocabulary: LLTokenizer, grammar: str):
        """Begin; `grammar` is one of `json_schema`, `regex` and `lark`."""
        self._matcher = LLMatcher(vocabulary, grammar)
        self._size = vocabulary.vocab_size
        self._taken: list[int] = []
        self._check()

    @_no_panics()
    def allowed(self, proposed: Sequence[int]) -> int:
        """How many of the proposed tokens the grammar allows, up to the first that it does not."""
        self._follow()
        return int(self._matcher.validate_tokens(list(proposed)))

    @_no_panics()
    def masks(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        """Bits `(proposed + 1, ceil(vocab / 32))` of what may come next, and after each of the tokens, all allowed."""
        self._follow()
        bits = allocate_token_bitmask(len(proposed) + 1, self._size)
        fill_next_token_bitmask(self._matcher, bits, 0)
        for i, token in enumerate(proposed, 1):
            self._matcher.consume_token(token)
            fill_next_token_bitmask(self._matcher, bits, i)
        if proposed:
            self._matcher.rollback(len(proposed))
        self._check()
        return bits.view(np.uint32)

    def take(self, tokens: Sequence[int]) -> None:
        """Go on to after these tokens, when it is asked next: whoever asks has the time."""
        self._taken += tokens

    def _follow(self) -> None:
        if self._taken:
            self._matcher.consume_tokens(self._taken)
            self._taken = []
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0][:200]  # the grammar comes behind it
            raise UnguidableError(f"the answer cannot be guided: {reason}")
