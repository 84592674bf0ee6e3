"""Quality of pages: a language model judges a sample, a fast classifier learns its taste (steps `judge`, `quality`).

LLM-guided document selection (arXiv 2406.04638): an instruction model is asked whether a text is worth training on, and
its yes logit minus its no logit is the score; the scores of a small sample are distilled into a fastText classifier,
which then rates every page. Part of the sample is judged in a second wording: how far does the judge agree with itself?
Where nano's pages are judged, it is also measured against 50 graded by hand (`grading`). The judge is the sources'
writer model, any OpenAI-compatible endpoint, or rules. DCLM's way (arXiv 2406.11794) needs none: the classifier learns
to tell reference texts from the web's average.
"""

import json
import re
from collections.abc import Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any, Literal

import fasttext
import numpy as np
import torch
import xxhash
from pydantic import model_validator

from openafm import jsonl
from openafm.data import grading
from openafm.data.documents import Row, drops_by_reason, rows
from openafm.data.frames import Drop, daft, kept, write_verdicts
from openafm.sampling.endpoint import EndpointSampler
from openafm.sampling.sampler import Sampler, TorchSampler
from openafm.scoring.intervals import bootstrap, wilson
from openafm.scoring.judges import ask, yes_no
from openafm.stage import Config, Context, Metrics

FILE = "judgements.jsonl"
QUESTIONS = (
    "Is this text informative and well written, so that a student could learn something from it?",
    "Would this text teach a student something, and is it written clearly in full sentences?",
)
_FLOWS = ("web", "public")
_TOKEN, _DIGIT = re.compile(r"\w+|[^\w\s]"), re.compile(r"\d")


class JudgeConfig(Config):
    """How much the judge reads."""

    documents: int = 120
    """Pages judged, drawn from the kept web pages and public sets."""
    tokens: int = 192
    """Tokens read of each, from its start."""
    asked_again: int = 60
    """How many of them are asked about in the second wording, too."""
    batch: int = 8
    """Pages judged at once; each batch is kept in scratch."""
    grader: Literal["model", "endpoint", "rules"] = "model"
    """Who judges: the sources' writer model, a stronger one behind an endpoint, or `grading.grade`, where a model is at
    chance."""
    endpoint: str = ""
    """URL of an OpenAI-compatible endpoint that echoes log-probabilities, ending in /v1; its key is $OPENAI_API_KEY."""
    endpoint_model: str = ""
    """The model's name there."""

    @model_validator(mode="after")
    def _endpoint_is_named(self) -> "JudgeConfig":
        if (self.grader == "endpoint") != bool(self.endpoint and self.endpoint_model):
            raise ValueError("grader: endpoint goes with `endpoint` (its URL) and `endpoint_model`, and these with it")
        return self


def average_ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rank of each value from 1, equal values sharing the mean of their ranks."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1) / 2


def rank_correlation(pairs: np.ndarray) -> float:
    """Spearman's rho of (n, 2) values; 0 where one column is constant."""
    first, second = average_ranks(pairs[:, 0]), average_ranks(pairs[:, 1])
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def area_under_curve(pairs: np.ndarray) -> float:
    """Chance that a positive scores above a negative, of (n, 2) rows (score, label 0 or 1); 0.5 for one label alone."""
    positive = pairs[:, 1] == 1
    wins = average_ranks(pairs[:, 0])[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum())) if 0 < positive.sum() < len(pairs) else 0.5


def _interval(pairs: np.ndarray, statistic: Any, seed: int) -> list[float]:
    return [round(end, 4) for end in bootstrap(pairs, statistic, seed=seed)]


def agreement(scores: np.ndarray, seed: int = 0) -> Metrics:
    """How far a judge agrees with itself: (n, 2) scores of the same texts in two wordings.

    A decision is "better than this wording's median", so a judge that says yes to everything gets no credit; two judges
    that know nothing of each other make the same decision half of the time.
    """
    above = scores > np.median(scores, axis=0)
    same = int((above[:, 0] == above[:, 1]).sum())
    low, high = wilson(same, len(scores))
    return {
        "n": len(scores),
        "rank_correlation": round(rank_correlation(scores), 4),
        "rank_correlation_95": _interval(scores, rank_correlation, seed),
        "same_decision": round(same / len(scores), 4),
        "same_decision_95": [round(low, 4), round(high, 4)],
        "yes_share": [round(float(share), 4) for share in (scores > 0).mean(axis=0)],
        "at_chance": low <= 0.5,
    }


def _sample(documents: Path, config: JudgeConfig, seed: int) -> list[Row]:
    """Pages by the hash of seed and id: a sample that does not depend on what else is there."""
    pages = (row for row in rows(documents) if row["flow"] in _FLOWS)
    return nsmallest(
        config.documents, pages, key=lambda row: xxhash.xxh3_64_intdigest(f"{seed}/judge/{row['id']}".encode())
    )


def _done(path: Path, wanted: list[str]) -> list[Metrics]:
    """Judgements of an interrupted run, up to the first torn or foreign line."""
    done: list[Metrics] = []
    for line, identity in zip(path.read_bytes().splitlines() if path.exists() else [], wanted, strict=False):
        try:
            judgement = json.loads(line)
        except ValueError:
            break
        if judgement["id"] != identity:
            break
        done.append(judgement)
    return done


def judge(config: JudgeConfig, context: Context, *, documents: Path, sources: Path) -> Metrics:
    """Let the writer model of the sources say yes or no to a sample of pages, in two wordings.

    Writes `judgements.jsonl`: {"id", "score", "again", "text_hash"}, score and again being log p(Yes) - log p(No), or
    the rules' grade. Without a writer model nobody is judged, and the metrics say so.
    """
    pages = _sample(documents, config, context.seed)
    folder = sources / "models" / "writer"
    if config.grader == "model" and not folder.exists():
        (context.out / FILE).write_text("")
        return {"judge": "none", "judged": 0}
    if config.grader == "rules":
        graded = [_judgement(page, page["text"], grading.grade(page["text"]), None) for page in pages]
        return _told("rules", graded, pages, context)
    if config.grader == "endpoint":
        cache = context.scratch / "answers"
        sampler: Sampler = EndpointSampler(config.endpoint, config.endpoint_model, cache=cache)
    else:
        dtype = torch.bfloat16 if context.hardware.precision == "bfloat16" else torch.float32
        sampler = TorchSampler.load(folder, dtype, batch=config.batch)
    part = context.scratch / FILE
    judged = _done(part, [row["id"] for row in pages])
    judged = judged[: len(judged) // config.batch * config.batch]  # whole batches, so that padding is the same again
    part.write_text("".join(json.dumps(line) + "\n" for line in judged))
    for start in range(len(judged), len(pages), config.batch):
        context.report("pages judged", start, len(pages))
        batch = pages[start : start + config.batch]
        twice = max(0, min(len(batch), config.asked_again - start))
        judged += (lines := _judge_batch(sampler, batch, config.tokens, twice))
        with part.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return _told("models/writer" if config.grader == "model" else config.endpoint_model, judged, pages, context)


def _told(name: str, judged: list[Metrics], pages: list[Row], context: Context) -> Metrics:
    """Write the judgements; how far the judge agrees with itself, and with the pages graded by hand."""
    judged.sort(key=lambda line: line["id"])
    (context.out / FILE).write_text("".join(json.dumps(line) + "\n" for line in judged))
    scores = np.array([[line["score"], line["again"]] for line in judged if line["again"] is not None]).reshape(-1, 2)
    by_id = {line["id"]: line["score"] for line in judged}
    metrics = {"judge": name, "judged": len(judged)} | (agreement(scores, context.seed) if len(scores) else {})
    by_hand = grading.against_labels(pages, by_id, area_under_curve, context.seed)
    if by_hand.get("at_chance"):
        by_hand["remedy"] = "no better than chance: judge with `grader: rules`, or a stronger model's `endpoint`"
    return metrics | {"against_hand_labels": by_hand}


def _judge_batch(sampler: Sampler, batch: list[Row], tokens: int, twice: int) -> list[Metrics]:
    """Judge the first `tokens` of each page, and the first `twice` pages in the second wording."""
    read = [_beginning(sampler, row["text"], tokens) for row in batch]
    scores = _yes(sampler, read, QUESTIONS[0])
    again = [round(score, 4) for score in (_yes(sampler, read[:twice], QUESTIONS[1]) if twice else [])]
    rows = zip(batch, read, scores, again + [None] * (len(batch) - twice), strict=True)
    return [_judgement(row, text, score, other) for row, text, score, other in rows]


def _beginning(sampler: Sampler, text: str, tokens: int) -> str:
    """The first tokens of a page; behind an endpoint, whose tokens are its own business, four letters each."""
    if not isinstance(sampler, TorchSampler):
        return text[: 4 * tokens]
    return sampler.tokenizer.decode(sampler.tokenizer.encode(text[: 16 * tokens])[:tokens])


def _yes(sampler: Sampler, texts: list[str], question: str) -> list[float]:
    """log p(Yes) - log p(No); in plain text for an endpoint, which can echo no chats."""
    if not isinstance(sampler, EndpointSampler):
        return ask(sampler, texts, question)
    return yes_no(sampler, [f"{text}\n\n{question} Answer with Yes or No.\nAnswer:" for text in texts], " Yes", " No")


def _judgement(row: Row, read: str, score: float, again: float | None) -> Metrics:
    hashed = xxhash.xxh3_64_hexdigest(read.encode())
    return {"id": row["id"], "score": round(score, 4), "again": again, "text_hash": hashed}


class QualityConfig(Config):
    """The classifier that learns from the judge, and what it drops."""

    drop_share: float = 0.1
    """Share of the kept web pages and public sets that is dropped, worst first."""
    positives: Literal["judge", "references"] = "judge"
    """What the classifier takes for good: pages above the judge's median, or `references` against the average page
    (DCLM, arXiv 2406.11794)."""
    references: tuple[str, ...] = ("licensed",)
    """Flows of reference texts."""
    examples: int = 400
    """Texts of each kind that are learned from with `references`."""
    folds: int = 5
    """The classifier is tested on judged pages that it has not seen, in so many parts."""
    words: int = 300
    """Words read of each page, from its start."""
    dimension: int = 16
    """Width of the classifier's word vectors."""
    epochs: int = 40
    """Passes over the judged pages."""
    lr: float = 0.5
    """Learning rate of the classifier."""


def features(text: str, words: int) -> str:
    """One line of case-folded words and signs, digits as 0: what fastText reads."""
    return " ".join(_TOKEN.findall(_DIGIT.sub("0", text[: 40 * words].casefold()))[:words])


def _train(lines: Sequence[str], good: Sequence[bool], config: QualityConfig, scratch: Path) -> Any:
    """A fastText classifier (arXiv 1607.01759) of word unigrams and bigrams, the same for the same lines."""
    labels = ["good" if yes else "poor" for yes in good]
    path = scratch / "fasttext.txt"
    path.write_text("".join(f"__label__{label} {line}\n" for label, line in zip(labels, lines, strict=True)))
    size = {"dim": config.dimension, "wordNgrams": 2, "bucket": 2**16}
    return fasttext.train_supervised(str(path), **size, epoch=config.epochs, lr=config.lr, thread=1, verbose=0)


def _good(model: Any, lines: Sequence[str]) -> list[float]:
    """Probability that each line is good."""
    if not len(lines):
        return []
    labels, chances = model.predict(list(lines), k=2)
    found = [dict(zip(*pair, strict=True)) for pair in zip(labels, chances, strict=True)]
    return [round(min(1.0, float(chance.get("__label__good", 0.0))), 6) for chance in found]


@daft.cls
class _Rater:
    """The classifier as a Daft function: each worker opens the model's file."""

    def __init__(self, path: str, words: int) -> None:
        self.model, self.words = fasttext.load_model(path), words

    @daft.method.batch(return_dtype=daft.DataType.float64())
    def good(self, texts: daft.Series) -> list[float]:
        """Probability that each text of a batch is good."""
        return _good(self.model, [features(text, self.words) for text in texts.to_pylist()])


def _held_out(
    lines: list[str], good: np.ndarray, config: QualityConfig, context: Context
) -> tuple[Metrics, np.ndarray]:
    """How well the classifier foretells the judge on pages it has not learned from, and how it rates these."""
    scores = np.zeros(len(lines))
    fold = np.arange(len(lines)) % config.folds
    for part in range(config.folds):
        learned, unseen = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        model = _train([lines[i] for i in learned], good[learned].tolist(), config, context.scratch)
        scores[unseen] = _good(model, [lines[i] for i in unseen])
    pairs = np.stack([scores, good], axis=1)
    interval = _interval(pairs, area_under_curve, context.seed)
    area = round(area_under_curve(pairs), 4)
    return {"n": len(lines), "auc": area, "auc_95": interval, "at_chance": interval[0] <= 0.5}, scores


def _judged(judgements: Path, documents: Path) -> tuple[list[Row], np.ndarray]:
    """The judged pages and whether each is above the judge's median."""
    lines = jsonl.read(judgements / FILE)
    judged = {line["id"] for line in lines}
    pages = {row["id"]: row for row in rows(documents) if row["id"] in judged and row["flow"] in _FLOWS}
    found = [line for line in lines if line["id"] in pages]
    scores = np.array([line["score"] for line in found])
    return [pages[line["id"]] for line in found], scores > np.median(scores) if found else scores > 0


def _referred(documents: Path, config: QualityConfig, seed: int) -> tuple[list[Row], np.ndarray]:
    """Reference texts and as many pages, drawn by the hash of their ids, in turns; whether each is a reference."""

    def drawn(flows: Sequence[str]) -> list[Row]:
        """The `examples` documents of these flows whose seeded hashes are the smallest, in that order."""
        found = (row for row in rows(documents) if row["flow"] in flows)
        key = f"{seed}/references/".encode()
        return nsmallest(config.examples, found, key=lambda row: xxhash.xxh3_64_intdigest(key + row["id"].encode()))

    pairs = list(zip(drawn(config.references), drawn(_FLOWS), strict=False))
    return [row for pair in pairs for row in pair], np.arange(2 * len(pairs)) % 2 == 0


def quality(config: QualityConfig, context: Context, *, documents: Path, judgements: Path) -> Metrics:
    """Distil the judge into a classifier, rate all kept web pages and public sets, drop the worst share.

    Nothing is dropped when the classifier cannot foretell the judge better than chance (95% interval of its area under
    the curve on held-out pages): a filter that knows nothing would only throw away text. The metrics say so.
    """
    judged = config.positives == "judge"
    learned, good = _judged(judgements, documents) if judged else _referred(documents, config, context.seed)
    lines = [features(row["text"], config.words) for row in learned]
    if min(good.sum(), (~good).sum()) < config.folds:
        write_verdicts(documents, context.out, "quality", {})
        return {"rated": 0, "dropped": {}, "why_not": f"{len(lines)} judged pages are too few to learn from"}
    held_out, unseen = _held_out(lines, good, config, context)
    rated = dict(zip((row["id"] for row in learned), unseen.tolist(), strict=True))
    path = context.scratch / "quality.bin"
    _train(lines, good.tolist(), config, context.scratch).save_model(str(path))
    rate: Any = _Rater(str(path), config.words)
    context.report("pages rated", 0, None)
    frame = kept(documents, "id", "flow", "text").where(daft.col("flow").is_in(list(_FLOWS)))
    table = frame.with_column("quality", rate.good(daft.col("text"))).select("id", "quality").sort("id").to_pydict()
    scores = dict(zip(table["id"], table["quality"], strict=True))
    worst = sorted(scores, key=lambda i: (scores[i], i))[: int(len(scores) * config.drop_share)]
    drops = {i: Drop("quality.low", f"rated {scores[i]:.3f} of 1") for i in ([] if held_out["at_chance"] else worst)}
    notes = {document: f"rated {score:.3f} of 1" for document, score in scores.items()}
    funnel = write_verdicts(documents, context.out, "quality", drops, scores, notes)
    metrics: Metrics = {"rated": len(scores), "held_out": held_out, "dropped": drops_by_reason(funnel, "quality")}
    by_hand = (row for row in rows(documents) if row["url"] in grading.read_labels())
    metrics["against_hand_labels"] = grading.against_labels(by_hand, scores | rated, area_under_curve, context.seed)
    if held_out["at_chance"]:
        metrics["why_not"] = "the classifier does not foretell the judge better than chance: nothing dropped"
    return metrics
