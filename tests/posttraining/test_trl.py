"""Losses and gradients of DPO, IPO, RLOO, GRPO and PPO's surrogate on the same model and batch as TRL's trainers.

TRL comes with the extra `bench`.
"""

import pytest
import torch

from openafm.model.checkpoint import load_model
from openafm.posttraining.baselines import baseline_step, token_values
from openafm.posttraining.direct import DirectConfig, direct_loss, with_reference
from openafm.posttraining.examples import answer_row, collate
from openafm.posttraining.policy import token_log_probs
from openafm.serving.exporting import export
from openafm.stage import Hardware
from openafm.training.alignment import (
    clipped_surrogate,
    leave_one_out_advantage,
    sequence_log_probs,
    standardised_advantage,
)

trl = pytest.importorskip("trl", reason="no TRL: pip install -c constraints.txt trl (extra `bench`)")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

PROMPT = list(range(5, 12))
ANSWERS = [[20, 30, 40, 2], [21, 31, 2], [20, 33, 44, 45, 46, 2], [9, 2]]
ARGUMENTS = {"use_cpu": True, "report_to": "none", "bf16": False, "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export(model, folder, "hf", None, "f32", None)
    return folder


def opened(exported):
    return transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)


@pytest.fixture
def shaken(model, exported):
    """The policy: the reference with its weights moved, ours and as transformers' class."""
    ours, theirs = load_model(model), opened(exported)
    generator = torch.Generator().manual_seed(0)
    others = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator)
            others[name].copy_(parameter)
    return ours, theirs


@pytest.fixture(scope="module")
def words():
    """A tokenizer for the trainers, which ask for one; the batches are made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    fast = Tokenizer(models.WordLevel({f"w{i}": i for i in range(420)}, unk_token="w3"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="w0", eos_token="w2", unk_token="w3")


def padded(rows, value, left=False):
    longest = max(map(len, rows))
    return torch.tensor([[value] * (longest - len(r)) + r if left else r + [value] * (longest - len(r)) for r in rows])


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def agree(ours, theirs):
    """The same gradient of every weight, to float32's last places."""
    mine, other = gradients(ours), gradients(theirs)
    assert len(mine) == len(other) > 10
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, other[name], rtol=2e-3, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("ours_name", "trl_name"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_dpo_and_ipo_are_trls(model, exported, shaken, words, tmp_path, ours_name, trl_name):
    ours, theirs = shaken
    chosen, rejected = ANSWERS[:2], ANSWERS[2:]
    pairs = [{"prompt": PROMPT, "chosen": c, "rejected": r} for c, r in zip(chosen, rejected, strict=True)]
    batch = collate(with_reference(load_model(model), pairs, Hardware()))
    loss = direct_loss(ours.eval(), batch, DirectConfig(loss=ours_name, beta=0.3)).loss
    loss.backward()

    trainer = trl.DPOTrainer(
        model=theirs,
        ref_model=opened(exported),
        args=trl.DPOConfig(output_dir=str(tmp_path), beta=0.3, loss_type=[trl_name], disable_dropout=True, **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list([{"prompt": "w5", "chosen": " w6", "rejected": " w7"}]),
        processing_class=words,
    )
    sequences = [PROMPT + answer for answer in chosen + rejected]
    inputs = {
        "input_ids": padded(sequences, 0),
        "attention_mask": padded([[1] * len(s) for s in sequences], 0),
        "completion_mask": padded([[0] * len(PROMPT) + [1] * (len(s) - len(PROMPT)) for s in sequences], 0),
    }
    other = trainer._compute_loss(trainer.model, inputs, False)
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    agree(ours, theirs)


def sampled(model):
    """Four answers to one prompt, drawn from the unshaken model: our batch, and TRL's."""
    pairs = [(PROMPT, answer) for answer in ANSWERS]
    old = token_log_probs(load_model(model), pairs, Hardware())
    completions = {
        "prompt_ids": torch.tensor([PROMPT] * 4),
        "prompt_mask": torch.ones(4, len(PROMPT), dtype=torch.int64),
        "completion_ids": padded(ANSWERS, 0),
        "completion_mask": padded([[1] * len(a) for a in ANSWERS], 0),
    }
    return pairs, old, completions


def rloo_trainer(theirs, words, folder):
    """TRL's RLOO."""
    return trl.RLOOTrainer(
        model=theirs,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.RLOOConfig(output_dir=str(folder), num_generations=4, per_device_train_batch_size=4, **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list([{"prompt": "w5"}] * 4),
        processing_class=words,
    )


def test_rloo_is_trls(model, shaken, words, tmp_path):
    """On its own samples our plain gradient is TRL's; on older ones TRL clips, as `clipped_surrogate` does."""
    ours, theirs = shaken
    rewards = torch.tensor([[1.0, 0.0, -0.5, 2.0]])
    advantages = leave_one_out_advantage(rewards).flatten()
    pairs, old, completions = sampled(model)
    trainer = rloo_trainer(theirs, words, tmp_path)
    trainer.model.eval()
    own = torch.tensor([sum(values) for values in token_log_probs(ours, pairs, Hardware())])
    batch = collate([answer_row(*pair) for pair in pairs]) | {"advantages": advantages, "old_log_probs": own}
    baseline_step(ours, batch, "rloo", clip=0.2, beta=0.0).loss.backward()
    trainer._compute_loss(trainer.model, completions | {"old_logps": own, "advantages": advantages}).backward()
    agree(ours, theirs)

    before = torch.tensor([sum(values) for values in old])
    loss = clipped_surrogate(
        sequence_log_probs(ours(batch["inputs"]), batch["targets"]), before, advantages, 0.2
    ).mean()
    loss.backward()
    other = trainer._compute_loss(trainer.model, completions | {"old_logps": before, "advantages": advantages})
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-4)
    agree(ours, theirs)


@pytest.mark.parametrize(("algorithm", "trl_name", "beta"), [("grpo", "grpo", 0.3), ("ppo", "bnpo", 0.0)])
def test_grpo_and_ppos_surrogate_are_trls(model, shaken, words, tmp_path, algorithm, trl_name, beta):
    """TRL's loss `bnpo` is the clipped surrogate as a mean over all tokens; its PPO trainer has a critic.

    By default TRL weighs GRPO's KL by the ratio (arXiv 2512.02556), which the paper of GRPO does not: it is off here.
    """
    ours, theirs = shaken
    advantages = standardised_advantage(torch.tensor([[1.0, 0.0, -0.5, 2.0]])).flatten()
    pairs, old, completions = sampled(model)
    rows = [
        answer_row(*pair) | token_values(PROMPT, own, own) | {"advantages": a, "old_log_probs": sum(own)}
        for pair, own, a in zip(pairs, old, advantages.tolist(), strict=True)
    ]
    loss = baseline_step(ours, collate(rows), algorithm, clip=0.2, beta=beta).loss
    loss.backward()
    trainer = trl.GRPOTrainer(
        model=theirs,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), num_generations=4, per_device_train_batch_size=4, loss_type=trl_name, beta=0.0,
            epsilon=0.2, use_bias_correction_kl=False, **ARGUMENTS,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "w5"}] * 4),
        processing_class=words,
    )  # fmt: skip
    trainer.beta = beta  # with a beta of its own the trainer would load the reference again, by name
    trainer.model.eval()
    before = padded([list(values) for values in old], 0.0)
    inputs = completions | {"old_per_token_logps": before, "ref_per_token_logps": before, "advantages": advantages}
    other = trainer._compute_loss(trainer.model, inputs)
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-4)
    agree(ours, theirs)
