"""How the files of a package become web pages, documents and pairs, one function a form of the catalogue."""

import ast
import dataclasses
import email
import email.utils
import functools
import hashlib
import importlib.util
import json
import pydoc
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import lxml.html
from markdown_it import MarkdownIt
from resiliparse.extract.html2text import extract_plain_text

from openafm import jsonl
from openafm.data.catalogue import Source

Members = Sequence[tuple[str, bytes]]
UTF8 = "text/html; charset=utf-8"
LONG_TEXT = 24_000
"""Characters at which a long text is cut into documents: several times the longest training sequence."""


@dataclass(frozen=True)
class Page:
    """One response of the stand-in crawl."""

    url: str
    html: bytes
    content_type: str
    source: str
    licence: str
    planted: str | None = None


@dataclass(frozen=True)
class Document:
    """One document of a flow that is not crawled; the fields of `code.jsonl` and its siblings, in their order."""

    url: str
    flow: str
    source: str
    licence: str
    title: str
    text: str
    code_language: str = ""
    planted: str | None = None


def environment() -> jinja2.Environment:
    """The page templates beside this module (data/templates)."""
    return jinja2.Environment(loader=jinja2.PackageLoader("openafm.data"), autoescape=True, trim_blocks=True)


def url_of(source: Source, name: str) -> str:
    """The address a member would have on the package's site."""
    return f"https://{source.host or source.package.strip('@').replace('/', '-') + '.example'}/{name}"


def shorten(name: str, source: Source) -> str:
    """A member's path without the part that says where the package installs it."""
    return name.removeprefix(source.strip).lstrip("/")


def rank(key: str) -> bytes:
    """A fixed shuffle: the order of digests."""
    return hashlib.sha256(key.encode()).digest()


def sample(items: Sequence[Any], limit: int, key: Callable[[Any], str]) -> list[Any]:
    """At most `limit` items, those with the smallest digests of their keys, in the order they came."""
    if not limit or len(items) <= limit:
        return list(items)
    chosen = sorted(range(len(items)), key=lambda i: rank(key(items[i])))[:limit]
    return [items[i] for i in sorted(chosen)]


def pages(source: Source, files: Members) -> list[Page]:
    """Web pages of a source: as they are (html), rendered from Markdown, or from docstrings (pydoc)."""
    make = {"html": _html, "markdown": _markdown, "pydoc": _pydoc}[source.form]
    return sample(list(make(source, files)), source.limit, lambda page: page.url)


def documents(source: Source, files: Members) -> list[Document]:
    """Documents of a source of the flows code, math, licensed and public."""
    make = {
        "code": _code, "text": _text, "html_text": _html_text, "quips": _quips, "jsonl": _jsonl,
        "reasoning": _reasoning_documents, "descriptions": _described,
    }[source.form]  # fmt: skip
    return sample(list(make(source, files)), source.limit, lambda document: document.url)


def pairs(source: Source, files: Members) -> list[dict[str, str]]:
    """Texts with summaries that people wrote: rows {"id", "source", "text", "summary"}, of mails "from" and "date" too.

    Of form `packages` the rows are {"id", "source", "section"}: what a package was built from.
    """
    if source.form == "jsonl":
        rows = [row for name, data in files for row in jsonl.parse(data, name)]
    else:
        rows = list(_PAIRS[source.form](source, files))
    return sample(rows, source.limit, lambda row: row["id"])


def benchmark(source: Source, files: Members) -> list[dict[str, Any]]:
    """Items of a benchmark: rows {"id", "text", ...} with the rest of the item for whoever scores it."""
    if source.form == "reasoning":
        rows = _reasoning(source.names, source.limit, HELD_OUT_SEED)
    else:
        rows = [row for name, data in files for row in jsonl.parse(data, name)]
    items = [_item(row, number, source.target) for number, row in enumerate(rows)]
    return sample(items, source.limit, lambda item: item["id"])


# ---------------------------------------------------------------- web


def _html(source: Source, files: Members) -> Iterator[Page]:
    for name, data in files:
        yield Page(url_of(source, shorten(name, source)), data, content_type(data), source.package, source.licence)


def content_type(data: bytes) -> str:
    """Servers announce UTF-8; a page in another encoding says so itself, so its header stays silent."""
    return "text/html" if _decoded(data) is None else UTF8


def _markdown(source: Source, files: Members) -> Iterator[Page]:
    template = environment().get_template("documentation.html.jinja")
    links = [shorten(name, source).removesuffix(".md") + ".html" for name, _ in files]
    for (_, data), link in zip(files, links, strict=True):
        text = data.decode("utf-8", errors="replace")
        heading = re.search(r"^#\s+(.+)$", text, re.MULTILINE)
        title = re.sub(r"<[^>]*>|[`*_\[\]]", "", heading[1]).strip() if heading else link.removesuffix(".html")
        html = template.render(
            title=title, site=source.package, links=links, here=link, licence=source.licence,
            body=MarkdownIt("commonmark").enable("table").render(text),
        )  # fmt: skip
        yield Page(url_of(source, link), html.encode(), UTF8, source.package, source.licence)


def _pydoc(source: Source, files: Members) -> Iterator[Page]:
    """This interpreter's own documentation, rendered by a fresh one, for what is imported here would show in it."""
    command = [sys.executable, "-s", "-S", "-c", RENDER_MODULES, *source.names]
    done = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True)
    for name, body in json.loads(done.stdout).items():
        body = re.sub(r"(&nbsp;| )at\1?0x[0-9a-fA-F]+|file:[^\"']*|(?<=[>;])/[^<]*\.(py|so)\b", "", body)
        html = pydoc.html.page(f"{name} module", body).encode()
        yield Page(url_of(source, f"{name}.html"), html, UTF8, source.package, source.licence)


RENDER_MODULES = """
import importlib, json, pydoc, sys
pages = {}
for name in sys.argv[1:]:
    try:
        pages[name] = pydoc.html.document(importlib.import_module(name), name)
    except ImportError:
        pass  # modules come and go between Python versions
print(json.dumps(pages))
"""


# ---------------------------------------------------------------- documents


def _document(source: Source, name: str, text: str, title: str = "", language: str = "") -> Document:
    return Document(url_of(source, name), source.flow, source.package, source.licence, title or name, text, language)


def _code(source: Source, files: Members) -> Iterator[Document]:
    for name, data in files:
        text = _decoded(data)
        if text is not None and 200 <= len(text) <= 60_000:
            yield _document(source, shorten(name, source), text, language=source.language)


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _text(source: Source, files: Members) -> Iterator[Document]:
    for name, data in files:
        yield from _parts(source, shorten(name, source), data.decode("utf-8", errors="replace"))


def _parts(source: Source, name: str, text: str) -> Iterator[Document]:
    """A long text as documents of at most LONG_TEXT characters, cut between paragraphs."""
    parts, part = [], ""
    for paragraph in re.split(r"(?<=\n)\s*\n", text.replace("\r\n", "\n")):
        if part and len(part) + len(paragraph) > LONG_TEXT:
            parts.append(part)
            part = ""
        part += paragraph + "\n"
    for number, text_part in enumerate([*parts, part]):
        if len(text_part.strip()) >= 200:
            yield _document(source, f"{name}/{number}" if parts else name, text_part.strip("\n") + "\n", title=name)


def _html_text(source: Source, files: Members) -> Iterator[Document]:
    for name, data in files:
        text = extract_plain_text(data.decode("utf-8", errors="replace"), main_content=True)
        if len(text) >= 200:
            yield from _parts(source, shorten(name, source), text + "\n")


def _quips(source: Source, files: Members) -> Iterator[Document]:
    """Files of short texts between lines of `%`, as documents of about 30."""
    for name, data in files:
        quips = [quip for quip in data.decode("utf-8", errors="replace").split("\n%\n") if quip.strip()]
        for start in range(0, len(quips), 30):
            yield _document(
                source, f"{shorten(name, source)}/{start // 30}", "\n\n".join(quips[start : start + 30]) + "\n"
            )


def _jsonl(source: Source, files: Members) -> Iterator[Document]:
    """Documents already in our form: name, text, and what they know of title, code_language, source and licence."""
    for name, data in files:
        for row in jsonl.parse(data, name):
            document = _document(source, row["name"], row["text"], row.get("title", ""), row.get("code_language", ""))
            yield dataclasses.replace(document, **{key: row[key] for key in ("source", "licence") if key in row})


# ---------------------------------------------------------------- generated problems

TRAINING_SEED, HELD_OUT_SEED = 1, 1_000_003
PROBLEMS_IN_DOCUMENT = 8


def _reasoning(names: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` generated problems with verified answers, spread evenly over the generators `names`."""
    gym = importlib.import_module("reasoning_gym")
    rows = []
    for name in names:
        for number, entry in enumerate(gym.create_dataset(name, size=-(-count // len(names)), seed=seed)):
            rows.append({"id": f"{name}/{number}", "question": entry["question"], "answer": str(entry["answer"])})
    return rows[:count]


def _reasoning_documents(source: Source, files: Members) -> Iterator[Document]:
    """Worksheets of one generator each. Generators of the benchmark are others: sharing one shares its wording."""
    for name in source.names:
        count = source.limit * PROBLEMS_IN_DOCUMENT // len(source.names)
        rows = _reasoning([name], count, TRAINING_SEED)
        for start in range(0, len(rows), PROBLEMS_IN_DOCUMENT):
            sheet = rows[start : start + PROBLEMS_IN_DOCUMENT]
            text = "\n\n".join(f"Question: {row['question'].strip()}\nAnswer: {row['answer']}" for row in sheet)
            yield _document(
                source, f"{name}/{start // PROBLEMS_IN_DOCUMENT}", text + "\n", title=name.replace("_", " ")
            )


# ---------------------------------------------------------------- benchmarks


def _item(row: dict[str, Any], number: int, benchmark_name: str) -> dict[str, Any]:
    """The parts that would give the item away if they were trained on, joined as `text`; the rest is kept."""
    name = str(row.get("task_id") or row.get("id") or row.get("key") or number)
    question = row.get("text") or row.get("prompt") or row.get("question") or ""
    text = question if isinstance(question, str) else "\n".join(turn["content"] for part in question for turn in part)
    solution = row.get("canonical_solution", "")
    kept = {key: value for key, value in row.items() if key not in ("id", "text")}
    name = name.split("/", 1)[-1] if solution else name.removeprefix(f"{benchmark_name}/")
    return {"id": f"{benchmark_name}/{name}", "text": text + solution, **kept}


# ---------------------------------------------------------------- human summaries


DESCRIPTION = re.compile(r"^Package: (\S+)\n(?:.*\n)*?Description-en: (.+)\n((?: .*\n?)+)", re.MULTILINE)


@functools.lru_cache(maxsize=1)
def _descriptions(data: bytes) -> tuple[tuple[str, str, str], ...]:
    """(package, synopsis, long description) of apt's English descriptions, one a package, sorted."""
    found: dict[str, tuple[str, str, str]] = {}
    for stanza in data.decode("utf-8", errors="replace").split("\n\n"):
        match = DESCRIPTION.search(stanza + "\n")
        if match and match[1] not in found:
            lines = [line[1:] for line in match[3].splitlines()]
            found[match[1]] = (match[1], match[2].strip(), "\n".join("" if line == "." else line for line in lines))
    return tuple(found[name] for name in sorted(found))


def _half(name: str) -> bool:
    """True for the half of the packages whose descriptions are trained on as text; the others give pairs."""
    return rank(name)[0] < 128


def _described(source: Source, files: Members) -> Iterator[Document]:
    """Package descriptions as short encyclopedic texts."""
    for _, data in files:
        for name, synopsis, text in _descriptions(data):
            if _half(name) and len(text) >= 200:
                yield _document(source, name, f"{name}: {synopsis}\n\n{text}\n", title=name)


def _synopses(source: Source, files: Members) -> Iterator[dict[str, str]]:
    for _, data in files:
        for name, synopsis, text in _descriptions(data):
            if not _half(name) and 200 <= len(text) <= 1_500 and len(synopsis) >= 15:
                yield {"id": f"synopsis/{name}", "source": source.package, "text": text, "summary": synopsis}


def _release_notes(source: Source, files: Members) -> Iterator[dict[str, str]]:
    """Sections of release notes, as the announcements they are mailed as: the body, and its heading as the subject."""
    parser = lxml.html.HTMLParser(encoding="utf-8")
    for name, data in files:
        for section in lxml.html.document_fromstring(data, parser=parser).iter("section", "div"):
            heading = section.find("h3")
            body = [" ".join(p.text_content().split()) for p in section.findall("p")]
            if heading is None or section.get("id") is None or not 150 <= sum(map(len, body)) <= 1_500:
                continue
            subject = heading.text_content().strip().rstrip("¶").strip()
            identity = f"mail/{shorten(name, source)}#{section.get('id')}"
            yield {"id": identity, "source": source.package, "text": "\n\n".join(body), "summary": subject}


def _docstrings(source: Source, files: Members) -> Iterator[dict[str, str]]:
    """This interpreter's standard library: a docstring's first line sums up its other paragraphs (PEP 257)."""
    for name in source.names or sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in ("antigravity", "this"):
            continue
        found = importlib.util.find_spec(name)
        if found is None or not (found.origin or "").endswith(".py"):
            continue
        for node in ast.walk(ast.parse(Path(str(found.origin)).read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                if rest and "\n" not in first:
                    identity = f"docstring/{name}.{node.name}:{node.lineno}"
                    yield {"id": identity, "source": source.package, "text": rest.strip(), "summary": first.rstrip(".")}


COMMIT = re.compile(r"^commit ([0-9a-f]{40})\n(?:Merge: .*\n)?Author: (.+?) <.*>\nDate: +(.+)\n", re.MULTILINE)
TRAILER = re.compile(
    r"^(?:[A-Z][\w-]+-[Bb]y|C[Cc]|Fixes|Closes|Bugzilla|Reference|git-svn-id|\(cherry)\b.*$", re.MULTILINE
)
"""Lines below a mail that say who agreed with it."""


def _mails(source: Source, files: Members) -> Iterator[dict[str, str]]:
    """Mails of developers: `git log` as the mails that `git format-patch` makes of it, and files with mail headers.

    The summary is what the writer put first: the subject, or the header Abstract where there is one.
    """
    for name, data in files:
        text = data.decode("utf-8", errors="replace")
        commits = list(COMMIT.finditer(text))
        for match, end in zip(commits, [*(match.start() for match in commits[1:]), len(text)], strict=False):
            lines = textwrap.dedent(text[match.end() : end].strip("\n")).strip().split("\n")
            yield _mail(source, f"{source.package}/{match[1][:12]}", match[2], match[3], lines[0], "\n".join(lines[1:]))
        if not commits:
            mail = email.message_from_string(text)
            sender, _ = email.utils.parseaddr(str(mail["From"] or "").partition(",")[0])
            told = " ".join(str(mail["Abstract"] or mail["Subject"] or "").split())
            identity = f"{source.package}/{shorten(name, source)}"
            yield _mail(source, identity, sender, str(mail["Date"] or ""), told, str(mail.get_payload()))


def _mail(source: Source, identity: str, sender: str, date: str, summary: str, body: str) -> dict[str, str]:
    text = re.sub(r"\n{3,}", "\n\n", TRAILER.sub("", body)).strip()
    row = {"id": f"mail/{identity}", "source": source.package, "text": text, "summary": summary.strip()}
    return row | {"from": sender.strip(), "date": date.strip()}


def _packages(source: Source, files: Members) -> Iterator[dict[str, str]]:
    """Each package of apt's list with the source package that it was built from, and its section."""
    for _, data in files:
        for stanza in data.decode("utf-8", errors="replace").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
            if "Package" in fields:
                built_from = fields.get("Source", fields["Package"]).partition(" ")[0]
                yield {"id": fields["Package"], "source": built_from, "section": fields.get("Section", "")}


_PAIRS: dict[str, Callable[[Source, Members], Iterator[dict[str, str]]]] = {
    "descriptions": _synopses,
    "release_notes": _release_notes,
    "docstrings": _docstrings,
    "mails": _mails,
    "packages": _packages,
}
