"""Preference pairs with four strengths and four graded dimensions, judged by programs (step `preferences`).

AFM report (arXiv 2407.21075), section 4.1.1 (human annotations: preference levels and single-sided grades). Answers
come from the SFT model, the reference, and corruptions of either, so that all strengths and grades occur. The judges
are the independent checks of `openafm.scoring.checks`; people's labels come in the same format.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.posttraining.examples import Row, write_json
from openafm.posttraining.policy import Policy
from openafm.scoring import checks
from openafm.stage import Config, Context, Metrics


class PreferencesConfig(Config):
    """How preference pairs are made."""

    prompts: int = 280
    """Training prompts."""
    heldout_prompts: int = 100
    """Held-out prompts: problems that no training set holds."""
    answers: int = 3
    """Answers sampled from the model for each prompt, beside the reference and two corruptions of one sampled."""
    pairs: int = 3
    """Most pairs kept of one prompt."""
    label_noise: float = 0.05
    """Share of training pairs whose two answers are swapped, as people would; held-out pairs carry no noise."""
    max_tokens: int = 24
    """Longest answer, in tokens; problems whose reference answer is longer are left out."""


def preferences(config: PreferencesConfig, context: Context, *, model: Path, examples: Path) -> Metrics:
    """Write `train.jsonl` and `heldout.jsonl` of preference pairs, split by prompt, and `mapping.json`."""
    policy = Policy.load(model)
    metrics: dict[str, Any] = {"mapping": checks.mapping()}
    for split, count in (("train", config.prompts), ("heldout", config.heldout_prompts)):
        rows = jsonl.read(examples / f"{split}.jsonl")
        problems = policy.problems(rows, count, config.max_tokens, f"{context.seed}/preferences")
        pairs = judged_pairs(policy, problems, config, context, split)
        if split == "train":
            swap_some(pairs, config.label_noise, random.Random(f"{context.seed}/noise"))
        jsonl.write(context.out / f"{split}.jsonl", pairs)
        metrics[split] = {"prompts": len(problems), "pairs": len(pairs), "strengths": strength_counts(pairs)}
    write_json(context.out / "mapping.json", metrics)
    counts = f"{metrics['train']['pairs']} pairs to train on, {metrics['heldout']['pairs']} held out"
    return {"headline": f"{counts}; {metrics['mapping']}", **metrics}


def judged_pairs(
    policy: Policy, problems: Sequence[Row], config: PreferencesConfig, context: Context, split: str
) -> list[Row]:
    """Answer, grade and pair; over all prompts, the rarer strengths are taken first."""
    repeated = [problem for problem in problems for _ in range(config.answers)]
    sampled = policy.answer(repeated, config.max_tokens, context, f"answers {split}")
    used: Counter[int] = Counter()
    pairs: list[Row] = []
    for index, problem in enumerate(problems):
        rng = random.Random(f"{context.seed}/corrupt/{problem['id']}")
        own = [answer.text for answer in sampled[index * config.answers : (index + 1) * config.answers]]
        # The model's own answers are made worse, right and wrong ones alike, so that manners say nothing of the truth;
        # the reference stands as it is, or wordy answers would be right more often than plain ones.
        spoiled = corruptions(rng.choice(own), rng)
        candidates = dict.fromkeys([*own, problem["answer"], *spoiled])
        found = [pair for one, two in combinations(candidates, 2) if (pair := judge(problem, one, two))]
        rng.shuffle(found)
        for _ in range(min(config.pairs, len(found))):
            rarest = min(found, key=lambda pair: used[pair["strength"]])
            found.remove(rarest)
            used[rarest["strength"]] += 1
            pairs.append({**rarest, "id": f"{problem['id']}/{len(pairs)}"})
    return pairs


def judge(problem: Row, one: str, two: str) -> Row | None:
    """Return the pair with its strength and both answers' grades; None where the checks see no difference."""
    graded = [checks.grades(problem, text) for text in (one, two)]
    margin = checks.margin(*graded)
    if margin == 0:
        return None
    first, second = (0, 1) if margin > 0 else (1, 0)
    return {
        "task": problem["task"],
        "messages": problem["messages"],
        "chosen": (one, two)[first],
        "rejected": (one, two)[second],
        "strength": checks.strength(abs(margin)),
        "grades_chosen": graded[first],
        "grades_rejected": graded[second],
        "margin": abs(margin),
    }


_WORDY = ("The answer is {}.", "Of course! I am very glad that you ask me, and the answer is: {}")
_FAULTS = ("Idiot, it is {}", "{} https://example.com", "{} Write to help@mail.example", "", "I do not know.")


def corruptions(answer: str, rng: random.Random) -> list[str]:
    """Two worse answers made of an answer: wordy, cut, with other digits, harmful or empty."""
    words = answer.split()
    made = [
        rng.choice(_WORDY).format(answer),
        " ".join(words[: len(words) // 2]) or answer[: len(answer) // 2],
        re.sub(r"\d", lambda digit: str((int(digit.group()) + rng.randint(1, 9)) % 10), answer),
        " ".join(rng.sample(words, len(words))),
        rng.choice(_FAULTS).format(answer),
    ]
    different = list(dict.fromkeys(text for text in made if text != answer))
    return rng.sample(different, min(2, len(different)))


def swap_some(pairs: list[Row], share: float, rng: random.Random) -> None:
    """Swap preferred and rejected in a share of the pairs, grades staying with their answers: a labeller's slip."""
    for pair in pairs:
        if rng.random() < share:
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
            pair["grades_chosen"], pair["grades_rejected"] = pair["grades_rejected"], pair["grades_chosen"]


def strength_counts(pairs: Sequence[Row]) -> dict[str, int]:
    """Pairs of each strength, by name."""
    counts = Counter(pair["strength"] for pair in pairs)
    return {name: counts[level] for level, name in enumerate(checks.STRENGTHS)}
