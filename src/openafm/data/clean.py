"""Step `clean`: language, garbage, licences, safety and personal data, a verdict for every document of every flow.

AFM's web documents pass safety and profanity filters "using both heuristics and model-based classifiers", and personal
data and adult content go (arXiv 2407.21075, section 3.1.1); here code, math, licensed and public texts pass them too.
`judge` is a pure function of one document; it runs on parts, in processes. The safety model is then learned from
what the rules found (see `safety`) and judges the documents that are left.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from openafm.data import documents as _documents
from openafm.data import heuristics, pii, safety
from openafm.data.documents import SCHEMA, Row, drop
from openafm.data.frames import columns_of, rewrite
from openafm.data.language import LanguageModel
from openafm.data.licences import judge_licence, judge_set
from openafm.data.people import load_people
from openafm.data.precision import Hit, audit, evidence_hash
from openafm.stage import Config, Context, Metrics

STAGE = "clean"
DROPPED_KINDS = ("card", "iban", "ssn", "national_id")
REDACTED_KINDS = ("email", "ip", "phone", "secret", "address", "person")
NOT_PROSE = ("code", "math")
"""Flows without leet and beyond the safety model, which learns from prose; the rules judge them too."""
_LEARNED_FROM = 50_000  # documents of each kind, the first by id: ids are hashes, so these are drawn at random


class CleanConfig(Config):
    """What a document must be to stay."""

    languages: tuple[str, ...] = ("en",)
    """Languages that web, licensed and public documents may be in (ISO 639 codes)."""
    language_probability: float = 0.5
    """The language model must be at least this sure, or clear: three times as sure as of the next language."""
    min_words: int = 25
    """Shorter web and licensed documents are dropped."""
    min_public_words: int = 8
    """The same for public sets and math, whose documents are short by nature."""
    public_licences: tuple[str, ...] = ("LicenseRef-Debian-descriptions", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "ODC-By-1.0")
    """Licences of public sets that are taken beside the permissive ones."""
    most_pii: int = 10
    """Documents with more personal data than this, and more than one finding in 50 words, are dropped."""
    unsafe_probability: float = 0.95
    """The safety model's mean probability over a document's three worst chunks that drops it."""
    model_examples: int = 40
    """Fewer chunks that the rules hit do not train a safety model; the rules then stand alone."""
    person_model: str = ""
    """A model for people's names: a spaCy package, or gliner:FOLDER (see `people`); empty leaves names alone."""
    keep_personal_data: bool = False
    """Leave personal data in the texts of dropped documents, for work on the filters; else it is replaced there too."""


def _judge_kind(row: Row, model: LanguageModel, config: CleanConfig) -> Row:
    """Apply what differs by flow: licence and code rules, or language and prose rules."""
    if row["flow"] == "code":
        code = heuristics.judge_code(row["text"], row["code_language"], row["url"])
        for reason, evidence in (judge_licence(row["text"], row["licence"]), code):
            if reason:
                return drop(row, STAGE, reason, evidence)
        return row
    if row["flow"] == "public":
        reason, evidence = judge_set(row["licence"], config.public_licences)
        if reason:
            return drop(row, STAGE, reason, evidence)
    language, probability, second = model.detect(row["text"])
    row = row | {"language": language}
    sure = probability >= min(config.language_probability, 3 * second)  # prose full of names is never above a half
    foreign = language and (language not in config.languages or not sure)
    if foreign and row["flow"] != "math":
        return drop(row, STAGE, "language", f"{language} at {probability:.2f}")
    if row["flow"] == "math":  # answers are short, steps repeat and numbers are no words
        size = len(row["text"].split())
        return drop(row, STAGE, "too-short", f"{size} words") if size < config.min_public_words else row
    least = config.min_public_words if row["flow"] == "public" else config.min_words
    reason, evidence = heuristics.judge_prose(row["text"], least)
    return drop(row, STAGE, reason, evidence) if reason else row


def _judge_safety(row: Row, words: safety.Words) -> Row:
    finding = safety.judge_words(f"{row['title']}\n{row['text']}", words, disguised=row["flow"] not in NOT_PROSE)
    if not finding.category:
        return row
    return drop(row, STAGE, f"safety.{finding.category}", f"weight {finding.weight:.1f}: {', '.join(finding.terms)}")


def _people(row: Row, config: CleanConfig) -> pii.People | None:
    """The finder of people's names for a document: none for code, whose names are no people's."""
    return load_people(config.person_model) if row["flow"] != "code" else None


def _judge_pii(row: Row, config: CleanConfig) -> Row:
    """Drop documents with cards, IBANs, identity numbers or very much personal data; replace the rest."""
    text, people = row["text"], _people(row, config)
    spans = pii.find(text, people)
    title = pii.without(row["title"], people)
    if not spans:
        return row | {"title": title}
    counts = Counter(span.kind for span in spans)
    much = sum(count for kind, count in counts.items() if kind != "person")
    for kind in DROPPED_KINDS:
        if counts[kind]:
            first = next(span for span in spans if span.kind == kind)
            return drop(row | {"title": title}, STAGE, f"pii.{kind}", f"{counts[kind]}, as {pii.masked(text, first)}")
    summary = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
    if much > config.most_pii and much * 50 > len(text.split()):
        return drop(row | {"title": title}, STAGE, "pii.much", summary)
    row = _documents.judged(row | {"title": title}, STAGE, "redact", "pii", summary)
    return _documents.with_text(row, pii.redact(text, spans))


def judge(row: Row, model: LanguageModel, words: safety.Words, config: CleanConfig) -> Row:
    """Return the row with its verdict, and with its language and redacted text where it stays."""
    row = _judge_safety(row, words)
    row = _judge_pii(row, config) if row["verdict"] == "keep" else row
    row = _judge_kind(row, model, config) if row["verdict"] == "keep" else row
    return _documents.judged(row, STAGE, "keep", "", "by the rules") if row["verdict"] == "keep" else row


class _Judge:
    """Runs `judge` on the rows of parts, in a process of its own."""

    def __init__(self, language_model: str, words: str, config: str) -> None:
        self.model = LanguageModel(Path(language_model))
        self.words = safety.load_words(Path(words))
        self.config = CleanConfig.model_validate_json(config)

    def __call__(self, rows: list[Row]) -> list[Row]:
        return [r if r["verdict"] == "drop" else judge(r, self.model, self.words, self.config) for r in rows]


class _Finish:
    """Scores the rows of parts with the learned safety model and clears the dropped ones, in a process of its own."""

    def __init__(self, model: str, config: str) -> None:
        self.model = safety.SafetyModel(Path(model)) if model else None
        self.config = CleanConfig.model_validate_json(config)

    def __call__(self, rows: list[Row]) -> list[Row]:
        rows = [self.judge(row) for row in rows]
        if self.config.keep_personal_data:
            return rows
        return [_cleared(row, self.config) if row["verdict"] == "drop" else row for row in rows]

    def judge(self, row: Row) -> Row:
        """The row with the model's verdict; one that is dropped already or no prose comes back as it is."""
        if self.model is None or row["verdict"] == "drop" or row["flow"] in NOT_PROSE:
            return row
        probability, worst = self.model.score(row["text"])
        if probability < self.config.unsafe_probability:
            return _documents.judged(row, STAGE, "keep", "", f"by the safety model, {probability:.2f} unsafe")
        return drop(row, STAGE, "safety.model", f"probability {probability:.2f}: {worst}")


def _cleared(row: Row, config: CleanConfig) -> Row:
    """The row of a dropped document without personal data: rejects are read by people, and may be kept for long."""
    people = _people(row, config)
    return _documents.with_text(row | {"title": pii.without(row["title"], people)}, pii.without(row["text"], people))


def _learn(folder: Path, words: safety.Words, config: CleanConfig, context: Context) -> tuple[Path | None, Metrics]:
    """Train the safety model on what the rules found; None where that is too little."""
    hit, clean = list[str](), list[str]()
    for verdict, reason, flow, text in columns_of(folder, "verdict", "reason", "flow", "text"):
        if reason.startswith("safety.") and len(hit) < _LEARNED_FROM:
            hit.append(text)
        elif verdict == "keep" and flow not in NOT_PROSE and len(clean) < _LEARNED_FROM:
            clean.append(text)
    draw = random.Random(f"{context.seed}/safety")
    labelled = safety.examples(hit, clean, words, draw)
    positives = sum(bad for bad, _ in labelled)
    if positives < config.model_examples or len(labelled) < 2 * positives:
        return None, {"trained": False, "unsafe_chunks": positives, "safe_chunks": len(labelled) - positives}
    path, agreement = safety.train(labelled, context.scratch, context.seed)
    counts = {"trained": True, "unsafe_chunks": positives, "safe_chunks": len(labelled) - positives}
    return path, counts | {"held_out_agreement_with_rules": asdict(agreement)}


def _caught(kind: str, reason: str, redacted: list[str]) -> bool:
    """Tell whether a planted document of this kind met the filter that is for it."""
    if kind in DROPPED_KINDS:
        return reason.startswith("pii.")
    if kind in REDACTED_KINDS:
        return reason.startswith("pii.") or kind in redacted
    return reason.startswith("safety.")


def planted_recall(table: pa.Table) -> dict[str, Row]:
    """Count planted documents by kind: caught by the right filter, gone for another reason, and missed."""
    counts: dict[str, Counter[str]] = {}
    columns = (table[name].to_pylist() for name in ("planted", "stage", "verdict", "reason", "verdicts"))
    for kind, stage, verdict, reason, verdicts in zip(*columns, strict=True):
        if kind in (*DROPPED_KINDS, *REDACTED_KINDS, *safety.CATEGORIES) and stage in ("", STAGE):
            outcome = (
                "caught" if _caught(kind, reason, _redacted(verdicts)) else "gone" if verdict == "drop" else "missed"
            )
            counts.setdefault(kind, Counter())[outcome] += 1
    return {
        kind: {"planted": found.total(), **{name: found[name] for name in ("caught", "gone", "missed")}}
        | {"recall": found["caught"] / found.total()}
        for kind, found in sorted(counts.items())
    }


def _redacted(verdicts: list[dict[str, str]]) -> list[str]:
    """Return the kinds that the redaction among the verdicts names, as in "email 2, phone 1"."""
    said = [v["evidence"] for v in verdicts if v["stage"] == STAGE and v["verdict"] == "redact"]
    return [part.split()[0] for evidence in said for part in evidence.split(", ")]


def _hits(documents: Path, out: Path, config: CleanConfig) -> Iterable[Hit]:
    """Yield what was found in real documents: a hit for each that was dropped here, and for each finding replaced."""
    columns = [name for name in SCHEMA.names if name != "text"]
    for before, after in zip(_documents.parts(documents), _documents.parts(out), strict=True):
        judged = (row for table in _documents.batches(after, columns) for row in table.to_pylist())
        said = {row["id"]: row for row in judged if row["planted"] is None}
        said = {i: row for i, row in said.items() if row["stage"] == STAGE or _redacted(row["verdicts"])}
        for table in _documents.batches(before, ("id", "text")):
            for identity, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
                if identity in said:
                    yield from _hits_in(said[identity], text, _people(said[identity], config))


def _hits_in(row: Row, text: str, people: pii.People | None) -> Iterable[Hit]:
    if row["stage"] == STAGE:
        start = pii.without(text[:400], people)[:200]
        yield Hit(row["reason"], row["url"], evidence_hash(text), row["flow"], row["evidence"], start)
    spans = pii.find(text, people) if _redacted(row["verdicts"]) else []
    for span in spans:
        found, shown = evidence_hash(text[span.start : span.end]), pii.in_context(text, spans, span)
        yield Hit(f"redacted.{span.kind}", row["url"], found, row["flow"], shown)


def _real_hits(table: pa.Table) -> dict[str, int]:
    """Count the real (not planted) documents that each reason dropped here, or in which a kind was redacted."""
    hits: Counter[str] = Counter()
    real = table.filter(pa.compute.is_null(table["planted"]))
    for stage, reason, verdicts in zip(
        *(real[name].to_pylist() for name in ("stage", "reason", "verdicts")), strict=True
    ):
        if stage == STAGE:
            hits[reason] += 1
        hits.update(f"redacted.{kind}" for kind in _redacted(verdicts))
    return dict(sorted(hits.items()))


def clean(config: CleanConfig, context: Context, *, documents: Path, sources: Path) -> Metrics:
    """Judge `documents`; `sources` brings models/lid.176.ftz and words/*.txt.

    Writes documents/, the dropped ones without their personal data, funnel.json and audit.jsonl: every hit in a real
    document, for reading (see `precision`).
    """
    words = sources / "words"
    judged = context.scratch / "judged"
    judged.mkdir(exist_ok=True)
    arguments = (str(sources / "models" / "lid.176.ftz"), str(words), config.model_dump_json())
    rewrite(documents, judged, _Judge, arguments, context.report, "judge documents")
    model, learned = _learn(judged, safety.load_words(words), config, context)
    finish = (str(model or ""), config.model_dump_json())
    funnel = rewrite(judged, context.out, _Finish, finish, context.report, "safety model")
    table = _documents.read(context.out, ("planted", "stage", "verdict", "reason", "verdicts"))
    kept = {entry["flow"]: entry["documents"] for entry in funnel if entry["stage"] == ""}
    recalls = planted_recall(table)
    there, missed = (sum(entry[name] for entry in recalls.values()) for name in ("planted", "missed"))
    return {
        "headline": f"{sum(kept.values()):,} documents kept; {missed} of {there} planted dirty ones missed",
        "in": sum(verdict == "keep" for (verdict,) in columns_of(documents, "verdict")),
        "kept": kept,
        "dropped": _documents.drops_by_reason(funnel, STAGE),
        "planted_recall": recalls,
        "real_hits": _real_hits(table),
        "precision_on_real": audit(_hits(documents, context.out, config), context.out),
        "safety_model": learned,
    }
