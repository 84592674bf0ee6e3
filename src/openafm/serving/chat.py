"""`openafm chat FOLDER`: talk to a model in the terminal, or through a pipe, a line a turn.

FOLDER is a run, a step's output, a model folder or a package. Ctrl-C stops the answer, not the program.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from openafm.engine import Engine
from openafm.sampling.sampler import Prompt, prompt_tokens
from openafm.serving.answer import Answer
from openafm.serving.opening import open_model
from openafm.tokenizer import Message

HELP = """/adapter NAME  answer with this adapter (none: without)
/system TEXT   set the system message and start anew
/reset         forget the conversation
/help          this list
/quit          leave (also Ctrl-D)
Ctrl-C stops an answer."""


@dataclass
class Conversation:
    """One user's talk with an engine: history, adapter, and the commands that change them."""

    engine: Engine
    talks: bool = True
    """Whether the model answers; else it continues the text it is given."""
    adapter: str | None = None
    max_tokens: int = 256
    temperature: float = 0.7
    seed: int = 0
    messages: list[Message] = field(default_factory=list)

    def command(self, line: str) -> str | None:
        """Carry out a /command and return what to print, None for /quit."""
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return None
        if name == "/adapter":
            return self._switch(rest.strip())
        if name == "/system":
            self.messages = [{"role": "system", "content": rest.strip()}] if rest.strip() else []
            return "system message set; the conversation starts anew"
        if name == "/reset":
            self.messages = [message for message in self.messages[:1] if message["role"] == "system"]
            return "the conversation starts anew"
        return HELP if name == "/help" else f"unknown command {name}\n{HELP}"

    def _switch(self, name: str) -> str:
        known = self.engine.adapters()
        if name not in ("", "none", *known):
            return f"no adapter {name}: there are none, {', '.join(known)}" if known else "this model has no adapters"
        self.adapter = None if name in ("", "none") else name
        return f"answering with {self.adapter or 'no adapter'}"

    def answer(self, line: str) -> Iterator[str]:
        """Yield the answer in pieces of text; what was said so far is remembered even if the reader stops."""
        prompt: Prompt = line
        if self.talks:
            self.messages.append({"role": "user", "content": line})
            prompt = self.messages
        self.seed += 1
        said = ""
        try:
            answer = Answer(
                self.engine.tokenizer,
                prompt_tokens(self.engine.tokenizer, prompt),
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                adapter=self.adapter,
            )
            for piece in answer.by(self.engine):
                said += piece
                yield piece
        finally:
            if self.talks:
                self.messages.append({"role": "assistant", "content": said})


def chat(
    folder: Path,
    adapter: str | None = None,
    *,
    max_tokens: int = 256,
    temperature: float = 0.7,
    lines: Iterable[str] | None = None,
    out: TextIO | None = None,
) -> None:
    """Chat with the best model in `folder`, reading `lines` (standard input when None) and writing to `out`.

    Without `adapter`, a package answers with its recovery adapter, if it has one.
    """
    out = out or sys.stdout
    opened = open_model(folder)
    known = opened.engine.adapters()
    if adapter is None:
        adapter = opened.adapter
    if adapter is not None and adapter not in known:
        raise ValueError(f"no adapter {adapter!r} in {opened.path}: there are {', '.join(known) or 'none'}")
    conversation = Conversation(opened.engine, opened.talks, adapter, max_tokens, temperature)
    print(_greeting(opened.path, conversation), file=out, flush=True)
    if lines is None:
        lines = _typed() if sys.stdin.isatty() else sys.stdin
    for line in lines:
        if not _turn(conversation, line.strip(), lambda text: print(text, end="", file=out, flush=True)):
            return


def _greeting(found: Path, conversation: Conversation) -> str:
    adapters = conversation.engine.adapters()
    note = "" if conversation.talks else "\nIt has not learned to chat yet: it continues the text you give it."
    carried = f", adapters: {', '.join(adapters)} (using {conversation.adapter or 'none'})" if adapters else ""
    return f"model {found}{carried}{note}\n/help lists the commands."


def _typed() -> Iterator[str]:
    """Yield the lines of a terminal; Ctrl-C at the prompt gives a fresh one, Ctrl-D ends."""
    import readline  # noqa: F401  gives input() history and editing

    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
        except EOFError:
            return


def _turn(conversation: Conversation, line: str, show: Callable[[str], None]) -> bool:
    """Carry out a command or show an answer; False ends the chat."""
    if not line:
        return True
    if line.startswith("/"):
        reply = conversation.command(line)
        show("" if reply is None else reply + "\n")
        return reply is not None
    answer = conversation.answer(line)
    try:
        for piece in answer:
            show(piece)
    except KeyboardInterrupt:
        answer.close()  # type: ignore[attr-defined]
        show(" [stopped]")
    show("\n")
    return True
