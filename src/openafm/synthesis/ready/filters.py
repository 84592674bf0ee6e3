"""What a model wrote for a ready task, kept or rejected with a reason: form, invention, and whether the text says so.

AFM filters its summaries' training data (arXiv 2407.21075, section 5.2). Where no model for textual entailment is at
hand, a language model is asked whether a text says what an answer says, about the answer's own text and about another:
the answer has to be likelier of its own. Against a judge that cannot tell, half of all answers pass.
"""

from collections.abc import Sequence

from openafm.sampling.sampler import Prompt, Sampler
from openafm.scoring.judges import yes_no
from openafm.scoring.written import invented
from openafm.synthesis.ready.layouts import cut

MOST_WORDS = 90
"""Of the text that a judge reads."""


def form_reason(source: str, answer: str, longest: int, shortest: int = 3) -> str | None:
    """Why an answer's form rejects it: too short, too long, or a copy of the text; or None."""
    count = len(answer.split())
    if count < shortest:
        return "too_short"
    if count > longest:
        return "too_long"
    if answer.rstrip(" .").casefold() == source.rstrip(" .").casefold():
        return "copy_of_text"
    return None


def invention_reason(source: str, answer: str) -> tuple[str | None, str]:
    """The reason and the names and numbers that the source does not have."""
    found = invented(source, answer)
    if not found:
        return None, ""
    return ("number_not_in_text" if found[0][0].isdigit() else "name_not_in_text"), ", ".join(found)


def question(text: str, answer: str) -> Prompt:
    """Ask a base or a chat model alike: plain text that goes on with Yes or No."""
    shown = " ".join(cut(text, MOST_WORDS).split())
    return (
        "Text: The meeting of Monday moves to Friday at 10:00.\nClaim: the meeting is on Friday\nDoes the text say so? "
        "Yes\n\nText: The meeting of Monday moves to Friday at 10:00.\nClaim: compresses files\nDoes the text say so? "
        f"No\n\nText: {shown}\nClaim: {answer}\nDoes the text say so?"
    )


def entailment(judge: Sampler, texts: Sequence[str], answers: Sequence[str], pool: Sequence[str]) -> list[float]:
    """By how many nats more each answer is said to follow from its own text than from another one of `pool`.

    An endpoint has to echo prompts with log-probabilities (vLLM and llama.cpp do); else it raises ValueError.
    """
    if len(set(pool)) < 2:
        raise ValueError("entailment is told by comparing texts: give two or more that differ")
    around = [*pool, *pool]
    others = [next(other for other in around[i % len(pool) :] if other != text) for i, text in enumerate(texts)]
    asked = [question(text, answer) for text, answer in zip(texts, answers, strict=True)]
    asked += [question(text, answer) for text, answer in zip(others, answers, strict=True)]
    found = yes_no(judge, asked, " Yes", " No")
    return [own - other for own, other in zip(found[: len(texts)], found[len(texts) :], strict=True)]
