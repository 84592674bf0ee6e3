"""Formulas in pages as LaTeX: MathML, KaTeX, MathJax and images of LaTeX become `$...$` in the tree (used by `extract`)."""

from resiliparse.parse.html import DOMNode, HTMLTree

MAX_DEPTH = 40
_SYMBOLS = {"−": "-", "⁢": "", "⁡": "", "\u2062": "", "\u2061": "", "×": r"\times ", "≤": r"\le ", "≥": r"\ge "}


def _children(node: DOMNode, depth: int) -> list[str]:
    return [latex(child, depth + 1) for child in node.child_nodes if child.type == 1]  # elements


def latex(node: DOMNode, depth: int = 0) -> str:
    """Write a MathML element as LaTeX: fractions, roots, scripts, rows and tables; unknown elements give their content."""
    if depth > MAX_DEPTH:
        return node.text
    tag = node.tag
    if tag in ("mi", "mn", "mo", "mtext", "ms"):
        text = node.text.strip()
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
    return "".join(parts) if parts else node.text.strip()


def _formula(math: DOMNode) -> str:
    """Return a math element's LaTeX source where the page carries it, else the converted MathML."""
    for annotation in math.get_elements_by_tag_name("annotation"):
        if "tex" in (annotation.getattr("encoding") or "").lower() and annotation.text.strip():
            return annotation.text.strip()
    return latex(math)


def _replace(tree: HTMLTree, node: DOMNode, formula: str, display: bool) -> None:
    marks = "$$" if display else "$"
    formula = " ".join(formula.split())
    if node.parent is not None:
        text = f"{marks}{formula}{marks}" if formula else ""
        node.parent.replace_child(tree.create_text_node(text), node)


def inline_formulas(tree: HTMLTree) -> None:
    """Replace every formula of the tree by its LaTeX text in dollar signs (two of them when it stands by itself)."""
    root = tree.document
    for wrapper in root.query_selector_all(".katex, mjx-container, .mwe-math-element, .MathJax"):
        math = wrapper.query_selector("math")
        if math is not None and wrapper.parent is not None:
            parent_class = wrapper.parent.getattr("class") or ""
            display = "katex-display" in parent_class or wrapper.getattr("display") == "true"
            _replace(tree, wrapper, _formula(math), display or math.getattr("display") == "block")
    for math in root.get_elements_by_tag_name("math"):
        _replace(tree, math, _formula(math), math.getattr("display") == "block")
    for script in root.query_selector_all("script[type^='math/tex']"):
        _replace(tree, script, script.text, "display" in (script.getattr("type") or ""))
    for preview in root.query_selector_all(".MathJax_Preview, .MathJax_Display, .katex-html"):
        if preview.parent is not None:
            preview.parent.remove_child(preview)
    for image in root.query_selector_all("img.latex, img.tex, img.math, img.mwe-math-fallback-image-inline"):
        _replace(tree, image, (image.getattr("alt") or "").strip("$ "), "display" in (image.getattr("class") or ""))
