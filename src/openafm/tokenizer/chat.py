"""Conversations as tokens, so that nothing a message says can pose as the conversation's own structure.

A chat template (jinja, as Hugging Face models carry it) is rendered with a placeholder for each message's content. The
text between the placeholders is the template's own, so special tokens are recognised there and nowhere else; contents
never pass through the template and are encoded apart. Templates that look into contents therefore see placeholders.
Used by every step that trains on or samples conversations, and by `openafm chat`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, str]
"""One turn: {"role": one of ROLES, "content": text}."""

ROLES = ("system", "user", "assistant", "tool")

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template of the tokenizers trained here: <bos>, then per message <|role|> content <|end|>."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # Unicode noncharacters; only templates could hold them, contents are kept out


def _refuse(message: str) -> None:
    raise ValueError(f"the chat template refuses this conversation: {message}")


@cache
def compiled(template: str) -> jinja2.Template:
    """A chat template, with what Hugging Face's expect to find."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def _check(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise ValueError(f"message {number}: role {message.get('role')!r} is not one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"message {number}: content must be text, not {type(message.get('content')).__name__}")


def render_chat(
    messages: Sequence[Message],
    add_generation_prompt: bool,
    *,
    template: str,
    names: Mapping[str, str],
    special: Mapping[str, int],
    encode: Callable[[str], list[int]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Tokens of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.

    `names` are the template's variables (bos_token, eos_token), `special` maps special tokens to ids, `encode` turns
    plain text into ordinary tokens. `tools`, in OpenAI's form, are for templates that show them. Raises ValueError for
    unknown roles, contents that are not text, tools that name a special token, and what the template refuses.
    """
    _check(messages)
    shown = {"tools": list(tools)} if tools else {}
    described = json.dumps(shown, ensure_ascii=False)
    if posing := [name for name in special if name in described]:  # the template writes them out as they are
        raise ValueError(f"tools: {posing[0]} is a special token of this model: leave it out of their descriptions")
    hollow = [{"role": message["role"], "content": f"{_OPEN}{i}{_CLOSE}"} for i, message in enumerate(messages)]
    text = compiled(template).render(messages=hollow, add_generation_prompt=add_generation_prompt, **shown, **names)
    splitter = "|".join([f"{_OPEN}\\d+{_CLOSE}", *map(re.escape, sorted(special, key=len, reverse=True))])
    tokens: list[int] = []
    for part in re.split(f"({splitter})", text):
        if part in special:
            tokens.append(special[part])
        elif part.startswith(_OPEN):
            tokens += encode(messages[int(part[1:-1])]["content"])
        elif part:
            tokens += encode(part)
    return tokens
