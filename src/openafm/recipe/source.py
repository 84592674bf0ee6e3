"""Recipe files as YAML whose every key knows its line, so that an error can say where it is (`openafm run RECIPE`).

A file may start from another one (`extends: nano`): mappings merge, anything else replaces, `steps: {name: null}`
takes a step away. `--set` values are merged last and are named by their own text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str, ...]
SHIPPED = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")
"""The recipes that came with the program: of an installed package, or of the checkout it runs from."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-3` is a number, and only `true` and `false` are booleans (`no` is a language)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":bool")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass
class Source:
    """A nested mapping and, for each path of keys in it, the place it was written at (`file:line`)."""

    values: dict[str, Any]
    places: dict[Keys, str]

    def place(self, keys: Keys) -> str:
        """Where `keys`, or the nearest key around it, was written."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys, "the recipe")

    def error(self, keys: Keys, message: str) -> ValueError:
        """An error that names the file, the line and the key."""
        return ValueError(
            f"{self.place(keys)}: {'.'.join(keys)}: {message}" if keys else f"{self.place(keys)}: {message}"
        )

    def merge(self, other: "Source") -> None:
        """Lay `other` over this one."""
        self.values = merged(self.values, other.values)
        self.places |= other.places


def merged(under: Any, over: Any) -> Any:
    """`over` laid over `under`: mappings merge key by key, anything else is replaced."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {key: merged(under.get(key), over[key]) if key in over else under[key] for key in under} | {
        key: value for key, value in over.items() if key not in under
    }


def find(name: str, beside: Path | None = None) -> Path:
    """The recipe file called `name`: a path, or a bare name looked up in `beside`, ./recipes and what is shipped.

    Raises ValueError with the known names when there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        for candidate in (path, *([beside / path] if beside else [])):
            if candidate.is_file():
                return candidate
        raise ValueError(f"{name}: no such recipe file")
    folders = [folder for folder in (beside, Path("recipes"), *SHIPPED) if folder is not None]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({str(file.relative_to(folder).with_suffix("")) for folder in folders for file in recipes(folder)})
    raise ValueError(f"no recipe called {name!r}; known recipes: {', '.join(known) or 'none'} (or give a .yaml file)")


def recipes(folder: Path) -> list[Path]:
    """The recipe files in a folder of recipes (its `sources` are catalogues, not recipes)."""
    return sorted([*folder.glob("*.yaml"), *folder.glob("ablations/*.yaml")])


def read(name: str, overrides: Sequence[str] = (), _after: tuple[Path, ...] = ()) -> Source:
    """The recipe `name` with all it extends and the `--set` overrides laid over it."""
    path = find(name, _after[-1].parent if _after else None)
    if path.resolve() in [earlier.resolve() for earlier in _after]:
        raise ValueError(f"{path}: extends itself")
    source = parse(str(path), path.read_text())
    base = source.values.pop("extends", None)
    if base is not None:
        below = read(str(base), (), (*_after, path))
        below.merge(source)
        source = below
    steps = source.values.get("steps")
    if isinstance(steps, dict) and not _after:
        source.values["steps"] = {step: body for step, body in steps.items() if body is not None}
    for override in overrides:
        _override(source, override)
    return source


def parse(name: str, text: str) -> Source:
    """YAML text as a Source; `name` stands in the places."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        places: dict[Keys, str] = {(): f"{name}:1"}
        _mark(loader, node, (), name, places)
        values = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{name}:{line}: not valid YAML: {error.problem or error.context}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ValueError(f"{name}:1: a recipe is a mapping with `name` and `steps`, not {type(values).__name__}")
    return Source(values, places)


def _mark(loader: _Loader, node: yaml.Node | None, keys: Keys, name: str, places: dict[Keys, str]) -> None:
    """Note the line of every key below `node`; a key given twice is an error."""
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            places[(*keys, str(position))] = f"{name}:{item.start_mark.line + 1}"
            _mark(loader, item, (*keys, str(position)), name, places)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise ValueError(f"{name}:{key.start_mark.line + 1}: {'.'.join((*keys, key.value))}: given twice")
        seen.add(key.value)
    loader.flatten_mapping(node)  # `<<: *anchor`
    # An alias may bring the same node here again.
    node.value = list({key.value: (key, value) for key, value in node.value}.values())
    for key, value in node.value:
        path = (*keys, str(key.value))
        places[path] = f"{name}:{key.start_mark.line + 1}"
        _mark(loader, value, path, name, places)


def _override(source: Source, override: str) -> None:
    """Lay one `--set` over the recipe: a full path, or `STEP.key` for `steps.STEP.with.key`."""
    dotted, equals, text = override.partition("=")
    place = f"--set {override}"
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise ValueError(f"{place}: write it as --set key=value, for example --set seed=1 or --set teacher.steps=20")
    steps = source.values.get("steps")
    if isinstance(steps, dict) and keys[0] in steps and len(keys) > 1:
        keys = ("steps", keys[0], "with", *keys[1:])
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ValueError(f"{place}: {text!r} is not a YAML value; quote it") from None
    for key in reversed(keys):
        value = {key: value}
    source.merge(
        Source(
            value,
            {keys[:length]: place for length in range(1, len(keys) + 1) if keys[:length] not in source.places}
            | {keys: place},
        )
    )
