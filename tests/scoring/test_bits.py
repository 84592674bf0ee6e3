import json
from math import log2

import numpy as np
import pytest
import torch

from openafm.model import ModelConfig, Transformer
from openafm.model.checkpoint import save_model
from openafm.model.muparam import initialise
from openafm.sampling.sampler import TorchSampler
from openafm.scoring import bits, judges
from openafm.tokenizer.train import train_sentencepiece, write_tokenizer


def test_bits_are_those_of_one_token_at_a_time(tiny_model, token_shards):
    found = bits.bits_per_byte(tiny_model, token_shards, "code", length=8, windows=3, batch=2)
    tokens = np.fromfile(token_shards / "heldout" / "code.bin", dtype=np.uint16).astype(int).tolist()
    total, right = 0.0, 0
    with torch.inference_mode():
        for start in (0, 8, 16):
            for i in range(1, 9):
                p = torch.softmax(tiny_model(torch.tensor([tokens[start : start + i]]))[0, -1].double(), 0)
                total -= log2(float(p[tokens[start + i]]))
                right += int(p.argmax()) == tokens[start + i]
    assert found.bits_per_byte == pytest.approx(total / (24 * 4), rel=1e-5)  # the fixture says 4 bytes a token
    assert found.accuracy == right / 24
    assert (found.windows, found.tokens, found.bytes) == (3, 24, 96)
    assert sum(found.per_window) / 3 == pytest.approx(found.bits_per_byte)
    low, high = found.summary()["bits_per_byte_interval"]
    assert low <= found.bits_per_byte <= high


def test_missing_or_short_shards_are_errors(tiny_model, token_shards):
    assert bits.sources(token_shards) == ["code", "web"]
    with pytest.raises(ValueError, match="it holds: code, web"):
        bits.bits_per_byte(tiny_model, token_shards, "math")
    with pytest.raises(ValueError, match="a window needs 5001"):
        bits.bits_per_byte(tiny_model, token_shards, "web", length=5000)
    index = json.loads((token_shards / "index.json").read_text())
    assert index["splits"]["heldout"]["web"]["tokens"] == 1500


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
