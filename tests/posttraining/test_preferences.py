import random
from collections import Counter

from openafm import jsonl
from openafm.posttraining.examples import question
from openafm.posttraining.preferences import PreferencesConfig, corruptions, judge, preferences, swap_some
from openafm.scoring import checks

CONFIG = PreferencesConfig(prompts=60, heldout_prompts=12, answers=2, label_noise=0.2, max_tokens=8)


def test_pairs_are_judged_split_by_prompt_and_noisy_in_training_only(model, examples, context, same_files):
    step, again = context("one"), context("two")
    metrics = preferences(CONFIG, step, model=model, examples=examples)
    pairs = {split: jsonl.read(step.out / f"{split}.jsonl") for split in ("train", "heldout")}
    assert not {question(p) for p in pairs["train"]} & {question(p) for p in pairs["heldout"]}
    assert all(checks.margin(p["grades_chosen"], p["grades_rejected"]) == p["margin"] > 0 for p in pairs["heldout"])
    swapped = [checks.margin(p["grades_chosen"], p["grades_rejected"]) < 0 for p in pairs["train"]]
    assert 0.08 < sum(swapped) / len(swapped) < 0.35
    assert min(metrics["train"]["strengths"].values()) > 5
    assert "negligible" in metrics["mapping"]
    preferences(CONFIG, again, model=model, examples=examples)
    same_files(step.out, again.out)


def test_a_better_answer_is_chosen_whichever_comes_first():
    example = {"id": "1", "task": "addition", "messages": [], "answer": "7", "check": {"kind": "number", "answer": "7"}}
    right = judge(example, "8", "7")
    assert (right["chosen"], right["rejected"]) == ("7", "8")
    assert right == judge(example, "7", "8")
    assert judge(example, "8", "9") is None


def test_corruptions_differ_from_the_answer_and_reach_all_grades():
    seen = Counter()
    example = {"id": "1", "answer": "12, 15, 18", "check": {"kind": "list", "answer": "12, 15, 18"}}
    for seed in range(200):
        made = corruptions(example["answer"], random.Random(seed))
        assert len(made) == 2
        assert example["answer"] not in made
        for text in made:
            seen.update(enumerate(checks.grades(example, text)))
    assert {grade for dimension, grade in seen if dimension == 2} == {0, 1, 2}
    assert {grade for dimension, grade in seen if dimension == 3} >= {0, 2}
    assert len(corruptions("x", random.Random(0))) == 2


def test_swapping_moves_grades_with_answers():
    pair = {"chosen": "a", "rejected": "b", "grades_chosen": [2] * 4, "grades_rejected": [0] * 4}
    swap_some([pair], 1.0, random.Random(0))
    assert pair == {"chosen": "b", "rejected": "a", "grades_chosen": [0] * 4, "grades_rejected": [2] * 4}
