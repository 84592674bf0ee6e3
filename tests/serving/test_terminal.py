"""The terminal chat in a real terminal: Ctrl-C stops the answer, and the chat goes on."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest


class Terminal:
    """`openafm chat` behind a pseudo-terminal."""

    def __init__(self, *words):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "openafm", "chat", *words],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_take_terminal,
            env={**os.environ, "OPENAFM_ENGINE": "torch"},  # the native one has said 4,000 tokens before a key is hit
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def type(self, text):
        os.write(self._master, text.encode())

    def until(self, text, after=0):
        """Read until `text` is on the screen after position `after`; returns where it ends."""
        while text not in self.shown[after:]:
            self._read()
        return self.shown.index(text, after) + len(text)

    def interrupt_prompt(self, after):
        """Press Ctrl-C until a new prompt is there: CPython's readline misses one that comes just before its select."""
        for _ in range(20):
            self.type("\x03")
            if select.select([self._master], [], [], 5)[0]:
                return self.until("> ", after)
        raise AssertionError(f"no new prompt after {self.shown!r}")

    def interrupt_answer(self, after):
        """Press Ctrl-C until the answer stops: one that comes while Python clears an object away is lost."""
        for _ in range(5):
            self.type("\x03")
            pressed = time.monotonic()
            while "[stopped]" not in self.shown[after:] and time.monotonic() < pressed + 10:
                if select.select([self._master], [], [], 1)[0]:
                    self._read()
            if "[stopped]" in self.shown[after:]:
                return self.until("> ", self.until("[stopped]", after))
        raise AssertionError(f"no end after {self.shown!r}")

    def more(self, after, characters):
        """Read until so many characters follow position `after`."""
        while len(self.shown) < after + characters:
            self._read()

    def _read(self):
        assert select.select([self._master], [], [], 240)[0], f"nothing more after {self.shown!r}"
        self.shown += os.read(self._master, 65536).decode(errors="replace")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _take_terminal():
    """Make the pseudo-terminal the one whose Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(run):
    terminal = Terminal(str(run / "sft"), "--temperature", "0", "--max-tokens", "4000")  # greedy: it never ends
    yield terminal
    terminal.close()


def test_control_c_stops_the_answer_and_the_chat_goes_on(terminal):
    at = terminal.until("> ")
    for _ in range(2):
        terminal.type("some words\r")
        at = terminal.until("some words", at)
        terminal.more(at, 60)  # the line's end and the beginning of an answer
        at = terminal.interrupt_answer(at)
    terminal.type("half a line")
    at = terminal.until("half a line", at)
    at = terminal.interrupt_prompt(at)  # where it only drops what was typed
    terminal.type("/help\r")
    at = terminal.until("> ", terminal.until("Ctrl-C stops an answer", at))
    terminal.type("/quit\r")
    assert terminal.process.wait(timeout=240) == 0
