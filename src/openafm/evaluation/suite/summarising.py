"""Summaries: one-line synopses of package descriptions against those that their maintainers wrote.

ROUGE-L's F1 over words (Lin, 2004), and the share of the summary's words that are in the text: a summary that invents
loses the second.
"""

from collections.abc import Iterable

from openafm.evaluation.suite.items import Item
from openafm.evaluation.suite.material import spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.scoring.checks import faithful
from openafm.scoring.rouge import rouge_l

TOKENS = 48
HOW = "Summarize this text in one short line.\n\n{}"


def measure(subject: Subject, bench: Bench) -> Iterable[Item]:
    """ROUGE-L and faithfulness of each summary."""
    rows = spread(bench.material.pairs("synopses"), bench.size.items)
    bench.context.report("summaries", 0, None)
    chats = [[{"role": "user", "content": HOW.format(row["text"])}] for row in rows]
    for row, (answer,) in zip(rows, subject.ask(chats, TOKENS), strict=True):
        line = answer.text.strip().partition("\n")[0]
        shown = {"text": row["text"], "wanted": row["summary"], "answer": answer.text}
        yield Item("rouge_l", row["id"], rouge_l(line, row["summary"]), 1.0, shown)
        yield Item("faithful", row["id"], faithful(row["text"], line), 1.0)


TASKS = (Task("summaries", "one line against the maintainers' own", measure, Size(32), Size(400), ("synopses",)),)
