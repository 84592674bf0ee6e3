"""What quality selection is worth: nano's model on the kept half of the pages against a random half of equal tokens.

    openafm bench quality --run runs/nano --tokens 400000

Arms: the half that the classifier distilled from the run's judge rates best, that of a classifier of reference texts
(DCLM's way), that of the rules' grade, and a random half. Every arm has the same tokens, model, schedule and seeds;
only the pages differ. Measured is the loss (nats a token, lower is better) on held-out licensed texts, which no arm
reads (the classifier of references learns from that flow and has an advantage there), and on the pages graded good by
hand, which are kept out of every arm and of what the raters learn from.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import xxhash

from harness import options, show
from openafm.data import grading
from openafm.data.documents import Row, rows
from openafm.data.quality import QualityConfig, _good, _judged, _referred, _train, features
from openafm.data.shards import token_type, write_shard
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.stage import Context
from openafm.tokenizer import Tokenizer, load
from openafm.training.batches import TokenBatches
from openafm.training.loop import train
from openafm.training.losses import next_token
from openafm.training.optimizers import RMSPropMomentum
from openafm.training.schedules import cosine

SHAPE = {"d_model": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "d_ff": 384, "rope_base": 500.0}


def main() -> None:
    o = options(__doc__, run="runs/nano", tokens=400_000, seeds=3, length=256, threads=2)
    torch.set_num_threads(o.threads)
    run, tokenizer = Path(o.run), load(Path(o.run) / "tokenizer")
    labels = grading.read_labels()
    pages = [row for row in rows(run / "dedup") if row["flow"] in ("web", "public") and row["planted"] is None]
    apart = [row for row in pages if row["url"] in labels]
    pool = [row for row in pages if row["url"] not in labels]
    encoded = {row["id"]: [*tokenizer.encode(row["text"]), tokenizer.eos_id] for row in pool}
    references = {
        "licensed": np.fromfile(run / "shards" / "heldout" / "licensed.bin", token_type(tokenizer.vocab_size)),
        "graded good by hand": _tokens([row for row in apart if labels[row["url"]][1]], tokenizer),
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in references}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rated = ratings(run, pool, folder)
        for seed in range(o.seeds):
            rated["random half"] = {row["id"]: _drawn(f"{seed}/{row['id']}") for row in pool}
            for arm, scores in rated.items():
                shard = folder / f"{len(found['licensed'].get(arm, []))}-{arm.replace(' ', '-')}"
                half(scores, encoded, shard, tokenizer)
                losses = trained(shard, tokenizer, references, o.tokens, o.length, seed)
                for name, loss in losses.items():
                    found[name].setdefault(arm, []).append(loss)
    detail = {"tokens": o.tokens, "seeds": o.seeds, "pages": len(pool), "graded good by hand": {
        arm: [round(loss, 4) for loss in losses] for arm, losses in found["graded good by hand"].items()}}  # fmt: skip
    for arm, losses in found["graded good by hand"].items():
        print(f"on pages graded good by hand, {arm}: " + ", ".join(f"{loss:.4f}" for loss in losses))
    show("quality", "nats/token", found["licensed"], limit=None, detail=detail, as_json=o.json, better="less")


def ratings(run: Path, pool: list[Row], scratch: Path) -> dict[str, dict[str, float]]:
    """Each rater's scores of all pages, by id."""
    config = QualityConfig()
    lines = [features(row["text"], config.words) for row in pool]
    rated: dict[str, dict[str, float]] = {}
    learners = {"judge": _judged(run / "judge", run / "dedup"), "references": _referred(run / "dedup", config, 0)}
    held = {row["id"] for row in rows(run / "dedup") if row["url"] in grading.read_labels()}
    for name, (learned, good) in learners.items():
        kept = [at for at, row in enumerate(learned) if row["id"] not in held]
        shown = [features(learned[at]["text"], config.words) for at in kept]
        model = _train(shown, good[kept].tolist(), config, scratch)
        rated[name] = dict(zip((row["id"] for row in pool), _good(model, lines), strict=True))
    return rated | {"rules": {row["id"]: grading.grade(row["text"]) for row in pool}}


def half(scores: dict[str, float], encoded: dict[str, list[int]], folder: Path, tokenizer: Tokenizer) -> None:
    """Write the best-rated pages up to half of all tokens, in the order of a hash; the last page is cut to fit."""
    left = sum(map(len, encoded.values())) // 2
    chosen: dict[str, list[int]] = {}
    for identity in sorted(scores, key=lambda i: (-scores[i], i)):
        if left > 0:
            chosen[identity] = encoded[identity][:left]
            left -= len(chosen[identity])
    dtype = token_type(tokenizer.vocab_size)
    ordered = sorted(chosen, key=lambda i: _drawn(f"order/{i}"))
    write_shard(folder / "train", "web", ((np.array(chosen[i]), 0) for i in ordered), dtype)
    (folder / "index.json").write_text(f'{{"dtype": "{dtype.name}", "splits": {{"train": {{"web": {{}}}}}}}}')


def trained(
    shard: Path, tokenizer: Tokenizer, references: dict[str, np.ndarray], tokens: int, length: int, seed: int
) -> dict[str, float]:
    """Nano's model on these tokens; its loss on each reference."""
    batches = TokenBatches(
        shard, {"web": 1.0}, sequence_length=length, batch_tokens=2 * length, tokens=tokens, seed=seed
    )
    model = initialise(Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, max_length=length, **SHAPE)), seed)
    optimizer = RMSPropMomentum(parameter_groups(model, 128), 0.005, 3.16e-4)
    schedule = cosine(tokens, tokens // 10, 0.005)
    context = Context(shard, shard / "scratch", seed)
    train(model, batches, lambda net, batch: next_token(net(batch["inputs"]), batch["targets"]), optimizer, schedule,
          context, checkpoint_seconds=1e9)  # fmt: skip
    return {name: loss(model, held, length) for name, held in references.items()}


@torch.inference_mode()
def loss(model: Transformer, tokens: np.ndarray, length: int) -> float:
    """Mean loss over whole windows, at most 64 of them spread evenly."""
    starts = np.arange(0, len(tokens) - length - 1, length)
    starts = starts[np.linspace(0, len(starts) - 1, min(64, len(starts))).astype(int)]
    windows = torch.from_numpy(np.stack([tokens[at : at + length + 1].astype(np.int64) for at in starts]))
    return float(next_token(model(windows[:, :-1]), windows[:, 1:]).loss)


def _tokens(pages: list[Row], tokenizer: Tokenizer) -> np.ndarray:
    return np.array([token for row in pages for token in [*tokenizer.encode(row["text"]), tokenizer.eos_id]])


def _drawn(text: str) -> float:
    return xxhash.xxh3_64_intdigest(text.encode()) / 2**64


if __name__ == "__main__":
    main()
