"""Advantages and losses of the baselines, against their formulas in plain Python."""

import math
from statistics import mean, stdev

import pytest
import torch

from openafm.posttraining.baselines import baseline_advantages, baseline_step

REWARDS = [[1.0, 0.0, -0.5], [2.0, 2.5, 4.0]]
PENALISED = [[0.7, 0.2, -1.5], [1.0, 2.75, 3.0]]  # another order of distances: no baseline may take one for the other
EVERY = [value for row in PENALISED for value in row]


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("rloo", [[a - (b + c) / 2, b - (a + c) / 2, c - (a + b) / 2] for a, b, c in PENALISED]),
        ("grpo", [[(r - mean(row)) / (stdev(row) + 1e-4) for r in row] for row in REWARDS]),
        ("ppo", [[(r - mean(EVERY)) / (stdev(EVERY) + 1e-4) for r in row] for row in PENALISED]),
    ],
)
def test_advantages_are_their_formulas(algorithm, expected):
    found = baseline_advantages(algorithm, torch.tensor(REWARDS), torch.tensor(PENALISED))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


CLIP, BETA, IGNORED = 0.2, 0.3, -100
LOGITS = [
    [[0.1, 0.9, -0.3], [0.4, -1.0, 0.2], [1.2, 0.3, 0.0], [-0.5, 0.5, 0.1]],
    [[0.0, 0.6, 0.2], [-0.2, 0.3, 0.8], [0.7, -0.4, 0.1], [0.2, 0.1, -0.9]],
    [[0.3, -0.8, 0.5], [0.6, 0.0, -0.1], [-0.3, 0.2, 0.4], [0.9, 0.8, -0.7]],
]
TARGETS = [[IGNORED, 0, 2, 1], [1, 0, IGNORED, IGNORED], [IGNORED, IGNORED, 1, IGNORED]]
OLD = [[0.0, -1.4, -1.6, -0.8], [-0.7, -1.0, 0.0, 0.0], [0.0, 0.0, -1.2, 0.0]]
REFERENCE = [[0.0, -0.6, -2.0, -1.3], [-1.5, -0.4, 0.0, 0.0], [0.0, 0.0, -0.9, 0.0]]
ADVANTAGES = [0.8, -1.1, 0.5]


def by_hand(algorithm, logits):
    """The papers' loss; and log pi_theta(y|x) of each answer."""
    answers, surrogates, pulls = [], [], []
    for row, targets in enumerate(TARGETS):
        a, logs, terms, distances = ADVANTAGES[row], [], [], []
        for scores, target, old, ref in zip(logits[row], targets, OLD[row], REFERENCE[row], strict=True):
            if target != IGNORED:
                log_pi = math.log(math.exp(scores[target]) / sum(map(math.exp, scores)))
                rho, quotient = math.exp(log_pi) / math.exp(old), math.exp(ref) / math.exp(log_pi)
                logs.append(log_pi)
                terms.append(-min(rho * a, min(max(rho, 1 - CLIP), 1 + CLIP) * a))
                distances.append(quotient - math.log(quotient) - 1)
        answers.append(sum(logs))
        surrogates.append(terms)
        pulls.append(distances)
    loss = {
        "rloo": -mean(a * log_pi for a, log_pi in zip(ADVANTAGES, answers, strict=True)),
        "ppo": mean(term for terms in surrogates for term in terms),
        "grpo": mean(mean(terms) + BETA * mean(pull) for terms, pull in zip(surrogates, pulls, strict=True)),
    }[algorithm]
    return loss, answers


@pytest.mark.parametrize(("algorithm", "weight"), [("rloo", 3), ("grpo", 3), ("ppo", 6)])
def test_losses_are_their_formulas_where_old_reference_and_policy_differ(algorithm, weight):
    """Some ratios are beyond the clip, on either side; gradients are central differences of the formula."""
    loss, answers = by_hand(algorithm, LOGITS)
    logits = torch.tensor(LOGITS, requires_grad=True)
    names = {"values_old": OLD, "values_reference": REFERENCE, "old_log_probs": [sum(row) for row in OLD]}
    batch = {name: torch.tensor(values) for name, values in names.items()}
    batch |= {"inputs": torch.zeros(3, 4), "targets": torch.tensor(TARGETS), "advantages": torch.tensor(ADVANTAGES)}
    output = baseline_step(lambda inputs: logits, batch, algorithm, CLIP, BETA)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5) and output.weight == weight
    ratios = [math.exp(new - sum(old)) for new, old in zip(answers, OLD, strict=True)]
    assert output.metrics == pytest.approx({"ratio": mean(ratios)}, rel=1e-5)
    output.loss.backward()
    for row, at, token in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(3)).tolist():
        moved = torch.tensor([LOGITS, LOGITS], dtype=torch.float64)
        moved[:, row, at, token] += torch.tensor([1e-6, -1e-6])
        up, down = (by_hand(algorithm, sides)[0] for sides in moved.tolist())
        assert logits.grad[row, at, token].item() == pytest.approx((up - down) / 2e-6, abs=1e-5)
