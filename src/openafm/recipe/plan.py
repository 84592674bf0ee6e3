"""What a recipe's pretraining takes on N devices of a kind (`openafm plan RECIPE --devices N --device KIND`).

For each training step: the layout of devices that the model of openafm.recipe.devices finds fastest among those whose
dry run (openafm.training.dryrun) fits their memory, the time and the rent. Post-training is not counted: its tokens are
a thousandth of these.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from rich.table import Column, Table

from openafm.model import ModelConfig
from openafm.recipe.devices import DEVICES, USABLE, Device, Layout, StepTime, layouts, least_bytes, step_time
from openafm.recipe.recipe import Recipe, Step
from openafm.stage import Parallelism
from openafm.training.dryrun import Memory, dry_run, pretend

TRIES = 8
"""Layouts whose dry run is done for a step, in the order of their time; then the thriftiest of the others."""
DAY = 86_400


@dataclass(frozen=True)
class Work:
    """What a training step has to do."""

    step: str
    config: ModelConfig
    length: int
    batch_tokens: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """How a step is best done, or why not."""

    work: Work
    layout: Layout | None = None
    memory: Memory | None = None
    time: StepTime | None = None
    warning: str = ""

    @property
    def days(self) -> float:
        """Of the whole step."""
        return self.work.tokens / self.work.batch_tokens * self.time.seconds / DAY if self.time else 0.0


def plan(
    recipe: Recipe, count: int, kind: str, tell: Callable[[str], None] = lambda what: None
) -> tuple[Device, list[Plan]]:
    """Plan every training step of the recipe; `tell` hears of each dry run, seconds of one core, before it is done.

    Raises ValueError for an unknown device, or a recipe that trains none.
    """
    device = DEVICES.get(kind.lower().replace("-", "").replace(" ", ""))
    if device is None:
        raise ValueError(f"--device {kind}: known are {', '.join(known.name for known in DEVICES.values())}")
    if count > 1 and not device.link_gb:
        raise ValueError(f"--devices {count}: torch trains on one {device.name} at a time; plan with --devices 1")
    works = [work(recipe, step) for step in recipe.steps.values() if step.stage in ("pretrain", "learn_masks")]
    if not works:
        raise ValueError(f"recipe {recipe.name} has no pretraining step to plan")
    if count > 1:
        pretend(count)
    return device, [_plan(one, recipe.steps[one.step], count, device, tell) for one in works]


def work(recipe: Recipe, step: Step) -> Work:
    """The step's work as its config tells."""
    config: Any = step.config
    return Work(step.name, shape(recipe, step), config.sequence_length, config.batch_tokens, config.tokens)


def shape(recipe: Recipe, step: Step) -> ModelConfig:
    """The shape of the model that a step makes, followed through the recipe. Raises ValueError where it is imported."""
    config: Any = step.config
    if step.stage == "pretrain" and config.shape is not None:
        tokenizer: Any = recipe.steps[str(step.inputs["tokenizer"]).partition("/")[0]].config
        vocabulary = getattr(tokenizer, "vocab_size", None)
        if vocabulary is None:
            raise ValueError(
                f"step {step.name}: its tokenizer is imported, with a vocabulary that the recipe does not say"
            )
        return ModelConfig(vocab_size=vocabulary, max_length=config.sequence_length, **config.shape.model_dump())
    if "model" not in step.inputs:
        raise ValueError(f"step {step.name}: its model is imported, so its shape is not in the recipe: plan another")
    before = recipe.steps[str(step.inputs["model"]).partition("/")[0]]
    found = shape(recipe, before)
    if step.stage == "prune":
        masks: Any = before.config
        found = found.model_copy(update={"d_ff": masks.keep})
    return found


def _plan(wanted: Work, step: Step, count: int, device: Device, tell: Callable[[str], None]) -> Plan:
    """The fastest layout that fits; the recipe's own where it names one."""
    candidates = layouts(wanted.config, wanted.length, wanted.batch_tokens, count, device)
    if step.parallelism != Parallelism():
        candidates = [layout for layout in candidates if _agrees(layout.parallelism, step.parallelism)]
    if step.stage == "learn_masks":  # masks are of whole layers
        candidates = [layout for layout in candidates if layout.parallelism.tensor == layout.parallelism.context == 1]
    if not candidates:
        rows = max(1, wanted.batch_tokens // wanted.length)
        asked = step.parallelism.model_dump(exclude_defaults=True)
        why = f"{count} devices cannot share a batch of {rows} sequences evenly" + (f" by {asked}" if asked else "")
        return Plan(wanted, warning=f"cannot be done: {why}")
    room = USABLE * device.memory_gb * 1e9
    likely = [layout for layout in candidates if least_bytes(wanted.config, layout, wanted.length) < room]
    least = None
    thriftiest = sorted(likely[TRIES:], key=lambda layout: least_bytes(wanted.config, layout, wanted.length))[:1]
    for layout in likely[:TRIES] + thriftiest:
        tell(f"{wanted.step}: dry run of {layout.text()}, {layout.rows} x {wanted.length:,} tokens")
        memory = _dry_run(wanted.config, layout, wanted.length)
        if memory.peak < room:
            time = step_time(wanted.config, layout, wanted.length, wanted.batch_tokens, device)
            return Plan(wanted, layout, memory, time)
        least = min(least or memory, memory, key=lambda found: found.peak)
    needs = f"{least.peak / 1e9:.0f} GB at least" if least else "far more"
    return Plan(wanted, warning=f"does not fit {device.memory_gb:.0f} GB on {count} {device.name} (needs {needs})")


@cache
def _dry_run(config: ModelConfig, layout: Layout, length: int) -> Memory:
    """Steps of one recipe often have one shape."""
    return dry_run(config, layout.parallelism, rows=layout.rows, length=length)


def _agrees(layout: Parallelism, asked: Parallelism) -> bool:
    """Whether the layout is what a recipe asks for."""
    return all(getattr(layout, name) == value for name, value in asked.model_dump(exclude_defaults=True).items())


def dollars(plans: Iterable[Plan], count: int, device: Device) -> float:
    """Rent of all devices for all steps."""
    return sum(found.days for found in plans) * 24 * count * device.dollars


def table(plans: list[Plan], count: int, device: Device) -> Table:
    """The plan for the terminal."""
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("GB/device", "step", "waiting", "days", "cost")]
    whole = [Column(name, no_wrap=True) for name in ("model", "tokens")]
    drawn = Table("step", *whole, "parallelism", "rows", *numbers)
    for found in plans:
        wanted, time = found.work, found.time
        model = f"{wanted.config.parameters / 1e9:.2f}B x {wanted.length:,}"
        if time is None or found.layout is None or found.memory is None:
            drawn.add_row(wanted.step, model, f"{wanted.tokens / 1e9:,.4g}B", "none: see below")
            continue
        drawn.add_row(
            wanted.step,
            model,
            f"{wanted.tokens / 1e9:,.4g}B",
            found.layout.text(),
            str(found.layout.rows),
            f"{found.memory.peak / 1e9:.1f}",
            f"{time.seconds:.2f} s",
            f"{1 - time.compute / time.seconds:.0%}",
            f"{found.days:.1f}",
            f"${dollars([found], count, device):,.0f}" if device.dollars else "-",
        )
    days = f"{sum(found.days for found in plans):.1f}"
    cost = f"${dollars(plans, count, device):,.0f}" if device.dollars else "-"
    drawn.add_row("all", "", "", f"{count} x {device.name}", "", "", "", "", days, cost)
    return drawn


def footnotes(plans: list[Plan], device: Device) -> list[str]:
    """What the figures rest on, and what does not fit."""
    assumed = (
        f"{device.name}: {device.memory_gb:.0f} GB, {device.tflops:.0f} TFLOP/s at {device.mfu:.0%}, links of "
        f"{device.link_gb:g} GB/s in a node of {device.per_node} and {device.network_gb:g} GB/s between them, "
        f"${device.dollars:.2f} an hour"
    )
    return [assumed, *(f"warning: {found.work.step} {found.warning}" for found in plans if found.warning)]


def as_json(plans: list[Plan], count: int, device: Device) -> dict[str, Any]:
    """The plan for scripts: bytes, seconds, days, dollars."""
    return {
        "device": asdict(device),
        "devices": count,
        "days": round(sum(found.days for found in plans), 3),
        "dollars": round(dollars(plans, count, device)),
        "steps": [
            {
                "step": found.work.step,
                "parameters": found.work.config.parameters,
                "tokens": found.work.tokens,
                "parallelism": found.layout.parallelism.model_dump() if found.layout else None,
                "sequences_per_micro_batch": found.layout.rows if found.layout else None,
                "memory": asdict(found.memory) | {"peak": found.memory.peak} if found.memory else None,
                "seconds_per_step": asdict(found.time) | {"all": found.time.seconds} if found.time else None,
                "days": round(found.days, 3),
                "dollars": round(dollars([found], count, device)),
                "warning": found.warning,
            }
            for found in plans
        ],
    }
