"""Formulas in pages as LaTeX: MathML, KaTeX, MathJax and images of LaTeX become `$...$` (used by `extract`)."""

import re
from html import escape, unescape

from resiliparse.parse.html import DOMNode, HTMLTree, NodeType

MAX_DEPTH = 40
MAX_SOURCE = 50_000
_MATH = re.compile(r"<math((?: [^>]*)?)>.*?</math>", re.S)
_ANNOTATION = re.compile(r'<annotation [^>]*encoding="[^">]*tex[^">]*"[^>]*>(.*?)</annotation>', re.S | re.I)
_SCRIPT = re.compile(r'<script [^>]*type="(math/tex[^">]*)"[^>]*>(.*?)</script>', re.S)
_IMAGE = re.compile(r' class="(?:[^"]* )?(?:latex|tex|math|mwe-math-[^" ]*|ee_img|tex2jax)(?: [^"]*)?"')
_ALT = re.compile(r' alt="([^"]*)"')
_SYMBOLS = {"−": "-", "\u2062": "", "\u2061": "", "×": r"\times ", "≤": r"\le ", "≥": r"\ge "}


def _children(node: DOMNode, depth: int) -> list[str]:
    return [latex(child, depth + 1) for child in node.child_nodes if child.type == NodeType.ELEMENT]


def latex(node: DOMNode, depth: int = 0) -> str:
    """Write a MathML element as LaTeX: fractions, roots, scripts and tables; unknown elements give their content."""
    if depth > MAX_DEPTH:
        return node.text or ""
    tag = node.tag
    if tag in ("mi", "mn", "mo", "mtext", "ms"):
        text = (node.text or "").strip()
        text = _SYMBOLS.get(text, text)
        return rf"\text{{{text}}}" if tag == "mtext" and len(text) > 1 else text
    parts = _children(node, depth)
    if tag == "mfrac" and len(parts) == 2:
        return rf"\frac{{{parts[0]}}}{{{parts[1]}}}"
    if tag == "msqrt":
        return rf"\sqrt{{{''.join(parts)}}}"
    if tag == "mroot" and len(parts) == 2:
        return rf"\sqrt[{parts[1]}]{{{parts[0]}}}"
    if tag in ("msup", "mover") and len(parts) == 2:
        return f"{parts[0]}^{{{parts[1]}}}"
    if tag in ("msub", "munder") and len(parts) == 2:
        return f"{parts[0]}_{{{parts[1]}}}"
    if tag in ("msubsup", "munderover") and len(parts) == 3:
        return f"{parts[0]}_{{{parts[1]}}}^{{{parts[2]}}}"
    if tag == "mtable":
        rows = r" \\ ".join(parts)
        return rf"\begin{{matrix}}{rows}\end{{matrix}}"
    if tag == "mtr":
        return " & ".join(parts)
    if tag in ("annotation", "annotation-xml"):
        return ""
    return "".join(parts) if parts else (node.text or "").strip()


def _formula(source: str) -> str:
    """Return a math element's LaTeX source where the page carries it, else the converted MathML."""
    annotation = _ANNOTATION.search(source)
    if annotation and annotation[1].strip():
        return unescape(annotation[1])
    tree = HTMLTree.parse(source[:MAX_SOURCE])
    math = (
        next((node for node in tree.body.child_nodes if node.type == NodeType.ELEMENT), None)
        if tree.body is not None
        else None
    )
    return latex(math) if math is not None else ""


def _dollars(formula: str, display: bool) -> str:
    formula = escape(" ".join(formula.split()), quote=False)
    marks = "$$" if display else "$"
    return f"{marks}{formula}{marks}" if formula else ""


def inline_formulas(html: str) -> str:
    """Replace every formula in serialised HTML by its LaTeX text in dollar signs, two where it stands by itself.

    Texts are searched, not the tree: resiliparse's collections take quadratic time on deeply nested pages. The visible
    copies that KaTeX and MathJax put beside the MathML are hidden from screen readers, and so from `read_blocks`.
    """
    if "math" not in html:
        return html
    if "<math" in html:
        html = _MATH.sub(lambda math: _dollars(_formula(math[0]), ' display="block"' in math[1]), html)
    if '"math/tex' in html:
        html = _SCRIPT.sub(lambda script: _dollars(unescape(script[2]), "display" in script[1]), html)
    return html


def image_formula(attributes: str) -> str:
    """Return the LaTeX of an image of a formula, in dollar signs: its alternative text; "" for any other image."""
    if "tex" not in attributes and "math" not in attributes:
        return ""
    alt = _ALT.search(attributes)
    if alt is None or not (_IMAGE.search(attributes) or "latex.php" in attributes or "/latex?" in attributes):
        return ""
    return _dollars(unescape(alt[1]).strip("$ ").removeprefix(r"\displaystyle").strip(), False)
