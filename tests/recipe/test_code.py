"""The code digest: what a stage's artifact can depend on, and nothing else."""

import sys

import pytest

from openafm.recipe import code

FILES = {
    "coded/__init__.py": "",
    "coded/lone.py": "x = 1",
    "coded/rooms/__init__.py": "",
    "coded/rooms/stage.py": "import json\nfrom coded import base\ndef run():\n    from coded.rooms.lazy import value",
    "coded/rooms/lazy.py": "from . import sibling\nvalue = 2",
    "coded/rooms/sibling.py": "",
    "coded/rooms/prompts/ask.jinja": "Is it good?",
    "coded/base.py": '"""Doc."""\nbase = 1',
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "coded"]:
        del sys.modules[name]


def digest() -> str:
    for cached in (code.code_digest, code._source, code._imports, code._meaning):
        cached.cache_clear()
    return code.code_digest("coded.rooms.stage")


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("coded/base.py", '"""Doc."""\nbase = 2', True),
        ("coded/base.py", '"""Other words."""\nbase  =  1  # why', False),
        ("coded/rooms/lazy.py", "from . import sibling\nvalue = 3", True),
        ("coded/rooms/sibling.py", "y = 0", True),
        ("coded/rooms/__init__.py", "y = 0", True),
        ("coded/rooms/prompts/ask.jinja", "Is it very good?", True),
        ("coded/lone.py", "x = 2", False),
    ],
)
def test_what_counts(package, file, text, counts):
    before = digest()
    assert digest() == before
    (package / file).write_text(text)
    assert (digest() != before) == counts


def test_a_stage_of_the_factory_reaches_what_it_imports():
    reached = code._reached("openafm.training.loop")
    assert {"openafm.training.losses", "openafm.stage", "openafm.training.checkpoints"} <= reached.keys()
    assert not any(name.startswith("openafm.recipe") for name in reached)
