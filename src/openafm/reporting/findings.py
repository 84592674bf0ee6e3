"""What disappoints: each rule reads the artifacts and says, in numbers, what a reader would otherwise find out late.

A rule speaks only when the artifacts bear it out, so that an honest run is not talked down and a poor one not up.
"""

from collections.abc import Callable, Iterator
from typing import Any

from openafm.reporting.aligning import is_control, rounds_of
from openafm.reporting.corpus import planted_counts
from openafm.reporting.document import Artifacts, last, number, percent, span
from openafm.reporting.learning import distilled_pairs, paired_difference
from openafm.synthesis.items import MAKERS


def disappointments(artifacts: Artifacts) -> list[str]:
    """All that the rules find, in the order of the chapters."""
    return [finding for rule in RULES for finding in rule(artifacts)]


def rate_text(found: dict[str, Any]) -> str:
    """`20.6% [17 to 25]` of a stage's {"rate", "low", "high"}."""
    return f"{percent(found['rate'])} [{span(found.get('low'), found.get('high'), 100, 0)}]"


def _missed(artifacts: Artifacts) -> Iterator[str]:
    counts = [found for found in planted_counts(artifacts) if found[0] not in artifacts.of("extract")]  # robots apart
    missed = sum(planted - caught - (gone or 0) for _, _, planted, caught, gone in counts)
    if missed > 0:
        kinds = [f"{kind} {planted - caught - (gone or 0)}" for _, kind, planted, caught, gone in counts
                 if planted > caught + (gone or 0)]  # fmt: skip
        total = sum(planted for _, _, planted, _, _ in counts)
        yield f"Planted documents missed by the filter for them: {missed} of {number(total)} ({', '.join(kinds)})."


def _judge(artifacts: Artifacts) -> Iterator[str]:
    if any(artifacts.metrics(step).get("at_chance") for step in artifacts.of("judge")):
        yield "The judge of quality agrees with itself no better than chance when asked in other words."
    for step in artifacts.of("quality"):
        if why := artifacts.metrics(step).get("why_not"):
            yield f"The quality filter: {why}."


def _masks(artifacts: Artifacts) -> Iterator[str]:
    for step in artifacts.of("prune"):
        losses = artifacts.metrics(step).get("held_out_loss", {})
        learned, magnitude = losses.get("learned units"), losses.get("magnitude units")
        if learned is not None and magnitude is not None and round(learned, 2) >= round(magnitude, 2):
            yield (
                f"Learned pruning masks are not ahead of a cut by magnitude ({learned:.3f} against {magnitude:.3f} "
                "nats right after the cut, with the same weights)."
            )


def _distillation(artifacts: Artifacts) -> Iterator[str]:
    for ours, theirs in distilled_pairs(artifacts):
        bits, top1 = (paired_difference(artifacts, ours, theirs, metric) for metric in ("bits", "top1"))
        if bits and bits.low is not None and bits.low > 0:
            yield (
                f"`{ours}` is worse than `{theirs}` in bits per byte, by {bits.value:.3f} "
                f"[{span(bits.low, bits.high, 1, 3)}] on the same windows."
            )
        if top1 and top1.low is not None and top1.low <= 0:
            yield (
                f"In top-1 accuracy `{ours}` is not ahead of `{theirs}` beyond the interval: {top1.value:+.2f} points "
                f"[{span(top1.low, top1.high)}]."
            )


def _needles(artifacts: Artifacts) -> Iterator[str]:
    """The last model whose context was measured finds no fact in it."""
    found = [model for model in artifacts.evaluated if any(m.startswith("needle/") for m in model.row.estimates)]
    for model in found[-1:]:
        needles = [e for name, e in model.row.estimates.items() if name.startswith("needle/")]
        if all(e.low is not None and e.low <= 0.25 for e in needles):
            values = ", ".join(percent(e.value, 0) for e in needles)
            n = max(e.n for e in needles)
            told = f"{values} right, n = {n} each"
            yield f"`{model.label}` does not find facts in long contexts beyond chance (25%): {told}."


def _forgetting(artifacts: Artifacts) -> Iterator[str]:
    """What fine-tuning costs on text."""
    base = last([m.model for m in artifacts.evaluated if m.model in artifacts.of("pretrain")])
    tuned = next((m.model for m in artifacts.evaluated if m.model in artifacts.of("sft", "sft_best")), None)
    lost = paired_difference(artifacts, tuned, base, "bits") if base and tuned else None
    if lost and lost.low is not None and lost.low > 0:
        yield (
            f"Fine-tuning costs bits per byte on text: `{tuned}` needs {lost.value:.2f} "
            f"[{span(lost.low, lost.high)}] more than `{base}`."
        )


def _problems(artifacts: Artifacts) -> Iterator[str]:
    for model in [m for m in artifacts.evaluated if "task/all" in m.row.estimates][-1:]:
        right = model.row.estimates["task/all"]
        if right.high is not None and right.high < 0.5:
            told = rate_text({"rate": right.value, "low": right.low, "high": right.high})
            yield f"The last model, `{model.label}`, answers most held-out problems wrongly: {told} of {right.n} right."


def _writer(artifacts: Artifacts) -> Iterator[str]:
    yields = [
        (kind, n) for step in artifacts.of(*MAKERS) for kind, n in artifacts.metrics(step).get("yield", {}).items()
    ]
    made, kept = (sum(n[key] for kind, n in yields if kind.startswith("writer")) for key in ("made", "kept"))
    if made and kept < made / 2:
        yield f"Of {number(made)} examples that the stand-in writer made, {number(kept)} passed their checks."


def _reward(artifacts: Artifacts) -> Iterator[str]:
    for step in artifacts.of("reward"):
        heldout = artifacts.metrics(step).get("heldout", {})
        overall = heldout.get("accuracy") or {}
        if overall.get("low") is not None and overall["low"] <= 0.5:
            yield f"Reward model `{step}` does not rank held-out pairs beyond chance: {rate_text(overall)}."
            continue
        for name, found in heldout.get("by_strength", {}).items():
            if found.get("rate") is not None and found["low"] <= 0.5:
                below = "below chance" if found["high"] < 0.5 else "not beyond chance"
                told = f"{rate_text(found)} of {found['n']} pairs"
                yield f"Reward model `{step}` is {below} on {name} preferences: {told}."


def _committee(artifacts: Artifacts) -> Iterator[str]:
    """A round in which no member's interval lies above the control's."""
    for step, _, members in rounds_of(artifacts):
        rates = {name: s["heldout"] for name, s in members.items() if s.get("heldout", {}).get("rate") is not None}
        controls = [found for name, found in rates.items() if is_control(name)]
        others = {name: found for name, found in rates.items() if not is_control(name)}
        if controls and others and max(f["low"] for f in others.values()) <= max(f["high"] for f in controls):
            best = max(others, key=lambda name: others[name]["rate"])
            yield (
                f"`{step}`: no member is ahead of the control beyond the intervals ({best} {rate_text(others[best])}, "
                f"control {rate_text(controls[0])}, n = {others[best]['n']})."
            )


def _recovery(artifacts: Artifacts) -> Iterator[str]:
    for step in artifacts.of("recovery"):
        metrics = artifacts.metrics(step)
        interval = metrics.get("regained_interval")
        if metrics.get("regained") is None:
            yield f"`{step}`: quantization lost no log-loss that shows, so there was nothing to regain."
        elif interval and interval[0] <= 0:
            share = f"{percent(metrics['regained'], 0)} [{span(interval[0], interval[1], 100, 0)}]"
            yield f"`{step}`: that the adapter regains any of the lost log-loss is not shown ({share})."


def _task_adapters(artifacts: Artifacts) -> Iterator[str]:
    for step in artifacts.of("task_adapter"):
        metrics = artifacts.metrics(step)
        gain = metrics.get("gain_over_lead_1_interval")
        if gain and gain[0] <= 0:
            word = "is worse than" if gain[1] < 0 else "is not ahead of"
            yield (
                f"`{step}` {word} copying the text's first sentence: ROUGE-L "
                f"{percent(metrics['rouge_adapter'])} against {percent(metrics['rouge_lead_1'])}."
            )


def sources_missing(artifacts: Artifacts) -> Iterator[str]:
    """Sources that this machine could not fetch."""
    for step in artifacts.of("fetch"):
        fetched = artifacts.metrics(step)
        missing = {**fetched.get("tiers_missing", {}), **fetched.get("sources_missing", {})}
        if missing:
            listed = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
            yield f"Sources that could not be fetched on this machine: {listed}."


def _time(artifacts: Artifacts) -> Iterator[str]:
    """Steps that took more than twice their plan and at least half a minute more."""
    late = [
        f"{step} {spent:.0f} s instead of {planned:.0f}"
        for step, planned, spent in times_of(artifacts)
        if planned and spent > 2 * planned and spent - planned > 30
    ]
    if late:
        yield f"Planned too short: {', '.join(late)}."


def times_of(artifacts: Artifacts) -> list[tuple[str, float, float]]:
    """Each step with planned and spent wall-clock seconds; none where no times may be told."""
    return [
        (step, float(manifest.get("planned_seconds") or 0), float((manifest.get("times") or {}).get("seconds") or 0))
        for step in (artifacts.folders if artifacts.run is not None else ())
        for manifest in [artifacts.manifest(step)]
    ]


RULES: tuple[Callable[[Artifacts], Iterator[str]], ...] = (
    sources_missing, _missed, _judge, _masks, _distillation, _needles, _writer, _problems, _forgetting, _reward,
    _committee, _recovery, _task_adapters, _time,
)  # fmt: skip
