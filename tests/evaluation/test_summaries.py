import numpy as np
import pytest

from openafm.evaluation.summaries import _prompts, gain


def test_the_gain_is_of_means_and_its_interval_is_paired():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0.1, 0.9, 200)
    found = gain(1.5 * theirs, theirs, 0)  # everywhere half as much again: no spread at all in the ratio
    assert found["gain"] == pytest.approx(0.5) and found["gain_interval"] == pytest.approx([0.5, 0.5])
    low, high = gain(theirs + rng.normal(0, 0.1, 200), theirs, 0)["gain_interval"]
    assert low < 0 < high
    assert gain(theirs, np.zeros(200), 0) == {"gain": None, "gain_interval": None}


def test_the_three_prompts():
    def example(kind, text, answer):
        return {"kind": kind, "messages": [{"role": "user", "content": f"Sum up: {text}"}], "answer": answer}

    shown = [example("mails", "w " * 70, "too long"), example("mails", "m", "M"), example("synopses", "s", "S")]
    prompts = _prompts([example("mails", "text\n\nmore", "T")], shown)
    assert prompts["task"] == [[{"role": "user", "content": "Sum up: text\n\nmore"}]]
    assert prompts["plain"][0][0]["content"].startswith("text\n\nmore\n\nWrite a summary")
    assert [turn["content"] for turn in prompts["examples"][0]] == [
        "Sum up: m", "M", "Sum up: s", "S", "Sum up: text\n\nmore",
    ]  # fmt: skip
