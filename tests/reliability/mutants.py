"""Mutation testing of the formulas: one change at a time, and the module's tests must notice.

    python tests/reliability/mutants.py schedules losses optimizers
    python tests/reliability/mutants.py dedup --sample 60 --seed 1

A mutant has one operator, comparison, number, condition or statement changed in the module's syntax tree, not on disk.
Its tests run in a process forked from one that has torch loaded; a mutant that no test fails on within ten times the
usual time survives and is printed with its line. Prints the killed share of each module; exit code 1 below --share.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    "schedules": ("openafm.training.schedules", "tests/training/test_schedules.py"),
    "losses": ("openafm.training.losses", "tests/training/test_losses.py"),
    "optimizers": ("openafm.training.optimizers", "tests/training/test_optimizers.py"),
    "alignment": ("openafm.training.alignment", "tests/training/test_alignment.py"),
    "minhash": ("openafm.data.minhash", "tests/data/test_minhash.py"),
    "dedup": ("openafm.data.dedup", "tests/data/test_dedup.py"),
    "decontaminate": ("openafm.data.decontaminate", "tests/data/test_decontaminate.py"),
    "ngram_index": ("openafm.data.ngram_index", "tests/data/test_decontaminate.py"),
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
CALLS = {
    "min": "max",
    "max": "min",
    "sum": "max",
    "all": "any",
    "any": "all",
    "log_softmax": "softmax",
    "sqrt": "square",
}


@dataclass(frozen=True)
class Mutant:
    """A changed module."""

    line: int
    told: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """All single changes of a module's code; docstrings, annotations and what is raised stay as they are."""
    tree = ast.parse(source)
    for number, (node, field, index) in enumerate(places(tree)):
        for change in changes(getattr_at(node, field, index)):
            made = copy.deepcopy(tree)
            where, field, index = list(places(made))[number]
            old = getattr_at(where, field, index)
            new = change(old)
            if index is None:
                setattr(where, field, new)
            else:
                getattr(where, field)[index] = new
            ast.fix_missing_locations(made)
            line = getattr(old, "lineno", getattr(where, "lineno", 0))
            yield Mutant(line, f"{text(node)}  ->  {text(where)}", made)


def getattr_at(node: ast.AST, field: str, index: int | None) -> ast.AST:
    found = getattr(node, field)
    return found if index is None else found[index]


def text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:150]


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Every node below the tree that may change, as its parent's field and place in it."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_params", "bases", "keywords_of_class"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(
                child, ast.Raise | ast.Import | ast.ImportFrom | ast.Assert
            ):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # a docstring
            yield tree, field, index if isinstance(value, list) else None
            yield from places(child)


def changes(node: ast.AST) -> Iterator:
    """What may become of a node."""
    if type(node) in SWAPS:
        yield lambda old: SWAPS[type(old)]()
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield lambda old: ast.Constant(old.value + 1)
        if type(node.value) is float and node.value not in (0.0, 1.0):
            yield lambda old: ast.Constant(old.value * 2)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield lambda old: ast.Constant(not old.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield lambda old: old.operand
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if name in CALLS:
            yield renamed
    elif isinstance(node, ast.IfExp):
        yield lambda old: old.body
        yield lambda old: old.orelse
    elif isinstance(node, ast.If | ast.While):
        yield lambda old: type(old)(ast.UnaryOp(ast.Not(), old.test), old.body, old.orelse)
    elif isinstance(node, ast.Expr | ast.AugAssign | ast.Continue | ast.Break):
        yield lambda old: ast.Pass()


def renamed(call: ast.Call) -> ast.Call:
    if isinstance(call.func, ast.Name):
        call.func.id = CALLS[call.func.id]
    else:
        assert isinstance(call.func, ast.Attribute)
        call.func.attr = CALLS[call.func.attr]
    return call


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from another syntax tree."""

    def __init__(self, name: str, tree: ast.Module, path: Path):
        self.name, self.tree, self.path = name, tree, path

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def tested(name: str, tree: ast.Module, path: Path, tests: str, limit: float) -> tuple[bool, float]:
    """Whether the tests fail on a module of this tree, in a forked process; and the seconds that took."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            import pytest

            for loaded in [key for key in sys.modules if key.partition(".")[0] in ("openafm", "tests")]:
                del sys.modules[loaded]
            sys.meta_path.insert(0, Changed(name, tree, path))
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", tests]))
        finally:
            os._exit(min(code, 100))
    while time.monotonic() - began < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0, time.monotonic() - began
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True, time.monotonic() - began


def judge(short: str, sample: int, rng: random.Random) -> tuple[int, int]:
    """Print a module's survivors and share; how many were killed, of how many."""
    name, tests = MODULES[short]
    path = ROOT / "src" / Path(*name.split(".")).with_suffix(".py")
    source = path.read_text()
    failed, usual = tested(name, ast.parse(source), path, tests, 600)
    assert not failed, f"{tests} fail on {path} as it is"
    every = list(mutants(source))
    chosen = rng.sample(every, sample) if 0 < sample < len(every) else every
    killed = 0
    for mutant in chosen:
        dead, _ = tested(name, mutant.tree, path, tests, 10 * usual + 10)
        killed += dead
        if not dead:
            print(f"    {path.name}:{mutant.line}  {mutant.told}", flush=True)
    print(
        f"{short:<14}{killed:>5} of {len(chosen)} killed ({killed / len(chosen):.0%}), {len(every)} mutants there are, "
        f"tests {usual:.1f} s",
        flush=True,
    )
    return killed, len(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help=f"{' '.join(MODULES)} [all of them]")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants of each module, drawn; 0: all")
    parser.add_argument("--share", type=float, default=0.85, help="of the mutants that must be killed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    os.chdir(ROOT)
    import hypothesis
    import numpy  # noqa: F401  loaded once, before the forks
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
    rng, killed, of = random.Random(options.seed), 0, 0
    for short in options.modules or MODULES:
        dead, tried = judge(short, options.sample, rng)
        killed, of = killed + dead, of + tried
    print(f"{'all':<14}{killed:>5} of {of} killed ({killed / of:.0%})")
    return 0 if killed / of >= options.share else 1


if __name__ == "__main__":
    sys.exit(main())
