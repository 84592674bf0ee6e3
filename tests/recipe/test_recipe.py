"""Recipes: what is read out of the YAML, and that each mistake names its line and the remedy."""

from pathlib import Path

import pytest

from openafm.recipe import recipe as recipes
from openafm.recipe import source, steps
from openafm.recipe.recipe import load
from openafm.recipe.steps import signature

STAGES = {"make": ("recipe_toys:make", "makes"), "use": ("recipe_toys:use", "uses")}
TOYS = """
from pathlib import Path
from pydantic import field_validator
from openafm.stage import Config, Context

class Shape(Config):
    width: int = 8
    rate: float = 0.1

class MakeConfig(Config):
    tokens: int = 10
    shape: Shape | None = None
    mixture: dict[str, float] = {}
    languages: list[str] = []

    @field_validator("tokens")
    @classmethod
    def positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("tokens must be positive")
        return value

def make(config: MakeConfig, context: Context) -> None: ...
def use(config: MakeConfig, context: Context, *, first: Path, more: dict[str, Path] | None = None) -> None: ...
"""
BASE = """\
name: base
seed: 1
defaults:
  make: {languages: [no, en]}
steps:
  b:
    run: use
    seconds: 2
    inputs:
      first: a/models/x
    with:
      tokens: 1_000
      shape: {width: 16, rate: 1e-3}
  a:
    run: make
    with:
      tokens: 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "recipe_toys.py").write_text(TOYS)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/base.yaml").write_text(BASE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "recipes"
    signature.cache_clear()


def write(folder: Path, text: str, name: str = "mine") -> str:
    (folder / f"{name}.yaml").write_text(text)
    return f"recipes/{name}.yaml"


def test_steps_are_typed_and_ordered_by_their_inputs(folder):
    recipe = load("base", stages=STAGES)
    assert list(recipe.steps) == ["a", "b"]
    b = recipe.steps["b"].config.model_dump()
    assert b["tokens"] == 1000 and b["shape"] == {"width": 16, "rate": 0.001}
    assert recipe.steps["a"].config.model_dump()["languages"] == ["no", "en"], "no is Norwegian, not false"
    assert recipe.steps["b"].config.model_dump()["languages"] == [], "defaults are per stage"
    assert recipe.followers("a") == {"a", "b"}


def test_a_star_is_every_other_step_of_the_recipe(folder):
    mine = write(
        folder,
        "extends: base\nname: mine\nsteps:\n  late: {run: make}\n  all: {run: use, inputs: {first: a, more: '*'}}\n",
    )
    recipe = load(mine, stages=STAGES)
    assert recipe.steps["all"].inputs["more"] == {"a": "a", "b": "b", "late": "late"}
    assert list(recipe.steps)[-1] == "all"
    with pytest.raises(ValueError, match="must be a step's name"):
        load(
            write(folder, "extends: base\nname: mine\nsteps:\n  all: {run: use, inputs: {first: '*'}}\n"), stages=STAGES
        )


def test_patterns_are_groups_of_the_steps_they_fit(folder):
    steps = "  ab: {run: make}\n  ac: {run: make}\n  d: {run: make}\n"
    head = "extends: base\nname: mine\nsteps:\n" + steps
    recipe = load(write(folder, head + "  all: {run: use, inputs: {first: a, more: [ab*, ac*, d*]}}\n"), stages=STAGES)
    assert recipe.steps["all"].inputs["more"] == {"ab": "ab", "ac": "ac", "d": "d"}
    with pytest.raises(ValueError, match=r"mine.yaml:7: steps.all.inputs.more: must be a mapping .* or a pattern"):
        load(write(folder, head + "  all: {run: use, inputs: {first: a, more: x*}}\n"), stages=STAGES)


def test_a_matrix_stands_for_a_step_of_each_combination(folder):
    recipe = load(
        write(
            folder,
            """extends: base
name: mine
steps:
  c:
    matrix: {rate: [0.5, 1e-3], seed: [4, 5]}
    run: use
    seed: $seed
    inputs: {first: d-$seed/models/x}
    with: {tokens: $seed, shape: {rate: $rate}, languages: [l$seed]}
  d: {matrix: {seed: [4, 5]}, run: make, seed: $seed}
""",
        ),
        stages=STAGES,
    )
    assert set(recipe.steps) == {"a", "b", "c-0.5-4", "c-0.5-5", "c-0.001-4", "c-0.001-5", "d-4", "d-5"}
    made = recipe.steps["c-0.001-5"]
    assert (made.seed, recipe.steps["a"].seed, made.inputs) == (5, 1, {"first": "d-5/models/x"})
    config = made.config.model_dump()
    assert (config["tokens"], config["shape"]["rate"], config["languages"]) == (5, 0.001, ["l5"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{matrix: [1], run: make}", r"mine.yaml:4: steps.c.matrix: a matrix is a mapping of names to lists"),
        ("{matrix: {seed: 1}, run: make}", r"mine.yaml:4: steps.c.matrix.seed: must be a list"),
        ("{matrix: {seed: [1, 1]}, run: make}", r"mine.yaml:4: steps.c.matrix.seed: names a value twice"),
        ("{matrix: {seed: [1]}, run: make, seed: $sed}", r"mine.yaml:4: steps.c.seed: '\$sed' names no value .*\$seed"),
        (
            "{matrix: {seed: [1]}, run: make,\n    with: {tokns: $seed}}",
            r"mine.yaml:5: steps.c-1.with.tokns: unknown key",
        ),
    ],
)
def test_a_mistake_in_a_matrix_names_its_line(folder, body, message):
    with pytest.raises(ValueError, match=message):
        load(write(folder, f"extends: base\nname: mine\nsteps:\n  c: {body}\n"), stages=STAGES)


def test_an_alias_of_a_merged_mapping_may_be_merged_again(folder):
    """The second alias meets a node that the first one has already flattened."""
    text = BASE.replace("    with:\n      tokens: 3", "    with: &one {<<: {tokens: 4}, tokens: 5}") + (
        "  c: {run: make, with: &two {<<: *one, mixture: {web: 1}}}\n  d: {run: make, with: {<<: *two, tokens: 6}}\n"
    )
    found = load(write(folder, text), stages=STAGES).steps
    assert [found[name].config.model_dump()["tokens"] for name in "acd"] == [5, 5, 6]
    assert found["d"].config.model_dump()["mixture"] == {"web": 1.0}


def test_extends_merges_and_null_removes(folder):
    write(folder, BASE + "  c: {run: use, inputs: {first: a, more: {one: a, two: b}}}\n", "large")
    mine = write(folder, "extends: large\nname: mine\nsteps:\n  b: {with: {shape: {width: 32}}}\n  c: null\n")
    recipe = load(mine, stages=STAGES)
    assert recipe.name == "mine" and list(recipe.steps) == ["a", "b"]
    assert recipe.steps["b"].config.model_dump()["shape"] == {"width": 32, "rate": 0.001}
    assert load("large", stages=STAGES).steps["c"].references() == {"first": "a", "more.one": "a", "more.two": "b"}


def test_set_overrides_by_full_and_by_short_path(folder):
    recipe = load(
        "base", ["seed=7", "b.tokens=5", "b.shape.rate=2e-2", "steps.a.seconds=9", "a.mixture={web: 1}"], STAGES
    )
    assert recipe.seed == 7 and recipe.steps["a"].seconds == 9
    assert recipe.steps["b"].config.model_dump()["shape"] == {"width": 16, "rate": 0.02}
    assert recipe.steps["a"].config.model_dump()["mixture"] == {"web": 1.0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokens: 1_000", "tokenz: 5", r"mine.yaml:12: steps.b.with.tokenz: unknown key; did you mean 'tokens'\?"),
        ("{width: 16,", "{widht: 16,", r"mine.yaml:13: steps.b.with.shape.widht: unknown key; did you mean 'width'"),
        ("tokens: 3", "tokens: many", r"mine.yaml:17: steps.a.with.tokens: .*valid integer.*'many'"),
        ("tokens: 3", "tokens: 0", r"mine.yaml:17: steps.a.with.tokens: tokens must be positive \(given: 0\)"),
        ("[no, en]", "[no, 5]", r"mine.yaml:4: defaults.make.languages.1: .*valid string"),
        ("run: use", "run: us", r"mine.yaml:7: steps.b.run: no stage called 'us'; did you mean 'use'"),
        ("    run: use\n", "", r"mine.yaml:6: steps.b: 'run' is missing"),
        ("first: a/models/x", "frist: a", r"mine.yaml:10: steps.b.inputs.frist: unknown key; did you mean 'first'"),
        (
            "first: a/models/x",
            "first: aa",
            r"mine.yaml:10: steps.b.inputs.first: no step called 'aa'; did you",
        ),
        (
            "first: a/models/x",
            "more: {x: a}",
            r"mine.yaml:9: steps.b.inputs: input 'first' is missing: add",
        ),
        ("first: a/models/x", "first: {x: a}", r"mine.yaml:10: steps.b.inputs.first: must be a step's name"),
        ("first: a/models/x", "first: a/../b", r"mine.yaml:10: .*leaves the artifact of a"),
        ("first: a/models/x", "first: b", r"mine.yaml:6: steps.b: these steps wait for each other: b"),
        ("seconds: 2", "seconds: soon", r"mine.yaml:8: steps.b.seconds: must be a number, not 'soon'"),
        ("seed: 1", "sed: 1", r"mine.yaml:2: sed: unknown key; did you mean 'seed'"),
        ("seed: 1", "seed: 1\nseed: 2", r"mine.yaml:3: seed: given twice"),
        ("name: base", "name: a/b", r"mine.yaml:1: name: 'a/b' cannot name"),
        ("name: base\n", "", r"mine.yaml:1: 'name' is missing"),
        ("seed: 1", "seed: [1", r"mine.yaml:3: not valid YAML"),
        ("seed: 1", "extends: mine", r"mine.yaml: extends itself"),
        ("seed: 1", "extends: bas", r"no recipe called 'bas'; known recipes: .*base, .*mine"),
    ],
)
def test_a_mistake_names_its_line_and_the_remedy(folder, old, new, message):
    assert old in BASE
    with pytest.raises(ValueError, match=message):
        load(write(folder, BASE.replace(old, new)), stages=STAGES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("b.tokenz=1", r"--set b.tokenz=1: steps.b.with.tokenz: unknown key; did you mean 'tokens'"),
        ("c.tokens=1", r"--set c.tokens=1: c: unknown key"),
        ("steps.c.with.tokens=1", r"--set steps.c.with.tokens=1: steps.c: 'run' is missing"),
        ("b.tokens=[", r"--set b.tokens=\[: '\[' is not a YAML value"),
        ("seed", r"--set seed: write it as --set key=value"),
    ],
)
def test_a_wrong_override_is_named(folder, override, message):
    with pytest.raises(ValueError, match=message):
        load("base", [override], STAGES)


def test_errors_in_the_extended_file_name_that_file(folder):
    write(folder, BASE.replace("tokens: 3", "tokns: 3"), "wrong")
    with pytest.raises(ValueError, match=r"recipes/wrong.yaml:17: steps.a.with.tokns"):
        load(write(folder, "extends: wrong\nname: mine\n"), stages=STAGES)


def test_anchors_merge_keys(folder):
    text = BASE.replace("    with:\n      tokens: 3", "    with: {<<: {tokens: 4}, mixture: {web: 1}}")
    assert load(write(folder, text), stages=STAGES).steps["a"].config.model_dump()["tokens"] == 4


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("{run: pretrain, inputs: {shards: s, tokenizer: s}, with: {shape: {d_model: 8}, MIXTURE}}", 5),
        ("{run: learn_masks, inputs: {model: s, shards: s}, with: {MIXTURE}}", 5),
        ("{run: cache_teacher, inputs: {model: s, shards: s}, with: {MIXTURE}}", 5),
    ],
)
def test_licensed_texts_are_for_later_stages_and_the_mixtures_line_is_named(folder, step, line):
    mixture = "\n      mixture: {web: 1, licensed: 0.1}"
    text = f"name: mine\nsteps:\n  s: {{run: fetch}}\n  core: {step.replace('MIXTURE', mixture)}\n"
    where = rf"mine.yaml:{line}: steps.core.with.mixture: a core mixture draws on licensed, .*stages 2 and 3"
    with pytest.raises(ValueError, match=where):
        load(write(folder, text))
    load(write(folder, text.replace("licensed: 0.1", "licensed: 0")))
    later = "{run: pretrain, inputs: {shards: s, tokenizer: s, model: s}, with: {MIXTURE}}"
    load(write(folder, text.replace(step.replace("MIXTURE", mixture), later.replace("MIXTURE", mixture))))


def test_every_stage_of_the_table_has_a_signature_and_every_recipe_loads():
    for name, (target, summary) in steps.STAGES.items():
        assert signature(target).config.model_fields is not None and summary, name
    for path in source.recipes(Path(source.__file__).parents[3] / "recipes"):
        assert recipes.load(str(path)).steps, path


def test_a_steps_parallelism_is_laid_over_the_recipes(tmp_path):
    from openafm.recipe.recipe import load
    from openafm.recipe.status import blank_manifest
    from openafm.stage import Hardware, Parallelism

    plain = load("tiny")
    given = ["parallelism.tensor=2", "steps.long.parallelism={context: 4, recompute: true}"]
    recipe = load("tiny", given)
    assert recipe.steps["teacher"].parallelism == Parallelism(tensor=2)
    assert recipe.steps["long"].parallelism == Parallelism(tensor=2, context=4, recompute=True)
    keys = {
        blank_manifest(one.steps["fetch"], Hardware(), {}).key for one in (plain, recipe)
    }  # another arrangement leaves what is current current
    assert len(keys) == 1 and plain.digest() == recipe.digest()
    with pytest.raises(ValueError, match="unknown key; did you mean 'shard'"):
        load("tiny", ["parallelism.shards=2"])
