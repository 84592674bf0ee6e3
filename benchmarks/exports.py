"""GGUF exports in llama.cpp: perplexity and logits against the model that was exported, tokens against its tokenizer.

    openafm bench exports --model runs/device/recovery --adapter recovery --text docs/data.md --tokens 512

Needs llama-cpp-python (`pip install 'openafm[llama]'`, built from source). llama.cpp keeps keys and values in float32
here; with matrices below float32 it also rounds what they are multiplied with, to float16, bfloat16 or 8 bits.
"""

import json
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from harness import machine, options
from openafm.serving.exporting import export
from openafm.serving.opening import merged, tokenizer_folder
from openafm.tokenizer import load


def main() -> None:
    o = options(__doc__, model="runs/nano", adapter="", text="README.md", tokens=512, types="f32,f16,bf16,q8_0,q4_0")
    found, model = merged(Path(o.model), o.adapter or None)
    tokenizer = load(tokenizer_folder(found))
    text = Path(o.text).read_text(encoding="utf-8")
    tokens = [tokenizer.bos_id, *tokenizer.encode(text)][: o.tokens]
    with torch.no_grad():
        ours = model(torch.tensor([tokens]))[0]
    del model
    table = Table(title=f"{found}, {len(tokens)} tokens of {o.text}: perplexity here {perplexity(ours, tokens):.4f}")
    for column in ("type", "MB", "perplexity in llama.cpp", "nats apart", "largest logit difference", "same tokens"):
        table.add_column(column, justify="left" if column == "type" else "right")
    detail = {}
    for kind in o.types.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            export(Path(o.model), path, "gguf", o.adapter or None, kind)
            megabytes = path.stat().st_size / 1e6
            theirs, same = compute(path, tokens, text, tokenizer.encode(text))
        found_there = perplexity(theirs, tokens)
        apart = float(np.log(found_there) - np.log(perplexity(ours, tokens)))
        largest = float((theirs - ours).abs().max())
        detail[kind] = {"megabytes": megabytes, "perplexity": found_there, "nats": apart}
        detail[kind] |= {"largest_logit_difference": largest, "same_tokens": same}
        row = (f"{megabytes:.1f}", f"{found_there:.4f}", f"{apart:+.5f}", f"{largest:.2g}", str(same))
        table.add_row(kind, *row)
    Console().print(table)
    if o.json:
        line = {"name": "exports", "unit": "perplexity", "ours": perplexity(ours, tokens), "limit": None}
        peers = {kind: found["perplexity"] for kind, found in detail.items()}
        print(json.dumps({**line, "peers": peers, "detail": detail, "machine": machine()}))


def compute(path: Path, tokens: list[int], text: str, expected: list[int]) -> tuple[torch.Tensor, bool]:
    """llama.cpp's logits, and whether it makes the expected tokens of the text."""
    context = {"n_ctx": len(tokens), "logits_all": True, "verbose": False, "type_k": 0, "type_v": 0}
    with closing(Llama(str(path), n_threads=torch.get_num_threads(), **context)) as llama:
        llama.eval(tokens)
        same = llama.tokenize(text.encode(), add_bos=False, special=False) == expected
        return torch.from_numpy(np.array(llama.scores[: len(tokens)])), same


def perplexity(logits: torch.Tensor, tokens: list[int]) -> float:
    return float(F.cross_entropy(logits[:-1], torch.tensor(tokens[1:])).exp())


if __name__ == "__main__":
    main()
