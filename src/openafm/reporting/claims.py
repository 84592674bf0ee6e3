"""Chapters of the report on AFM's claims: an ablation's arms and verdicts, and muParam's check over width."""

from collections.abc import Iterator

from markupsafe import Markup

from openafm.reporting import ablation
from openafm.reporting.document import Artifacts, Block, Chapter, Figure, Table, Text


def ablations(artifacts: Artifacts) -> Iterator[Block]:
    """What each table of arms says: the claim, its difference over seeds, the verdict."""
    for step in artifacts.of("ablation_table"):
        config = ablation.AblationTableConfig(**artifacts.manifest(step)["config"])
        result = artifacts.json(step, "results.json")
        chosen = [row for row in result["rows"] if row["metrics"]]
        yield Text(f"{config.title}. AFM: {config.reported}. A bigger run: {config.bigger}")
        tables = (
            (f"{step}: the arms. {ablation.seeds_of(result)}", ablation.arms_table(config, result, chosen)),
            (f"{step}: every run, by the loss at the end of its training.", ablation.sweep_table(result)),
            (
                f"{step}: the claims. Shown or refuted where the interval over seeds lies beyond zero, or for level "
                "within the stated margin; else open.",
                ablation.claims_table(result["verdicts"]),
            ),
        )
        for caption, found in tables:
            if found:
                yield Table(caption, *found)
        for name, arms in (config.panels or {"figure": result["arms"]}).items():
            if drawn := ablation.figure(config, result, arms, name=f"{step}-{name}"):
                told = "lowest to highest seed" if result["x"] or config.positions else "95% t intervals over seeds"
                yield Figure(f"{config.title}: {name}; spread: {told}.", Markup(drawn))


def muparam(artifacts: Artifacts) -> Iterator[Block]:
    """How far activations move in a few steps, over width: level under a parametrisation that transfers."""
    for step in artifacts.of("coordinates"):
        checked = artifacts.json(step, "coordinates.json")
        yield Figure(
            "Coordinate check of muParam (simple): RMS change of the last activations after a few steps, over width, "
            "means over seeds. Level lines mean that a learning rate found at one width holds at another.",
            Markup(ablation.movement_figure(checked, name=step)),
        )
        yield Table(
            f"{step}: slope of log movement over log width (0 transfers), mean over seeds, lowest and highest of them.",
            *ablation.slopes_table(checked),
        )


CHAPTERS = (
    Chapter("Ablation table", ("ablation_table",), ablations),
    Chapter("muParam over width", ("coordinates",), muparam),
)
