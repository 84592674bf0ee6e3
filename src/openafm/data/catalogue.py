"""The catalogue of a recipe's raw input: which packages, which of their files, which licence (recipes/sources)."""

import contextlib
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from openafm.data.documents import FLOWS
from openafm.data.packages import Package, Tier
from openafm.stage import Config

Form = Literal[
    "html", "markdown", "pydoc", "code", "text", "html_text", "quips", "jsonl", "reasoning", "descriptions",
    "release_notes", "docstrings", "mails", "packages", "benchmark", "file", "files", "gguf", "any",
]  # fmt: skip
Flow = Literal["web", "code", "math", "licensed", "public", "human", "benchmark", "model", "words"]


class Source(Config):
    """Some files of one package and what becomes of them."""

    package: str
    tier: Tier
    version: str = ""
    """Pinned for pypi and npm; empty for apt, which gives its release's version."""
    sha256: str = ""
    """Of the archive; required for pypi and npm."""
    flow: Flow
    form: Form
    """How the files are read; see `openafm.data.readers`, and `openafm.data.own` for `any`."""
    files: tuple[str, ...] = ("*",)
    """Globs of members; `*` crosses folders."""
    exclude: tuple[str, ...] = ()
    """Globs of members to leave."""
    strip: str = ""
    """Leading part of the member's path that the URL leaves out."""
    host: str = ""
    """Host of the URLs."""
    licence: str = ""
    """SPDX expression; empty where unknown."""
    language: str = ""
    """Programming language, for flow code."""
    limit: int = 0
    """At most so many documents, chosen by the digest of their URL; 0 for all."""
    disallow: tuple[str, ...] = ()
    """Rules of the host's robots.txt; without any, one folder is shut out."""
    target: str = ""
    """Name of the benchmark, or path in the artifact, for what is not text to train on."""
    instead_of: Tier | None = None
    """Taken only where this tier cannot be had, or is left out."""
    names: tuple[str, ...] = ()
    """Modules for `pydoc` and `docstrings` (all when empty), generators for `reasoning`."""

    @property
    def archive(self) -> Package:
        """The package to have."""
        return Package(self.tier, self.package, self.version, self.sha256)


class Catalogue(Config):
    """All sources of a recipe."""

    date: str
    """The crawl's date, RFC 3339: every WARC record carries it."""
    sources: tuple[Source, ...]


def load(name: str, texts: str = "") -> tuple[Catalogue, Path]:
    """A catalogue by path or by name in recipes/sources, and the folder its `folder` sources are relative to.

    With `texts`, a user's own folder or file is one source more.

    Raises ValueError naming the file and the entry at fault.
    """
    path = find(name)
    try:
        catalogue = Catalogue.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
    for source in catalogue.sources:
        if source.tier in ("pypi", "npm") and not (source.version and source.sha256):
            raise ValueError(
                f"{path}: {source.package} needs a version and a sha256, for what is fetched must be pinned"
            )
        if source.form == "any" and not (source.tier == "folder" and source.flow in FLOWS and source.host):
            raise ValueError(f"{path}: {source.package} of form any needs tier folder, a host, and a flow of {FLOWS}")
    own = [_own(Path(texts).expanduser().resolve())] if texts else []
    return catalogue.model_copy(update={"sources": (*catalogue.sources, *own)}), path.parent.parent


def _own(path: Path) -> Source:
    """The source that reads a user's own folder or file, whatever of the known forms is in it."""
    if not path.exists():
        raise ValueError(f"texts: {path} does not exist; give a folder or a file of yours")
    fields = {"package": str(path), "tier": "folder", "flow": "web", "form": "any", "host": "texts.example"}
    return Source.model_validate(fields | {"licence": "LicenseRef-own"})


def find(name: str) -> Path:
    """A catalogue's file, by path or by name in recipes/sources; ValueError with the known names."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ValueError(f"{name} does not exist; name a catalogue of recipes/sources or give a path")
        return Path(name)
    for folder in _recipe_folders():
        if (folder / "sources" / f"{name}.yaml").is_file():
            return folder / "sources" / f"{name}.yaml"
    raise ValueError(f"no catalogue named {name!r}; there are {', '.join(names())}, or give the path of a YAML file")


def names() -> list[str]:
    """The catalogues of recipes/sources."""
    return sorted({path.stem for folder in _recipe_folders() for path in (folder / "sources").glob("*.yaml")})


def _recipe_folders() -> list[Path]:
    """Installed recipes, then those of a checkout."""
    folders = [Path(__file__).parents[3] / "recipes"]
    with contextlib.suppress(ModuleNotFoundError):  # in a checkout, for the package is only made by installing
        folders.insert(0, Path(str(resources.files("openafm.recipes"))))
    return [folder for folder in folders if folder.is_dir()]
