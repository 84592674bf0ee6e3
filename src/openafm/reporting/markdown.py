"""The report as Markdown, for a repository's documentation: `openafm report RUN --markdown FILE`.

The same chapters as the page, with all texts and tables and without the drawings. Samples of what models wrote are
quoted as listings, so that no text of theirs is read as markup.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from openafm.reporting.document import Block, Cell, Figure, Keys, Points, Samples, Section, Table, Text


def render(
    title: str,
    sections: Sequence[Section],
    missing: Mapping[str, Sequence[str]],
    about: str = "",
    gaps: Sequence[str] = (),
) -> str:
    """The whole report, first what of the run is missing; sections whose stages have not run are named at its end."""
    lines = [f"# {title}", "", _text(about)]
    if gaps:
        lines += ["", "**This run is not complete**", "", *(f"- {_text(gap)}" for gap in gaps)]
    part = ""
    for section in sections:
        if section.part != part:
            lines += ["", f"## {section.part}"]
            part = section.part
        lines += ["", f"### {section.title}"]
        for block in section.blocks:
            lines += _block(block)
    if missing:
        lines += ["", "Not there, as their stages have not run: " + ", ".join(missing) + "."]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _block(block: Block) -> Iterator[str]:
    yield ""
    match block:
        case Text():
            yield _text(block.text)
        case Points():
            yield from (f"**{_text(block.heading)}**", "")
            yield from (f"- {_text(item)}" for item in block.items)
        case Keys():
            yield from table(
                ("", "", ""), [[_text(label), _cell(cell), _text(note)] for label, cell, note in block.figures], 1
            )
        case Table():
            yield from (_text(block.caption), "")
            rows = [[_cell(cell) for cell in row] for row in block.rows]
            yield from table([_text(heading) for heading in block.headings], rows, block.numbers_from)
            yield from ("", f"({_text(block.source)})") if block.source else ()
        case Figure():
            yield f"(Drawn in the report: {_text(block.caption)})"
        case Samples():
            yield _text(block.caption)
            for heading, samples in block.items:
                yield from ("", *_listing(heading))
                for sample in samples:
                    mark = {None: "", True: ", right", False: ", wrong"}[sample.passed]
                    yield from ("", f"{_text(sample.label)}{mark}:", "", *_listing(sample.text))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int | None = None) -> Iterator[str]:
    """Lines of a table; its texts are Markdown already. Columns from `numbers_from` on are set to the right."""
    first = len(headings) if numbers_from is None else numbers_from
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "".join("---:|" if i >= first else "---|" for i in range(len(headings)))
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def _cell(cell: Cell | str) -> str:
    return _text(cell if isinstance(cell, str) else f"{cell.text} {cell.small}".strip())


def _text(text: str) -> str:
    """One line without markup of its own but code; texts of the web and of models are hostile until shown as text."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escaped = [p if i % 2 else re.sub(r"([\\*_\[\]<>#|~&])", r"\\\1", p) for i, p in enumerate(parts)]
    return "".join(p.replace("|", "\\|") if i % 2 else p for i, p in enumerate(escaped))


def _listing(text: str) -> list[str]:
    """An indented listing: nothing in it can end it."""
    return ["    " + line for line in text.splitlines() or ["(empty)"]]
