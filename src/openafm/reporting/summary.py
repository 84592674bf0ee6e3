"""The top of the report, half a minute's reading: what was made, key figures, what disappoints, how to read it."""

from collections.abc import Callable, Iterator

from openafm.evaluation.intervals import Estimate, rate
from openafm.reporting.aligning import is_control, mixture_of, rounds_of
from openafm.reporting.corpus import funnel_of, planted_counts, precision_counts
from openafm.reporting.document import (
    Artifacts,
    Block,
    Cell,
    Chapter,
    Keys,
    Points,
    Text,
    last,
    number,
    percent,
    share_cell,
    span,
)
from openafm.reporting.findings import disappointments, rate_text, times_of
from openafm.reporting.learning import distilled_pairs, paired_difference
from openafm.synthesis.items import MAKERS

KeyFigure = tuple[str, Cell, str]
STAND_IN = (
    "SmolLM2-135M-Instruct stands in for the large server-side model: it judges quality and writes synthetic text. A "
    "stronger one would change the data."
)
TWO_MEASURES = (
    "Recall is measured on documents planted on purpose. Precision on real pages is another column: a language model "
    "working for the developers read those hits, and filters were mended on the same pages."
)


def in_short(artifacts: Artifacts) -> Iterator[Block]:
    """What was made, key figures, what disappoints, what to know before quoting a number."""
    if made := what_was_made(artifacts):
        yield Text(made)
    figures = [figure for make in KEY_FIGURES for figure in make(artifacts)]
    if figures:
        yield Keys(figures)
    if found := disappointments(artifacts):
        yield Points("What disappoints", found)
    care = [STAND_IN] if artifacts.of("judge", *MAKERS) else []
    care += [TWO_MEASURES] if list(planted_counts(artifacts)) else []
    care.append(
        "One run with one seed: intervals (95%, in small print) tell the spread of windows and problems, not of "
        "training again. Sizes and step counts are far below AFM's, so compare "
        "models of this page with each other only."
    )
    yield Points("Before you quote a number", care)


def what_was_made(artifacts: Artifacts) -> str:
    """The run as one paragraph, of the steps that have run."""
    said = []
    if kept := sum(entry["real"] for entry in funnel_of(artifacts) if not entry["stage"]):
        said.append(f"cleaned {kept:,} documents")
    trained = {step: artifacts.metrics(step).get("parameters") for step in artifacts.of("pretrain")}
    if trained:
        first, end = next(iter(trained)), next(reversed(trained))
        said.append(f"trained a language model of {_size(trained[first])} parameters")
        if artifacts.of("prune"):
            said.append(f"pruned and distilled it to {_size(trained[end])}")
    if examples := mixture_of(artifacts).get("train", {}).get("examples"):
        said.append(f"{'fine-tuned it on' if artifacts.of('sft') else 'made'} {examples:,} examples")
    if rounds := rounds_of(artifacts):
        members = sum(not is_control(name) for _, _, table in rounds for name in table)
        said.append(f"ran {_times(len(rounds), 'round')} of a teaching committee ({members} members)")
    if package := artifacts.metrics(last(artifacts.of("compress"))):
        said.append(f"packed the model at {number(package.get('projection_bits_per_weight'))} bits a projection weight")
    adapters = {"recovery adapter": artifacts.of("recovery"), "task adapter": artifacts.of("task_adapter")}
    said += [f"trained {_times(len(steps), kind)}" for kind, steps in adapters.items() if steps]
    return f"This run {', '.join(said[:-1])}{' and ' if said[1:] else ''}{said[-1]}." if said else ""


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _size(parameters: int | None) -> str:
    return "–" if parameters is None else f"{parameters / 1e6:.2f} million"


def _documents(artifacts: Artifacts) -> Iterator[KeyFigure]:
    if entries := funnel_of(artifacts):
        read = sum(entry["real"] for entry in entries)
        kept = sum(entry["real"] for entry in entries if not entry["stage"])
        share = percent(kept / read if read else None)
        yield "Real documents kept", Cell(number(kept)), f"of {number(read)} read: {share}"


def _planted(artifacts: Artifacts) -> Iterator[KeyFigure]:
    cleaning = artifacts.of("clean")
    counts = [(planted, caught) for step, _, planted, caught, _ in planted_counts(artifacts) if step in cleaning]
    if total := sum(planted for planted, _ in counts):
        caught = sum(caught for _, caught in counts)
        cell = share_cell(rate(caught, total))
        rows = [counts for step, _, counts in precision_counts(artifacts) if step in cleaning]
        right, read = sum(row["true"] for row in rows), sum(row["true"] + row["false"] for row in rows)
        precision = f"{percent(right / read)} of {number(read)} hits read" if read else "no hit was read"
        note = f"{number(caught)} of {number(total)}. Precision on real pages: {precision}"
        yield "Recall on planted dirt, %", cell, note


def _tokens(artifacts: Artifacts) -> Iterator[KeyFigure]:
    steps = artifacts.of("pretrain")
    if seen := sum(artifacts.metrics(step).get("tokens", 0) for step in steps):
        told = f"{_times(len(steps), 'stage')}, controls included"
        yield "Pretraining tokens", Cell(f"{seen / 1e6:.2f} M"), told


def _distilled(artifacts: Artifacts) -> Iterator[KeyFigure]:
    for ours, theirs in distilled_pairs(artifacts)[-1:]:
        gap = paired_difference(artifacts, ours, theirs, "top1")
        if gap:
            cell = Cell(f"{gap.value:+.2f}", span(gap.low, gap.high))
            yield "Distilled minus scratch, top-1 points", cell, f"{ours} − {theirs}, {gap.n} windows, paired"


def _human(artifacts: Artifacts) -> Iterator[KeyFigure]:
    train = mixture_of(artifacts).get("train", {})
    if train.get("examples"):
        note = f"{percent(train['synthetic_share'])} synthetic, of {number(train['examples'])} training examples"
        yield "Examples written by people", Cell(percent(train["human_share"])), note


def _reward(artifacts: Artifacts) -> Iterator[KeyFigure]:
    step = last(artifacts.of("reward"))
    found = artifacts.metrics(step).get("heldout", {}).get("accuracy")
    if found and found.get("rate") is not None:
        note = f"{step}, {number(found['n'])} held-out pairs; chance 50%"
        yield "Reward model ranks rightly, %", share_cell(found), note


def _committee(artifacts: Artifacts) -> Iterator[KeyFigure]:
    for step, best, members in rounds_of(artifacts)[-1:]:
        found = members.get(best, {}).get("heldout", {})
        control = next((s.get("heldout") for name, s in members.items() if is_control(name)), None)
        told = f"; control {rate_text(control)}" if control and control.get("rate") is not None else ""
        note = f"{step}: {best}, {number(found.get('n'))} held-out problems{told}"
        yield "Best committee member right, %", share_cell(found), note


def _last_model(artifacts: Artifacts) -> Iterator[KeyFigure]:
    for model in artifacts.evaluated[-1:]:
        metrics = (("bits_per_byte/all", "Bits per byte, last model", 1, 2, "windows"),
                   ("task/all", "Problems right, last model, %", 100, 1, "problems"))  # fmt: skip
        for metric, label, scale, digits, what in metrics:
            if metric in model.row.estimates:
                found: Estimate = model.row.estimates[metric]
                ends = span(found.low, found.high, scale, digits)
                value = f"{scale * found.value:.{digits}f}"
                yield label, Cell(value, ends), f"{model.label}, {number(found.n)} held-out {what}"


def _package(artifacts: Artifacts) -> Iterator[KeyFigure]:
    step = last(artifacts.of("compress"))
    metrics = artifacts.metrics(step)
    if "projection_bits_per_weight" in metrics:
        note = f"{step}; {number(metrics.get('package_bits_per_weight'))} over the whole package"
        yield "Bits a projection weight", Cell(number(metrics["projection_bits_per_weight"])), note
    if "kl" in metrics:
        low, high = metrics.get("kl_interval") or (None, None)
        adapted = [f"{number(artifacts.metrics(s).get('kl_adapted'), 4)} with {s}" for s in artifacts.of("recovery")]
        cell = Cell(number(metrics["kl"], 4), span(low, high, 1, 4))
        yield "KL lost by quantization, nats", cell, "; ".join(adapted)


def _time(artifacts: Artifacts) -> Iterator[KeyFigure]:
    if times := times_of(artifacts):
        planned, spent = sum(p for _, p, _ in times), sum(s for _, _, s in times)
        yield "Time spent", Cell(minutes(spent)), f"planned {minutes(planned)}, {_times(len(times), 'step')}"


def minutes(seconds: float) -> str:
    """`12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


KEY_FIGURES: tuple[Callable[[Artifacts], Iterator[KeyFigure]], ...] = (
    _documents, _planted, _tokens, _distilled, _human, _reward, _committee, _last_model, _package, _time,
)  # fmt: skip

CHAPTERS = (Chapter("In short", (), in_short),)
