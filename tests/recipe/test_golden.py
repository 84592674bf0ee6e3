"""The resolved configuration of every recipe as a text file, so that a changed hyper-parameter shows as a diff.

After a change that is meant: OPENAFM_WRITE_GOLDEN=1 pytest tests/recipe/test_golden.py, and read `git diff`.
"""

import os
from pathlib import Path

import pytest
import yaml

from openafm.recipe.recipe import Recipe, load
from openafm.recipe.source import SHIPPED, recipes

GOLDEN = Path(__file__).parent / "golden"
NAMES = [path.relative_to(SHIPPED[1]).with_suffix("").as_posix() for path in recipes(SHIPPED[1])]


def resolved(recipe: Recipe) -> str:
    """Every step with its stage, its inputs and all of its config, defaults written out."""
    head = yaml.safe_dump({"name": recipe.name, "seed": recipe.seed}, sort_keys=False)
    steps = []
    for step in recipe.steps.values():
        told = {"run": step.stage, "inputs": step.inputs, "with": step.config.model_dump(mode="json")}
        told |= {"seed": step.seed} if step.seed != recipe.seed else {}
        steps.append(yaml.safe_dump({step.name: told}, sort_keys=False, width=120, allow_unicode=True))
    return "\n".join([head, *steps])


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_configuration_is_the_kept_one(name):
    path, found = GOLDEN / f"{name}.yaml", resolved(load(name))
    if os.environ.get("OPENAFM_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert path.exists() and found == path.read_text(), f"{name} changed: {__doc__}"


def test_every_kept_file_has_a_recipe():
    assert {path.relative_to(GOLDEN).with_suffix("").as_posix() for path in GOLDEN.rglob("*.yaml")} == set(NAMES)


def test_the_reports_numbers_are_in_the_recipes():
    """arXiv 2407.21075, section 3.2, as far as it gives numbers: tokens, steps of warm-up, floor, decay, RoPE base."""
    from openafm.model.presets import PRESETS
    from openafm.pretraining.rope import rebase

    device, server = load("afm-on-device").steps, load("afm-server").steps
    for step, tokens, length, warm_steps, lr in [
        (device["distil"], 6.3e12, 4096, 5000, 0.01), (server["core"], 6.3e12, 4096, 5000, 0.01),
        (device["continued"], 1e12, 8192, 1000, 3e-4), (server["long"], 1e11, 32_768, 1000, 3e-4),
    ]:  # fmt: skip
        config = step.config
        assert (config.tokens, config.sequence_length, config.lr) == (tokens, length, lr)
        assert config.batch_tokens == 4096 * 4096
        assert config.warmup * config.tokens / config.batch_tokens == pytest.approx(warm_steps, rel=1e-3)
    assert device["sft"].config.lr == 2e-5 and server["sft"].config.lr == 5e-6
    assert device["tokenizer"].config.vocab_size == 49_152 and server["tokenizer"].config.vocab_size == 100_352
    assert round(rebase(device["teacher"].config.shape.rope_base, 8192, 32_768)) == 6_315_089
    assert device["masks"].config.keep == PRESETS["afm-on-device"].d_ff
    for step, preset in ((device["teacher"], "afm-teacher"), (server["core"], "afm-server")):
        assert step.config.shape.model_dump().items() <= PRESETS[preset].model_dump().items()
    assert not {"prune", "teacher", "distil"} & server.keys()


def test_the_dial_gives_width_heads_layers_tokens_and_batch():
    small, large = (load("sized", [f"size={size}"]).steps for size in ("1M", "27M"))
    for name in ("teacher", "scratch"):
        a, b = small[name].config, large[name].config
        assert (b.shape.d_model, b.shape.n_layers, b.shape.n_heads) == (512, 8, 8)
        assert a.lr == b.lr and a.base_width == b.base_width == 128
        assert a.tokens < b.tokens and a.batch_tokens < b.batch_tokens
    assert large["masks"].config.keep == large["scratch"].config.shape.d_ff == 1536
    assert large["distil"].config.tokens == large["teacher_tokens"].config.tokens
    assert large["continued"].config.tokens == pytest.approx(0.16 * large["distil"].config.tokens, rel=0.01)
    set_by_hand = load("sized", ["size=27M", "teacher.tokens=1000", "teacher.shape.n_layers=3"]).steps["teacher"].config
    assert (set_by_hand.tokens, set_by_hand.shape.n_layers, set_by_hand.shape.d_model) == (1000, 3, 512)
    with pytest.raises(ValueError, match="not on the dial: 1M, 7M"):
        load("sized", ["size=2M"])
