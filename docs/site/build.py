"""Build the documentation as a site, offline: `make docs` (into build/docs/site, about ten seconds).

The pages are docs/*.md as they stand, the README, and a page a module made from its docstrings. Links between pages, to
code and to recipes are turned to those; a link to nothing, and a page that would ask another host for anything, is an
error.
"""

import ast
import html.parser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE, SITE = ROOT / "build" / "docs" / "pages", ROOT / "build" / "docs" / "site"
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)|(!\[[^\]\n]*\])\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~)", re.M)


def main() -> None:
    """Build, and refuse what is broken."""
    shutil.rmtree(SOURCE.parent, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    pages = copy_pages()
    modules = write_reference(SOURCE / "reference")
    config = yaml.safe_load((ROOT / "docs/site/mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"docs_dir": SOURCE.name, "site_dir": SITE.name}  # beside the file: zensical takes no absolute paths
    config["nav"] = [*known(config["nav"]), {"Reference": modules}]
    unlisted = sorted(pages - set(listed(config["nav"])))
    if unlisted:
        sys.exit(f"docs/site/mkdocs.yml: pages that are in no menu: {', '.join(unlisted)}")
    (SOURCE.parent / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    shutil.copytree(ROOT / "docs/site/assets", SOURCE / "assets")
    program = Path(sys.executable).with_name("zensical")
    subprocess.run([program, "build", "--clean", "-f", SOURCE.parent / "mkdocs.yml"], check=True, cwd=SOURCE.parent)
    if wrong := [*broken_links(SITE), *outside_requests(SITE)]:
        sys.exit("\n".join(wrong))
    print(f"{len(list(SITE.rglob('*.html')))} pages: open {SITE / 'index.html'}")


def known(nav: list) -> list:
    """The menu without pages that are not written yet (another branch's)."""
    kept = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            kept.append({title: known(target)})
        elif (SOURCE / target).is_file():
            kept.append(entry)
        else:
            print(f"without {title} ({target}): no such page")
    return kept


def listed(nav: list) -> Iterator[str]:
    """Every page of the menu."""
    for entry in nav:
        for target in entry.values():
            yield from listed(target) if isinstance(target, list) else [target]


def copy_pages() -> set[str]:
    """Copy docs/ and the README, links turned; the pages that a menu has to name."""
    sources = sorted((ROOT / "docs").rglob("*.md"))
    for path in [*sources, ROOT / "README.md"]:
        target = SOURCE / (path.relative_to(ROOT / "docs") if path != ROOT / "README.md" else "overview.md")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(turned(path.read_text(encoding="utf-8"), path, target), encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.*")):
        if path.suffix in (".png", ".svg", ".json", ".jsonl") and "site" not in path.parts:
            target = SOURCE / path.relative_to(ROOT / "docs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return {str(path.relative_to(ROOT / "docs")) for path in sources if "results" not in path.parts} | {"overview.md"}


def turned(text: str, path: Path, target: Path) -> str:
    """The page's text with its links to files of the repository pointing into the site."""

    def turn(found: re.Match[str]) -> str:
        label, link = (found[1], found[2]) if found[2] else (found[3], found[4])
        where = place_of(link, path)
        shown = f"[{label}]" if found[2] else label
        if where is None:
            return found[0]
        up = "../" * len(target.relative_to(SOURCE).parent.parts)
        return f"{shown}({up}{where})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(turn, part) for part in parts)


def place_of(link: str, path: Path) -> str | None:
    """Where in the site a link of `path` leads; None for what needs no turning. Exits where it leads nowhere."""
    parts = urlsplit(link)
    if parts.scheme or not parts.path:
        return None
    there = (path.parent / unquote(parts.path)).resolve()
    if not there.exists() or ROOT not in there.parents:
        sys.exit(f"{path.relative_to(ROOT)}: a link to {link}, which is not there")
    anchor = f"#{parts.fragment}" if parts.fragment else ""
    inside = there.relative_to(ROOT)
    if inside == Path("README.md"):
        return f"overview.md{anchor}"
    if inside.parts[0] == "docs":
        return f"{inside.relative_to('docs')}{anchor}" if there.is_file() else "reproduction.md"
    if inside.parts[:2] == ("src", "openafm") and there.suffix == ".py":
        return f"reference/{module_of(there)}.md{anchor}"
    listing = SOURCE / "files" / f"{inside}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(there, listing)
    return f"files/{inside}.txt"


def module_of(path: Path) -> str:
    """`openafm.training.loop` of src/openafm/training/loop.py."""
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def write_reference(folder: Path) -> list:
    """A page a module, and the menu of them by package."""
    folder.mkdir()
    menu: dict[str, list] = {}
    for path in sorted((ROOT / "src/openafm").rglob("*.py")):
        name = module_of(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name.endswith("__main__") or ast.get_docstring(tree) is None:
            continue
        (folder / f"{name}.md").write_text("\n".join(module_page(name, path, tree)) + "\n", encoding="utf-8")
        parts = name.split(".")
        is_package = path.stem == "__init__" and len(parts) > 1
        package = parts[1] if is_package or len(parts) > 2 else "openafm"
        menu.setdefault(package, []).append({name.removeprefix("openafm."): f"reference/{name}.md"})
    return [{package: entries} for package, entries in sorted(menu.items())]


def module_page(name: str, path: Path, tree: ast.Module) -> Iterator[str]:
    """A module as Markdown: its docstring, then what is public in it with signature and docstring."""
    yield from (f"# {name}", "", f"`{path.relative_to(ROOT)}`", "", escaped(ast.get_docstring(tree) or ""))
    for node, text in documented(tree.body):
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(map(ast.unparse, node.bases))
            yield from (
                "",
                f"## {node.name}",
                "",
                "```python",
                f"class {node.name}" + (f"({bases})" if bases else ""),
                "```",
            )
            yield from ("", escaped(text))
            for inner, told in documented(node.body):
                yield from member(inner, told, f"### {node.name}.")
        else:
            yield from member(node, text, "## ")


def member(node: ast.AST, text: str, heading: str) -> Iterator[str]:
    """A function, or a field or constant with the text below it."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            code = f"{word} {node.name}({ast.unparse(node.args)}){returns}"
            yield from ("", f"{heading}{node.name}", "", "```python", code, "```", "", escaped(text))
        case ast.AnnAssign() | ast.Assign():
            yield from (
                "",
                f"- `{ast.unparse(node)[:300]}`",
                "",
                *(f"    {line}" for line in escaped(text).splitlines()),
            )


def documented(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Public statements of a body with their docstrings; of a field or constant the string that follows it."""
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text and not node.name.startswith("_"):
                yield node, text
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            if isinstance(told, str) and isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield node, " ".join(told.split())


def escaped(docstring: str) -> str:
    """A docstring as text: nothing in it but code in backticks is markup."""
    parts = re.split(r"(`[^`]*`)", docstring)
    return "".join(p if i % 2 else re.sub(r"([*_<>\[\]])", r"\\\1", p) for i, p in enumerate(parts))


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and the anchors it has."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what the tag links to, loads or is called."""
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given.get("href", ""))
        elif "src" in given:
            self.loads.append(given["src"])


def broken_links(site: Path) -> Iterator[str]:
    """Links inside the site that lead nowhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                yield f"{path.relative_to(site)}: a link to {link}, which is not there"
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors:
                yield f"{path.relative_to(site)}: a link to {link}, which has no such heading"


def outside_requests(site: Path) -> Iterator[str]:
    """What a page or style would load from another host. Scripts are held to it in the browser (tests/docs)."""
    for path in sorted(site.rglob("*.html")):
        for load in Page(path.read_text(encoding="utf-8")).loads:
            if urlsplit(load).netloc:
                yield f"{path.relative_to(site)}: loads {load}"
    for path in sorted(site.rglob("*.css")):
        for load in re.findall(
            r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", path.read_text(encoding="utf-8")
        ):
            yield f"{path.relative_to(site)}: loads {load}"


if __name__ == "__main__":
    main()
