"""Whether two answers say the same: numbers, fractions, lists and algebra, without ever evaluating hostile text.

Numbers and words are decided without sympy. Algebra is read through Python's `ast` against a short white list (so no
name is looked up and no code runs), with bounds on size and powers, and compared at random points to 30 digits.
"""

import ast
import random
import re
from fractions import Fraction

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+(?:[eE][-+]?\d{1,2})?(?:\s*/\s*\d+)?")
_FRACTION = re.compile(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}")
_MARKED = re.compile(r"(?:####|\b[Aa]nswer\s*(?:is\b\s*:?|:))\s*(.+)")
_FUNCTIONS = ("sqrt", "sin", "cos", "tan", "exp", "log")
_MOST_CHARACTERS, _MOST_NODES, _HIGHEST_POWER = 200, 60, 64


def final(text: str) -> str:
    r"""Return the part of a response that answers: what stands in \boxed{}, after "####" or "answer is", else all."""
    boxed: list[str] = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if boxed:
        return boxed[-1].strip()
    marked = _MARKED.findall(text)
    return (marked[-1] if marked else text).strip().rstrip(".").strip()


def numbers(text: str) -> list[Fraction]:
    """Return every number in a text, in order; a hyphen counts as a sign only where no word or digit precedes it."""
    found = (number(part.group()) for part in re.finditer(rf"(?<![\w.]){_NUMBER.pattern}", text))
    return [value for value in found if value is not None]


def number(text: str) -> Fraction | None:
    """Return the exact value of a lone number such as `-3`, `1,200`, `0.5`, `3/4` or `25%`; None for anything else."""
    text = text.strip().strip("$").strip().replace("−", "-")
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    if not _NUMBER.fullmatch(text) or len(text) > 100:
        return None
    try:
        top, _, bottom = text.replace(",", "").partition("/")
        value = Fraction(top.strip()) / (Fraction(bottom.strip()) if bottom else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value


def equal(a: str, b: str) -> bool:
    """Return whether two answers mean the same: as numbers, as text up to case and spacing, as lists or as algebra."""
    a, b = _plain(a), _plain(b)
    if a == b:
        return bool(a)
    one, other = number(a), number(b)
    if one is not None and other is not None:
        return one == other
    parts, others = _parts(a), _parts(b)
    if len(parts) > 1 or len(others) > 1:
        return len(parts) == len(others) and all(map(equal, parts, others))
    return _same_algebra(a, b)


def _plain(text: str) -> str:
    r"""Bring an answer to plain form: no dollar signs, `\frac{a}{b}` as (a)/(b), no leading `x =`, single spaces."""
    text = _FRACTION.sub(r"((\1)/(\2))", text.strip().strip("$").strip()).replace("\\cdot", "*").replace("−", "-")
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text.replace("\\left", "").replace("\\right", ""))
    text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text.rstrip("."))
    return " ".join(text.casefold().split())


def _parts(text: str) -> list[str]:
    """Split a list such as `[1, 2]`, `(1, 2)` or `1, 2` into its items; `1,200` is one number."""
    if text[:1] in "[({" and text[-1:] in "])}":
        text = text[1:-1]
    elif number(text) is not None:
        return [text]
    return [part.strip() for part in text.split(",")]


def _same_algebra(a: str, b: str) -> bool:
    """Compare two expressions at four random points to 30 digits, which equal expressions agree on."""
    if not (re.search(r"[\d(]", a) and re.search(r"[\d(]", b)):  # words that differ as text differ
        return False
    one, other = _read(a), _read(b)
    if one is None or other is None:
        return False
    import sympy  # here because its import takes half a second that numbers and words never need

    difference, rng = one - other, random.Random(0)
    for _ in range(4):
        point = {s: sympy.Rational(rng.randint(100, 900), 211) for s in sorted(difference.free_symbols, key=str)}
        value = difference.evalf(30, subs=point)
        if not value.is_number or value.has(sympy.nan, sympy.zoo) or abs(value) > sympy.Float("1e-15"):
            return False
    return True


def _read(text: str):  # type: ignore[no-untyped-def]  # a sympy expression or None
    """Read an expression of numbers, one-letter names, + - * / ^ and a few functions; None for anything else."""
    text = re.sub(r"(?<=\d)\s*(?=[a-z(])|(?<=\))\s*(?=[a-z0-9(])", "*", text.replace("^", "**"))  # 2x is 2*x
    if len(text) > _MOST_CHARACTERS:
        return None
    try:
        tree = ast.parse(text, mode="eval")
        return _build(tree.body) if sum(1 for _ in ast.walk(tree)) <= _MOST_NODES else None
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError):
        return None


def _build(node: ast.expr):  # type: ignore[no-untyped-def]
    """Turn one white-listed syntax node into sympy; ValueError for every other."""
    import sympy

    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return sympy.Rational(str(value))
        case ast.Name(id=name) if len(name) == 1 or name == "pi":
            return sympy.pi if name == "pi" else sympy.Symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_build(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            power = _build(right)
            if not power.is_number or abs(power) > _HIGHEST_POWER:
                raise ValueError("power out of bounds")
            return _build(left) ** power
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
            x, y = _build(left), _build(right)
            return {ast.Add: x + y, ast.Sub: x - y, ast.Mult: x * y}[type(op)] if not isinstance(op, ast.Div) else x / y
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in _FUNCTIONS:
            return getattr(sympy, name)(_build(inner))
    raise ValueError("not plain algebra")
