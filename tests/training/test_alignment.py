import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from openafm.training import alignment

numbers = st.lists(st.floats(-4, 4), min_size=6, max_size=6)


def tensor(values, requires_grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=requires_grad)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def test_sequence_log_probs_multiply_token_probabilities():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[-100, -100, 3, 1, 6], [-100, 0, 2, -100, -100]])
    expected = []
    for row in range(2):
        probability = 1.0
        for step, token in enumerate(targets[row].tolist()):
            if token >= 0:
                weights = np.exp(logits[row, step].double().numpy())
                probability *= weights[token] / weights.sum()
        expected.append(np.log(probability))
    np.testing.assert_allclose(alignment.sequence_log_probs(logits, targets), expected, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(numbers, numbers, st.lists(st.sampled_from([0.65, 0.75, 0.85, 0.95]), min_size=6, max_size=6))
def test_preference_is_the_cross_entropy_of_soft_labels(chosen, rejected, target):
    p, q = np.array(target), sigmoid(np.array(chosen) - np.array(rejected))
    expected = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
    assert alignment.preference(tensor(chosen), tensor(rejected), tensor(target)).item() == pytest.approx(expected)


def test_preference_is_least_where_the_gap_is_the_targets_logit():
    p = np.array([0.65, 0.75, 0.85, 0.95])
    gap = tensor(np.log(p / (1 - p)), requires_grad=True)
    alignment.preference(gap, torch.zeros(4), tensor(p)).backward()
    np.testing.assert_allclose(gap.grad, 0, atol=1e-12)


def test_graded_reward_adds_eight_cross_entropies_a_pair():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 4, 3, generator=generator, dtype=torch.float64)
    grades = torch.randint(3, (3, 2, 4), generator=generator)
    chosen, rejected, target = tensor([0.1, 2, -1]), tensor([0.0, 1, 1]), tensor([0.65, 0.95, 0.75])
    nats = 0.0
    for pair, response, dimension in np.ndindex(3, 2, 4):
        scores = logits[pair, response, dimension].numpy()
        nats += np.log(np.exp(scores).sum()) - scores[grades[pair, response, dimension]]
    expected = alignment.preference(chosen, rejected, target).item() + 0.3 * nats / 3
    found = alignment.graded_reward(chosen, rejected, target, logits, grades, 0.3)
    assert found.item() == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(numbers, numbers, numbers, numbers, st.floats(0.05, 1))
def test_dpo_and_ipo_are_their_papers_formulas(chosen, rejected, chosen_ref, rejected_ref, beta):
    arrays = [np.array(x) for x in (chosen, rejected, chosen_ref, rejected_ref)]
    h = np.log(np.exp(arrays[0]) * np.exp(arrays[3]) / (np.exp(arrays[1]) * np.exp(arrays[2])))
    tensors = [tensor(x) for x in arrays]
    assert alignment.dpo(*tensors, beta).item() == pytest.approx(np.mean(-np.log(sigmoid(beta * h))), abs=1e-9)
    assert alignment.ipo(*tensors, beta).item() == pytest.approx(np.mean((h - 1 / (2 * beta)) ** 2), abs=1e-9)


def test_dpo_gradient_weighs_pairs_by_how_wrong_they_are():
    """arXiv 2305.18290, section 4: d loss / d log pi(chosen) = -beta s(-beta h) / pairs."""
    chosen = tensor([-1.0, -2.0], requires_grad=True)
    others = tensor([-1.5, -1.0]), tensor([-1.2, -2.0]), tensor([-1.0, -3.0])
    alignment.dpo(chosen, *others, 0.5).backward()
    h = (chosen - others[1]) - (others[0] - others[2])
    np.testing.assert_allclose(chosen.grad, -0.5 * sigmoid(-0.5 * h.detach().numpy()) / 2)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 999))
def test_leave_one_out_advantage_by_brute_force(samples, prompts, seed):
    rewards = np.random.default_rng(seed).normal(size=(prompts, samples))
    expected = [[row[i] - np.delete(row, i).mean() for i in range(samples)] for row in rewards]
    found = alignment.leave_one_out_advantage(torch.from_numpy(rewards))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)


def test_leave_one_out_needs_another_one():
    with pytest.raises(ValueError, match="samples"):
        alignment.leave_one_out_advantage(torch.zeros(3, 1))


def test_kl_penalty_carries_no_gradient():
    log_probs = tensor([-1.0, -2.0], requires_grad=True)
    reward = alignment.kl_penalised_reward(tensor([1.0, 0.0]), log_probs, tensor([-1.5, -1.0]), 0.1)
    np.testing.assert_allclose(reward, [1 - 0.1 * 0.5, 0.1 * 1.0])
    assert not reward.requires_grad


def test_policy_divergence_is_the_exact_kl_in_expectation():
    """Weighted by pi_k, the estimator's mean over all answers is KL(pi_theta || pi_k), term by term positive."""
    generator = np.random.default_rng(3)
    new, old = generator.dirichlet(np.ones(8)), generator.dirichlet(np.ones(8))
    pairs = zip(np.log(new), np.log(old), strict=True)
    terms = [alignment.policy_divergence(tensor([a]), tensor([b])).item() for a, b in pairs]
    assert min(terms) >= 0
    assert np.dot(old, terms) == pytest.approx((new * np.log(new / old)).sum())


def test_mdloo_gradient_is_the_policy_gradient_with_a_proximal_pull():
    """By the score-function identity: -mean(rho A grad log pi) + gamma mean(rho ln rho grad log pi)."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)  # answers, features
    old = torch.randn(6, 4, generator=generator, dtype=torch.float64) * 0.3 + weights.detach()
    features = torch.randn(4, generator=generator, dtype=torch.float64)
    drawn, advantages = [0, 3, 3, 5], tensor([0.7, -0.2, 0.4, -0.9])
    log_pi, log_old = (torch.log_softmax(w @ features, 0)[drawn] for w in (weights, old))
    alignment.mdloo(log_pi, log_old, advantages, 0.25).backward()

    scores = (weights.detach() @ features).numpy()
    pi = np.exp(scores) / np.exp(scores).sum()
    expected = np.zeros((6, 4))
    for index, answer in enumerate(drawn):
        rho = np.exp((log_pi - log_old)[index].item())
        grad_log_pi = np.outer(np.eye(6)[answer] - pi, features.numpy())
        expected += (-rho * advantages[index].item() + 0.25 * rho * np.log(rho)) * grad_log_pi / len(drawn)
    np.testing.assert_allclose(weights.grad, expected, atol=1e-12)


def test_mdloo_starts_as_reinforce_and_its_optimum_is_the_mirror_step():
    """At theta = k the gradient is -A / n; it vanishes where rho = exp(A / gamma), the tilt of arXiv 2005.09814."""
    old, advantages = tensor([-1.0, -2.0, -0.5]), tensor([0.3, -0.5, 0.1])
    start = old.clone().requires_grad_()
    alignment.mdloo(start, old, advantages, 0.2).backward()
    np.testing.assert_allclose(start.grad, -advantages / 3)
    best = (old + advantages / 0.2).requires_grad_()
    alignment.mdloo(best, old, advantages, 0.2).backward()
    np.testing.assert_allclose(best.grad, 0, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(2)
    a, b, c, d = (torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4))
    assert gradcheck(lambda x: alignment.mdloo(x, b.detach(), c.detach(), 0.3), (a,))
    assert gradcheck(lambda x, y: alignment.dpo(x, y, c, d, 0.2), (a, b))
    assert gradcheck(lambda x, y: alignment.ipo(x, y, c, d, 0.2), (a, b))


def test_token_log_probs_add_up_to_the_sequences():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[-100, -100, 3, 1, 6], [-100, 0, 2, -100, -100]])
    each = alignment.token_log_probs(logits, targets)
    assert (each[targets == -100] == 0).all() and (each[targets != -100] < 0).all()
    torch.testing.assert_close(each.sum(1), alignment.sequence_log_probs(logits, targets), rtol=0, atol=0)
    assert each[0, 2] == torch.log_softmax(logits[0, 2], 0)[3]


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 999))
def test_standardised_advantage_by_brute_force(samples, prompts, seed):
    rewards = np.random.default_rng(seed).normal(size=(prompts, samples))
    expected = [[(r - row.mean()) / (row.std(ddof=1) + 1e-4) for r in row] for row in rewards]
    np.testing.assert_allclose(alignment.standardised_advantage(torch.from_numpy(rewards)), expected, atol=1e-12)


def test_a_group_of_equal_rewards_teaches_nothing_and_one_sample_is_no_group():
    assert not alignment.standardised_advantage(torch.full((2, 3), 0.7)).any()
    with pytest.raises(ValueError, match="samples"):
        alignment.standardised_advantage(torch.zeros(3, 1))


def test_reinforce_in_expectation_is_the_gradient_of_the_expected_reward():
    """Over all answers, weighted by pi, -sum pi A grad log pi = -grad sum pi R: the baseline drops out."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(6, generator=generator, dtype=torch.float64)
    pi = torch.softmax(weights, 0)
    (expected,) = torch.autograd.grad(-(pi * rewards).sum(), weights)
    advantages = pi.detach() * (rewards - 0.4) * 6  # a mean over six samples stands for the sum
    alignment.reinforce(torch.log_softmax(weights, 0), advantages).backward()
    np.testing.assert_allclose(weights.grad, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [  # arXiv 1707.06347, figure 1: a good action's ratio is paid up to 1 + clip, a bad one's down to 1 - clip
        (1.1, 2.0, -2.2, -2.2), (1.5, 2.0, -2.4, 0.0), (0.5, 2.0, -1.0, -1.0),
        (0.9, -2.0, 1.8, 1.8), (0.5, -2.0, 1.6, 0.0), (1.5, -2.0, 3.0, 3.0),
    ],
)  # fmt: skip
def test_the_clipped_surrogate_is_the_papers_figure(ratio, advantage, loss, slope):
    """`slope` is d loss / d log pi = -rho A where it is not clipped."""
    log_probs = tensor([np.log(ratio) - 1.3], requires_grad=True)
    found = alignment.clipped_surrogate(log_probs, tensor([-1.3]), tensor([advantage]), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert log_probs.grad.item() == pytest.approx(slope)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999))
def test_ppo_weighs_tokens_and_grpo_answers(seed):
    """Token by token in plain Python: PPO's mean over all tokens, GRPO's over each answer's and then over answers."""
    rng = np.random.default_rng(seed)
    lengths, clip, beta = [3, 1, 4], 0.2, 0.3
    new, old, ref = (-rng.uniform(0.1, 2, size=(3, 4)) for _ in range(3))
    answer = np.array([[position < length for position in range(4)] for length in lengths])
    advantages = rng.normal(size=3)
    surrogate, divergence = [], []
    for row, length in enumerate(lengths):
        terms, pulls = [], []
        for t in range(length):
            rho, a = np.exp(new[row, t] - old[row, t]), advantages[row]
            terms.append(-min(rho * a, min(max(rho, 1 - clip), 1 + clip) * a))
            quotient = np.exp(ref[row, t]) / np.exp(new[row, t])
            pulls.append(quotient - np.log(quotient) - 1)
        surrogate.append(terms)
        divergence.append(pulls)
    mask = torch.from_numpy(answer)
    ppo = alignment.ppo_clip(*(tensor(x) for x in (new, old, advantages)), mask, clip)
    assert ppo.item() == pytest.approx(np.mean([term for terms in surrogate for term in terms]))
    grpo = alignment.grpo(*(tensor(x) for x in (new, old, ref, advantages)), mask, clip=clip, beta=beta)
    expected = np.mean([np.mean(a) + beta * np.mean(b) for a, b in zip(surrogate, divergence, strict=True)])
    assert grpo.item() == pytest.approx(expected)


def test_grpos_pull_is_the_exact_kl_in_expectation():
    """Sampled from pi_theta, pi_ref / pi - ln(pi_ref / pi) - 1 has the mean KL(pi_theta || pi_ref)."""
    generator = np.random.default_rng(4)
    new, ref = generator.dirichlet(np.ones(8)), generator.dirichlet(np.ones(8))
    zero, one = tensor([0.0]), torch.ones(1, 1, dtype=torch.bool)
    terms = [
        alignment.grpo(tensor([[a]]), tensor([[a]]), tensor([[b]]), zero, one, clip=0.2, beta=1.0).item()
        for a, b in zip(np.log(new), np.log(ref), strict=True)
    ]
    assert min(terms) >= 0
    assert np.dot(new, terms) == pytest.approx((new * np.log(new / ref)).sum())


def test_gradients_of_the_baselines_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(2)
    new, old, ref = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    advantages, mask = tensor([0.5, -1.0, 0.2]), torch.ones(3, 4, dtype=torch.bool)
    new.requires_grad_()
    assert gradcheck(lambda x: alignment.ppo_clip(x, old, advantages, mask, 0.2), (new,))
    assert gradcheck(lambda x: alignment.grpo(x, old, ref, advantages, mask, clip=0.2, beta=0.3), (new,))
    assert gradcheck(lambda x: alignment.reinforce(x.sum(1), advantages), (new,))
