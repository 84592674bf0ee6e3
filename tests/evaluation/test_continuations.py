import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.evaluation.continuations import ANSWER, CHOICES, CONTEXT, NEAR, accuracy, questions
from openafm.model.checkpoint import load_model


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 6000), st.integers(1, 60), st.integers(0, 5))
def test_the_first_piece_is_the_texts_own_and_the_others_stand_near_and_apart(length, count, seed):
    tokens = np.arange(length, dtype=np.uint16)  # a token tells its place
    asked = questions(tokens, count, seed)
    assert asked.shape[1:] == (CHOICES, CONTEXT + ANSWER) and len(asked) <= count
    for options in asked.tolist():
        at = options[0][CONTEXT]
        assert options[0] == list(range(at - CONTEXT, at + ANSWER))
        for option in options[1:]:
            start = option[CONTEXT]
            assert option == options[0][:CONTEXT] + list(range(start, start + ANSWER))
            assert abs(start - at) <= NEAR and (start + ANSWER <= at - CONTEXT or start >= at + ANSWER)
    if length > 3 * NEAR:
        assert len(asked) == count


def test_scores_are_the_sums_of_each_continuations_log_probabilities(world):
    """Against one forward pass an option, token by token."""
    model = load_model(world / "model")
    tokens = np.fromfile(world / "shards/heldout/web.bin", np.uint16)
    asked = questions(tokens, 12, 0)
    right = 0
    with torch.inference_mode():
        for options in asked:
            scores = []
            for option in options:
                log_probs = model(option[None]).log_softmax(-1)[0]
                scores.append(sum(float(log_probs[i - 1, option[i]]) for i in range(CONTEXT, CONTEXT + ANSWER)))
            right += scores.index(max(scores)) == 0
    found = accuracy(model, asked, together=5)
    assert (found.value, found.n) == (pytest.approx(right / len(asked)), len(asked))
