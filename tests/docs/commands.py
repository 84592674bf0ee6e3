"""The commands that README and docs print, out of their fenced blocks and their inline code."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts)]
PROGRAMS = (
    "openafm make torchrun python python3 pip pytest curl docker git cd source sudo xcode-select brew chromium sed "
    "srun open mkdir cp cat wc sh bash npm apt-get tensorboard"
).split()  # fmt: skip
"""First words that make a line of a block without prompts a command; others are output, tables or data."""
PROSE = ("text", "yaml", "json", "python", "swift")
"""Languages of blocks that hold no commands."""


@dataclass(frozen=True)
class Command:
    """One command, as printed, where it stands, and whether it stands in running text."""

    words: tuple[str, ...]
    page: str
    line: int
    inline: bool = False
    shortened: bool = False
    """Whether the page leaves words out (…)."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def commands() -> list[Command]:
    """All of them, in order."""
    return [command for page in PAGES for command in (*_fenced(page), *_inline(page))]


def blocks(page: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, language and lines of each fenced block."""
    fence: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            if fence:
                yield fence
                fence = None
            else:
                fence = (number, line.strip().strip("`"), [])
        elif fence:
            fence[2].append(line)
    assert fence is None, f"{page}: a block that does not end"


def _fenced(page: Path) -> Iterator[Command]:
    for start, language, lines in blocks(page):
        if language in PROSE:
            continue
        prompted = any(line.startswith("$ ") for line in lines)
        skip = -1
        for at, line in enumerate(lines):
            if at <= skip:
                continue
            text = line.strip()
            if text.startswith("#"):
                continue
            if prompted and not line.startswith("$ ") and not text.startswith("openafm "):
                continue
            text = text.removeprefix("$ ")
            while text.endswith("\\"):
                skip = at = at + 1
                text = text[:-1] + lines[at].strip()
            if end := re.search(r"<<\s*'?(\w+)'?", text):  # a here-document: what follows is data
                skip = next(i for i, later in enumerate(lines[at:], at) if later.strip() == end[1])
            if prompted or _program(tuple(text.split())) in PROGRAMS:
                for part in _parts(text):
                    yield Command(part, str(page.relative_to(ROOT)), start + at + 1, shortened="…" in text)


def _parts(text: str) -> Iterator[tuple[str, ...]]:
    """Words of each command of a line; explanations behind two blanks or `#` are left out."""
    quoted = re.compile(r"'[^']*'|\"[^\"]*\"")
    kept = quoted.sub(lambda found: found[0].replace("  ", "\0\0").replace("#", "\1"), text)
    kept = re.split(r"\s{2,}|\s#\s", kept)[0].replace("\0", " ").replace("\1", "#")
    words = shlex.split(kept)
    part: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", "|", ";"):
            if part:
                yield tuple(_without_redirects(part))
            part = []
        elif word not in ("...", "…"):
            part.append("openafm" if word.endswith("bin/openafm") else word)


def _without_redirects(words: list[str]) -> Iterator[str]:
    skip = False
    for word in words:
        if skip or re.match(r"\d?[<>]", word):
            skip = word in (">", "<", ">>", "2>") and not skip
        else:
            yield word


def _program(words: tuple[str, ...]) -> str:
    """The first word that sets no variable."""
    return next((word.rpartition("/")[2] for word in words if not re.match(r"[A-Z_]+=", word)), "")


def _inline(page: Path) -> Iterator[Command]:
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if not fenced:
            for found in re.findall(r"`((?:openafm|torchrun|python|pytest|make|pip) [^`]*)`", line):
                text = re.sub(r"[\[\]]", "", found.replace("\\|", "|").replace("hf|peft|gguf|coreml", "hf"))
                text = found if found.startswith("pip") else text
                for part in _parts(text):
                    yield Command(part, str(page.relative_to(ROOT)), number, True, "…" in found)
