"""`openafm chat FOLDER`: talk to a model in the terminal, or through a pipe, a line a turn.

FOLDER is a run, a step's output, a model folder or a package. Ctrl-C stops the answer, not the program.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from openafm.engine import Engine, TorchEngine
from openafm.engine.package import find_package
from openafm.tokenizer import Message

BEST_FIRST = (
    "summariser", "recovery", "compress", "import", "committee", "sft_best", "sft", "long", "continued", "distil",
    "prune", "scratch", "teacher",
)  # fmt: skip
"""Steps whose output can be talked to, the furthest along the recipe first."""
TALKS = frozenset(BEST_FIRST[: BEST_FIRST.index("sft") + 1])
"""Steps whose model has been trained to answer; the others continue text."""
RECOVERY = "recovery"
HELP = """/adapter NAME  answer with this adapter (none: without)
/system TEXT   set the system message and start anew
/reset         forget the conversation
/help          this list
/quit          leave (also Ctrl-D)
Ctrl-C stops an answer."""


def latest_model(run: Path) -> Path:
    """Return the output of the furthest finished step of a run that holds a model, or `run` itself if it is a model.

    Raises ValueError where no step with a model is finished yet.
    """
    if holds_model(run):
        return run
    for step in (*_tasks(run), *BEST_FIRST):
        if (run / step / "manifest.json").exists() and holds_model(run / step):
            return run / step
    raise ValueError(f"{run} holds no finished model yet: run its recipe, at least until the step teacher")


def _tasks(run: Path) -> list[str]:
    """The steps that `openafm adapt` added, the last first: each package carries the adapters of those before it."""
    path = run / "run.json"
    steps = json.loads(path.read_text())["steps"] if path.exists() else []
    return [step["name"] for step in reversed(steps) if step["name"].startswith("adapt_")]


def holds_model(folder: Path) -> bool:
    """Whether the folder is or holds a package, or is a model folder."""
    return find_package(folder) is not None or (folder / "model.safetensors").exists()


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
        tokenizer = self.engine.tokenizer
        if self.talks:
            self.messages.append({"role": "user", "content": line})
            prompt = tokenizer.render_chat(self.messages)
        else:
            prompt = [tokenizer.bos_id, *tokenizer.encode(line)]
        self.seed += 1
        tokens: list[int] = []
        said = ""
        try:
            for token in self.engine.generate(
                prompt,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                adapter=self.adapter,
            ):
                tokens.append(token)
                text = tokenizer.decode(tokens)
                if not text.endswith("\ufffd"):  # a character whose bytes are not all here yet
                    yield text[len(said) :]
                    said = text
            if text := tokenizer.decode(tokens)[len(said) :]:
                yield text
                said += text
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
    found = latest_model(folder)
    engine = TorchEngine.load(found)
    talks = found.name not in set(BEST_FIRST) - TALKS
    if adapter is None and RECOVERY in engine.adapters():
        adapter = RECOVERY  # the compressed model as it is meant to be used
    if adapter is not None and adapter not in engine.adapters():
        raise ValueError(f"no adapter {adapter!r} in {found}: there are {', '.join(engine.adapters()) or 'none'}")
    conversation = Conversation(engine, talks, adapter, max_tokens, temperature)
    print(_greeting(found, conversation), file=out, flush=True)
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
