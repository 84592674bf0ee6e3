"""How a model writes calls of tools: read off its chat template, by what that makes of a call.

Templates differ in little but the words around a call's name and its arguments: `<tool_call>` and `</tool_call>`
(Hermes, Qwen), `"parameters"` for `"arguments"` (Llama 3.1). What is not written as JSON is taken for no form.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jinja2

REFUSALS = (ValueError, TypeError, LookupError, jinja2.TemplateError)
"""What a template may raise for a turn that it is not made for."""
_SAID, _NAME, _ARGUMENTS = "zzsaid", "zzname", {"zzkey": 1}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "", "parameters": {"type": "object"}}}
_USER = {"role": "user", "content": "zzuser"}


@dataclass(frozen=True)
class CallForm:
    """The text of a call: `begin` NAME `middle` ARGUMENTS `end`, the arguments as JSON."""

    begin: str
    middle: str
    end: str
    between: str | None = "\n"
    """What stands between calls that are made side by side; None where the model makes one at a time."""
    separators: tuple[str, str] = (", ", ": ")
    """Of the arguments' parts, and of their names and values."""

    @property
    def opener(self) -> str:
        """What nothing but a call begins with, such as `<tool_call>`; empty where that takes the name to tell."""
        return self.begin.partition("{")[0].strip()

    def marker(self, name: str) -> str:
        """Everything before a call's arguments."""
        return self.begin + name + self.middle

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """One call."""
        return self.marker(name) + json.dumps(arguments, ensure_ascii=False, separators=self.separators) + self.end


def form_of(render: Callable[..., str], special: Collection[str]) -> CallForm | None:
    """The form that a template writes calls in; None where it shows no tools, or its form cannot be told.

    `render` takes the template's variables, `special` are the names of special tokens.
    """

    def assistant(**turn: Any) -> str:
        """What the template writes of a question and this turn of the assistant."""
        return render(messages=[_USER, {"role": "assistant", **turn}], add_generation_prompt=False)

    try:
        if _NAME not in render(messages=[_USER], tools=[_TOOL], add_generation_prompt=True):
            return None
        found = _cut(assistant(content=_SAID), assistant(**_calling(1)), special)
    except REFUSALS:
        return None
    if found is None:
        return None
    try:
        twice = assistant(**_calling(2))
    except REFUSALS:  # Llama 3.1's refuses more than one call
        return found
    _, _, after = twice.partition(found.write(_NAME, _ARGUMENTS))
    between, again, _ = after.partition(found.marker(_NAME))
    return replace(found, between=between) if again else found


def _calling(times: int) -> dict[str, Any]:
    call = {"type": "function", "id": "123456789", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
    return {"content": "", "tool_calls": [call] * times}


def _cut(said: str, called: str, special: Collection[str]) -> CallForm | None:
    """What of a turn with a call is the call: the rest stands around words that are said, too."""
    lead, given, tail = said.partition(_SAID)
    if not given or not called.startswith(lead) or not called.endswith(tail):
        return None
    call = called[len(lead) : len(called) - len(tail)].strip()
    begin, named, rest = call.partition(_NAME)
    for separators in ((", ", ": "), (",", ":")):
        middle, given, end = rest.partition(json.dumps(_ARGUMENTS, separators=separators))
        if named and given and not any(name in begin + middle + end for name in special):
            return CallForm(begin, middle, end, None, separators)
    return None
