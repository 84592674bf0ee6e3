from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.sampling.sampler import TorchSampler
from openafm.scoring import judges
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


class Biased:
    """Likes answer A wherever it stands, and the longer answer a little."""

    def score(self, prompts, options):
        assert list(options) == ["A", "B"]
        rows = []
        for ((turn,),) in zip(prompts, strict=True):
            a, b = (turn["content"].split(f"\n{letter}: ")[1].split("\n")[0] for letter in "AB")
            rows.append([0.0 + 3.0 + len(a), float(len(b))])
        return rows


def test_a_liking_for_a_place_cancels_out():
    found = judges.prefer(Biased(), "Which?", ["t", "t", "t"], ["long answer", "x", "same"], ["short", "xxxxx", "same"])
    assert [p.margin for p in found] == [6.0, -4.0, 0.0]
    assert [p.agreed for p in found] == [True, True, False]
    close = judges.prefer(Biased(), "Which?", ["t"], ["ab"], ["abc"])[0]
    assert close.margin == -1.0 and not close.agreed  # the place outweighs it: both orders say A
