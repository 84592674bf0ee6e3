"""Long context: a fact said somewhere in a text of N tokens, asked for at its end (openafm.evaluation.needle).

The model ranks the codes of four facts that are all in the text, so one guess in four is right.
"""

from collections.abc import Iterable

import numpy as np

from openafm.evaluation.needle import answered
from openafm.evaluation.suite.items import Item, NotMeasuredError
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.evaluation.suite.texts import paragraphs

DEPTHS = (0.1, 0.5, 0.9)


def measure(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Right or wrong for each fact, by length; depths lie evenly in each."""
    lengths = [length for length in bench.size.lengths if length <= subject.context_length]
    if not lengths:
        raise NotMeasuredError(
            f"contexts of {min(bench.size.lengths)} tokens and more; the model takes {subject.context_length}"
        )
    haystack = np.array(subject.tokenizer.encode("\n\n".join(paragraphs(bench.material))))
    for length in bench.context.track(lengths, "contexts"):
        for depth in DEPTHS:
            each = max(1, bench.size.items // len(DEPTHS))
            found = answered(
                subject.model, subject.tokenizer, haystack, length=length, depth=depth, questions=each, seed=1
            )
            for number, right in enumerate(found):
                yield Item(f"{length}", f"{length}/{depth:g}/{number}", float(right), 1.0, {"depth": depth})


TASKS = (
    Task(
        "long", "facts found in contexts of so many tokens", measure, Size(12, lengths=(512, 1024)),
        Size(60, lengths=(512, 1024, 2048, 4096, 8192)), ("squad",), guess=0.25,
    ),
)  # fmt: skip
