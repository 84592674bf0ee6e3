"""The digest of a stage's code: part of its step's key, so that a change of code makes the step stale.

It covers the stage's module, all it imports inside its own package (openafm), and the data files (prompts, topics)
beside those modules. Comments, docstrings and formatting do not count: they cannot change an artifact.
"""

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

DATA_SUFFIXES = (".jinja", ".txt", ".json", ".jsonl", ".yaml", ".html", ".css")


@cache
def code_digest(module: str) -> str:
    """SHA-256 over the meaning of `module` and of everything of its package that it reaches by imports."""
    files = _reached(module)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name} {_meaning(path)}\n".encode())
    for folder in sorted({path.parent for name, path in files.items() if name.count(".") > 1 or _is_subpackage(path)}):
        for data in sorted(path for path in folder.rglob("*") if path.suffix in DATA_SUFFIXES):
            digest.update(f"{folder.name}/{data.relative_to(folder)}\n".encode() + data.read_bytes())
    return digest.hexdigest()


def _is_subpackage(path: Path) -> bool:
    """Whether the module is the `__init__` of a package inside a package."""
    return path.name == "__init__.py" and (path.parent.parent / "__init__.py").exists()


def _reached(module: str) -> dict[str, Path]:
    """Name and file of `module` and of the modules of the same top package it imports, directly or not."""
    root = module.partition(".")[0]
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if path is not None and name not in files and name.partition(".")[0] == root:
            files[name] = path
            waiting += _imports(name, path)
    return files


@cache
def _source(module: str) -> Path | None:
    """The module's file; None when `module` is not a module (a function imported by name) or not Python."""
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.origin.endswith(".py") else None


@cache
def _imports(module: str, path: Path) -> list[str]:
    """Every name that might be a module which `module` imports, also inside functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = {package} if package else set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return sorted(names)


@cache
def _meaning(path: Path) -> str:
    """The module's syntax tree without its docstrings, hashed."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [line for line in node.body if not _is_text(line)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    """Whether the statement is a bare string: a docstring, or the line of text below a field."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
