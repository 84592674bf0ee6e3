"""What draws answers and what learns from them agree on every token's log-probability; and memory stays as it is."""

import gc
import logging
import shutil

import numpy as np
import psutil
import pytest
import torch

from openafm import jsonl
from openafm.engine.native_engine import missing
from openafm.model.checkpoint import load_model, save_model
from openafm.posttraining.mdloo import MdlooConfig, mdloo
from openafm.posttraining.policy import Policy, token_log_probs
from openafm.posttraining.reward import RewardModel
from openafm.sampling.opening import open_sampler
from openafm.stage import Hardware
from openafm.tokenizer import load as load_tokenizer

ENGINES = [
    pytest.param("torch", 1e-4, id="torch"),
    pytest.param("native", 2e-2, id="native",
                 marks=pytest.mark.skipif(missing() is not None, reason="the native engine is not built")),
]  # fmt: skip
"""Samplers, and how far their log-probabilities may be off, in nats; the native engine keeps weights in 16 bits."""
TINY = MdlooConfig(iterations=3, prompts=4, samples=4, steps=3, answers_per_batch=16, lr=0.01, max_tokens=4)


@pytest.fixture(scope="module")
def reward(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    RewardModel(load_model(model), seed=2).save(folder, tokenizer=model)
    return folder


def drawn(folder, engine, examples):
    """Prompts and answers as a sampler of this folder draws them, with its log-probabilities."""
    problems = jsonl.read(examples / "train.jsonl")[:24]
    sampler, tokenizer = open_sampler(str(folder), engine=engine), load_tokenizer(folder)
    found = sampler.sample([p["messages"] for p in problems], max_tokens=8, seed=1)
    prompts = [tokenizer.render_chat(p["messages"], add_generation_prompt=True) for p in problems]
    pairs = [(prompt, one.tokens) for prompt, (one,) in zip(prompts, found, strict=True) if one.tokens]
    return pairs, [one.logprobs[: len(one.tokens)] for (one,) in found if one.tokens]


def worst(model, pairs, logprobs):
    """The largest difference of any token between a sampler and the trainer."""
    own = token_log_probs(model, pairs, Hardware())
    return max(np.abs(np.subtract(a, b)).max() for a, b in zip(own, logprobs, strict=True))


@pytest.mark.parametrize(("engine", "bound"), ENGINES)
def test_sampler_and_trainer_agree_before_and_after_a_refresh(
    model, examples, reward, context, tmp_path, engine, bound
):
    """The refresh is by file: what training has written is opened in place of what was sampled from."""
    served = tmp_path / "served"
    shutil.copytree(model, served)
    before, pairs = Policy.load(model), drawn(served, engine, examples)
    assert worst(before.model, *pairs) < bound
    step = context()
    mdloo(TINY, step, model=model, reward=reward, examples=examples)
    after = Policy.load(step.out)
    assert worst(after.model, *pairs) > 10 * bound  # the weights have moved: what was drawn before is stale
    save_model(after.model, served, tokenizer=model)
    pairs = drawn(served, engine, examples)
    assert worst(after.model, *pairs) < bound
    assert worst(before.model, *pairs) > 10 * bound


def test_memory_does_not_grow_by_the_step(model, examples, reward, context):
    """From the 4th iteration to the 12th: no more tensors, few more objects, and the process within 48 MB."""
    step, held, process = context(), {}, psutil.Process()

    def report(label, done, total):
        if label.endswith("answers") and done == 0:
            gc.collect()
            objects = gc.get_objects()
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in objects)
            held[int(label.split()[1])] = (tensors, len(objects), process.memory_info().rss)

    step.report = report
    config = TINY.model_copy(update={"iterations": 12, "steps": 1, "lr": 1e-4})
    logging.disable(logging.DEBUG)  # torch tells of each checkpoint, and pytest keeps it all
    try:
        mdloo(config, step, model=model, reward=reward, examples=examples)
    finally:
        logging.disable(logging.NOTSET)
    (tensors, objects, resident), (tensors_later, objects_later, resident_later) = held[4], held[12]
    assert tensors_later == tensors
    assert objects_later - objects < 2_000  # the iterations' figures, kept for the end
    assert resident_later - resident < 48 << 20
