import pytest

from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.sampling.sampler import Completion, TorchSampler
from openafm.scoring import judges
from openafm.scoring.judges import Verdict, compare
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer


def test_a_judge_reads_log_odds(tmp_path):
    write_tokenizer(tmp_path, train_sentencepiece(["Yes or No, answer with the text. " * 30], 300))
    config = ModelConfig(
        vocab_size=300, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16, max_length=64
    )
    save_model(initialise(Transformer(config), 0), tmp_path)
    sampler = TorchSampler.load(tmp_path)
    odds = judges.ask(sampler, ["one text", "another"], "Is it good?")
    rows = [
        [{"role": "user", "content": f"{t}\n\nIs it good? Answer with Yes or No."}] for t in ("one text", "another")
    ]
    expected = [yes - no for yes, no in sampler.score(rows, ["Yes", "No"])]
    assert odds == expected and len(set(odds)) == 2


class Judge:
    """Prefers the answer with the most of a letter, or always the first."""

    def __init__(self, rule, scores=True):
        self.rule, self.scores = rule, scores

    def _says_a(self, prompt):
        _, _, rest = prompt[0]["content"].partition("Answer A: ")
        a, _, b = rest.partition("\n\nAnswer B: ")
        return self.rule(a, b.partition("\n\nReply")[0])

    def score(self, prompts, options):
        if not self.scores:
            raise ValueError("an endpoint scores text prompts only")
        return [[0.0, -1.0] if self._says_a(prompt) else [-1.0, 0.0] for prompt in prompts]

    def sample(self, prompts, n=1, **settings):
        return [[Completion("Answer A." if self._says_a(prompt) else "B")] for prompt in prompts]


@pytest.mark.parametrize("scores", [True, False])
def test_a_judge_is_asked_in_both_orders(scores):
    rows = [("q", "xx", "x"), ("q", "x", "xx"), ("q", "x", "xxx")]
    fair = compare(Judge(lambda a, b: a.count("x") > b.count("x"), scores), rows)
    assert [verdict.win for verdict in fair] == [1.0, 0.0, 0.0] and all(verdict.consistent for verdict in fair)
    biased = compare(Judge(lambda a, b: True, scores), rows)
    assert [verdict.win for verdict in biased] == [0.5] * 3 and not any(verdict.consistent for verdict in biased)


def test_a_liking_for_a_place_cancels():
    class Partial(Judge):
        """Likes the place A by 5 nats, and an x by 1."""

        def score(self, prompts, options):
            return [[5.0 + self._says_a(prompt), 0.0] for prompt in prompts]

    found = compare(Partial(lambda a, b: a.count("x") - b.count("x")), [("q", "xx", "x"), ("q", "x", "xxx")])
    assert [verdict.leaning for verdict in found] == [1.0, -2.0]
    assert [verdict.preferred for verdict in found] == [1.0, 0.0] and [verdict.win for verdict in found] == [0.5, 0.5]
    (written,) = compare(Judge(lambda a, b: len(a) > len(b), scores=False), [("q", "xx", "x")])
    assert written == Verdict(1.0, True) and written.preferred == 1.0


def test_a_judge_that_says_neither_letter_makes_a_tie():
    class Silent(Judge):
        def sample(self, prompts, n=1, **settings):
            return [[Completion("neither")] for _ in prompts]

    (verdict,) = compare(Silent(lambda a, b: True, scores=False), [("q", "a", "b")])
    assert verdict == Verdict(0.5, False)
