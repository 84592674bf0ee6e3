"""Instructions that a program can verify, after IFEval (Zhou et al., arXiv 2311.07911).

Each prompt asks for something to write and gives one to three rules (openafm.scoring.instructions). Strict accuracy
takes the response as it is; the loose one also takes it without its first line, its last line, or its asterisks, as
IFEval does. By prompts all rules must hold; by instructions each counts.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from openafm.evaluation.suite.items import Item
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.scoring.instructions import followed

TOKENS = 160
REQUESTS = (
    "Describe a rainy morning in a small town.", "Explain why the sky is blue.",
    "Write an invitation to a birthday party.",
    "Describe how to make a cup of tea.", "Give advice to someone who is learning to cook.",
    "Write about a visit to a museum.", "Explain what a library is to a child.", "Describe your favourite season.",
    "Write a note to a neighbour about a lost cat.", "Tell a story about a lighthouse.",
    "Explain how a bicycle works.", "Write a review of a quiet restaurant.", "Describe a train ride through mountains.",
    "Write a thank-you letter to a teacher.", "Explain why sleep is important.", "Describe a market on a busy day.",
    "Write an announcement for a garden club.", "Tell what one can see at night in the sky.",
    "Explain how to plant a tree.", "Write about a friendship between two dogs.",
    "Describe the work of a firefighter.", "Give reasons to read books.", "Write a weather report for an island.",
    "Explain what recycling is.", "Describe an old clock.", "Write a product description of a warm coat.",
    "Tell how a river reaches the sea.", "Write a message that cancels a meeting.",
    "Describe a city from a bird's view.", "Explain how to stay calm before an exam.",
)  # fmt: skip
WORDS = ("water", "morning", "time", "light", "small", "people", "garden", "always", "together", "quiet")
LENGTH = ("words_at_most", "words_at_least", "sentences", "bullets", "numbered")
"""Rules on how much; one at most in a prompt."""
WORDING = {
    "words_at_most": "Use at most {count} words.",
    "words_at_least": "Use at least {count} words.",
    "sentences": "Write exactly {count} sentences.",
    "bullets": "Answer with exactly {count} bullet points, each on its own line that begins with a hyphen and a space.",
    "numbered": "Answer with a numbered list of exactly {count} items, the lines beginning with 1. 2. and so on.",
    "uppercase": "Write everything in capital letters.",
    "lowercase": "Write everything in lowercase letters, no capitals at all.",
    "includes": 'Include the word "{word}".',
    "excludes": 'Do not use the word "{word}".',
    "starts_with": 'Begin your answer with the word "{word}".',
    "ends_with": 'End your answer with the exact words "{word}" and nothing after them.',
    "quoted": "Wrap your whole answer in double quotation marks.",
    "no_commas": "Do not use any commas.",
}
"""How each rule is said."""
APART = ({"uppercase", "lowercase"}, {"starts_with", "quoted"}, {"ends_with", "quoted"}, {"quoted", "bullets"},
         {"quoted", "numbered"}, {"starts_with", "bullets"}, {"starts_with", "numbered"}, {"lowercase", "ends_with"},
         {"uppercase", "ends_with"})  # fmt: skip
"""Rules that cannot both hold, or hardly."""


def measure(subject: Subject, bench: Bench) -> Iterable[Item]:
    """Rules kept, strictly and loosely."""
    rows = list(prompts(bench.size.items))
    bench.context.report("instructions", 0, None)
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    for row, (answer,) in zip(rows, subject.ask(chats, TOKENS), strict=True):
        strict = followed(answer.text, row["rules"])
        loose = [
            any(held) for held in zip(*(followed(text, row["rules"]) for text in variants(answer.text)), strict=True)
        ]
        shown = {"asked": row["prompt"], "answer": answer.text, "held": strict}
        yield Item("prompt_strict", row["id"], float(all(strict)), 1.0, shown)
        yield Item("prompt_loose", row["id"], float(all(loose)))
        yield Item("instruction_strict", row["id"], sum(strict), len(strict))
        yield Item("instruction_loose", row["id"], sum(loose), len(loose))


def prompts(count: int) -> Iterator[dict[str, Any]]:
    """`count` requests with their rules, the same in every run."""
    for number in range(count):
        rng = random.Random(f"directions/{number}")
        names = _names(rng, number % 3 + 1)
        rules = [_rule(name, rng) for name in names]
        said = " ".join(WORDING[rule["rule"]].format(**rule) for rule in rules)
        request = REQUESTS[number % len(REQUESTS)]
        yield {"id": f"directions/{number}", "prompt": f"{request} {said}", "rules": rules}


def _names(rng: random.Random, count: int) -> list[str]:
    """Rules that can hold together."""
    found: list[str] = []
    for name in rng.sample(list(WORDING), len(WORDING)):
        clash = any({name, other} in APART or (name in LENGTH and other in LENGTH) for other in found)
        if not clash and len(found) < count:
            found.append(name)
    return found


def _rule(name: str, rng: random.Random) -> dict[str, Any]:
    rule: dict[str, Any] = {"rule": name}
    if name == "words_at_most":
        rule["count"] = rng.choice((20, 30, 50))
    elif name == "words_at_least":
        rule["count"] = rng.choice((30, 50, 70))
    elif name in LENGTH:
        rule["count"] = rng.randrange(2, 6)
    elif name in ("includes", "excludes"):
        rule["word"] = rng.choice(WORDS)
    elif name == "starts_with":
        rule["word"] = rng.choice(("Today", "Sometimes", "Imagine", "First"))
    elif name == "ends_with":
        rule["word"] = rng.choice(("That is all.", "Thank you.", "The end."))
    return rule


def variants(text: str) -> list[str]:
    """A response as IFEval's loose accuracy reads it: without its first line, its last, both, and without asterisks."""
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    return [form.strip() for part in cut for form in (part, part.replace("*", ""))]


TASKS = (Task("instructions", "verifiable instructions followed, IFEval's way", measure, Size(36), Size(300)),)
