"""What a pretraining stage reads: shared by training, mask learning and the teacher's token cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from openafm.model.presets import SIZES, Size
from openafm.stage import Config
from openafm.training.batches import TokenBatches

LATER_STAGES_ONLY = ("licensed",)
"""Flows whose terms allow stages 2 and 3 alone: continued and context-lengthening pretraining (AFM report, 3.2.2)."""


def core_mixture(mixture: Mapping[str, float]) -> Mapping[str, float]:
    """Return a core stage's mixture; an error naming the mixture's line where it draws on licensed texts."""
    if named := sorted(name for name in LATER_STAGES_ONLY if mixture.get(name, 0) > 0):
        raise PydanticCustomError(
            "licensed_in_core",
            "a core mixture draws on {names}, whose terms allow stages 2 and 3 only: take it out here and let the "
            "continued and the context-lengthening stage read it",
            {"names": ", ".join(named)},
        )
    return mixture


def check_core(config: "Data") -> None:
    """Raise for a config that turns out to be of the core stage; the error is of its `mixture`."""
    try:
        core_mixture(config.mixture)
    except PydanticCustomError as error:
        line = InitErrorDetails(type=error, loc=("mixture",), input=config.mixture)
        raise ValidationError.from_exception_data("Data", [line]) from None


class Data(Config):
    """What a stage reads: a mixture of token shards, in windows of one length, for a number of tokens."""

    mixture: dict[str, float] = {"web": 0.7, "code": 0.2, "math": 0.1}
    """Weights over the shards' sources."""
    sequence_length: int = 256
    batch_tokens: int = 2048
    tokens: int = 500_000
    draw: int = 0
    """Which order of the windows: a stage that must not read what an earlier one read first takes another number."""
    max_epochs: float | dict[str, float] | None = None
    """How often a source may be read at most, one number or by source; then the others share its weight, and where
    none is left to read, that is an error. None: no cap."""
    separate: bool = False
    """Whether the documents of a window are hidden from each other."""
    size: str | None = None
    """The one dial, a name of `openafm.model.presets.SIZES`: it gives what is left out of tokens, batch_tokens and, of
    a new model, the shape. The learning rate stays (muParam)."""
    size_share: float = 1.0
    """This step's part of the dial's tokens. AFM: 1 core, 0.16 continued, 0.016 long, 0.03 masks."""

    @model_validator(mode="before")
    @classmethod
    def _dialled(cls, given: Any) -> Any:
        """Write out what the dial gives, so that a resolved config tells all of it; null leaves a value to the dial."""
        if not isinstance(given, dict) or given.get("size") is None:
            return given
        if given["size"] not in SIZES:
            raise ValueError(f"size {given['size']!r} is not on the dial: {', '.join(SIZES)}")
        return cls.dialled(SIZES[given["size"]], {name: value for name, value in given.items() if value is not None})

    @classmethod
    def dialled(cls, size: Size, given: dict[str, Any]) -> dict[str, Any]:
        """`given`, and what the dial gives a step of this kind where it says nothing."""
        length = given.get("sequence_length", cls.model_fields["sequence_length"].default)
        batch = given.get("batch_tokens", size.batch_tokens(length))
        share = given.get("size_share", cls.model_fields["size_share"].default)
        return {"batch_tokens": batch, "tokens": max(1, round(share * size.tokens / batch)) * batch} | given

    def batches(self, shards: Path, seed: int, *more: Path) -> TokenBatches:
        """The stage's batches, out of one or more folders of shards."""
        return TokenBatches(
            [shards, *more],
            self.mixture,
            sequence_length=self.sequence_length,
            batch_tokens=self.batch_tokens,
            tokens=self.tokens,
            seed=seed + self.draw,
            max_epochs=self.max_epochs,
            documents=self.separate,
        )


class CoreData(Data):
    """What a step of the core stage reads (masks, the teacher's tokens): never licensed texts."""

    mixture: Annotated[dict[str, float], AfterValidator(core_mixture)] = {"web": 0.7, "code": 0.2, "math": 0.1}
    """Weights over the shards' sources."""
