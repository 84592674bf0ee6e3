"""`openafm label RUN`: the page on which people say which of two answers is better. Loopback only.

The page is told neither who gave an answer nor which comes first: each labeller sees each pair in an order of its own.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from pydantic import Field

from openafm.posttraining.examples import share
from openafm.posttraining.labelling import GRADES, Grade, Labels, Pair, preference
from openafm.scoring.checks import DIMENSIONS, STRENGTHS
from openafm.serving.accounting import Accounting
from openafm.serving.body import ApiError, Body, parse
from openafm.serving.connections import OneLength, configuration
from openafm.serving.metrics import Metrics
from openafm.serving.pages import add_page
from openafm.serving.service import only_from_here
from openafm.serving.transport import answer_errors, read_body, to_json

Grades = Annotated[list[Grade], Field(min_length=len(DIMENSIONS), max_length=len(DIMENSIONS))]


class Judged(Body):
    """What a labeller says of the pair `id`, the answers in the order of the page."""

    id: str
    choice: int = Field(ge=0, lt=2 * len(STRENGTHS))
    """0: the first answer is significantly better, … 3 negligibly; 4: the second negligibly, … 7 significantly."""
    grades: Annotated[list[Grades], Field(min_length=2, max_length=2)]


class Skipped(Body):
    """A pair that the labeller leaves out."""

    id: str


class Undone(Body):
    """The wish to have the last label back."""


class Sitting:
    """One labeller at one run's pairs: what is asked next, and what becomes of the answers."""

    def __init__(self, pairs: Sequence[Pair], labels: Labels, seed: int):
        self.pairs, self.labels, self.seed = pairs, labels, seed

    def pending(self) -> Pair | None:
        """The first pair that is neither labelled nor skipped."""
        return next((pair for pair in self.pairs if pair.id not in self.labels.current), None)

    def swapped(self, pair: Pair) -> bool:
        """Whether this labeller sees the pair's second answer first."""
        return share(f"{self.seed}/{self.labels.labeller}", pair.id) < 0.5

    def state(self) -> dict[str, Any]:
        """All that the page shows."""
        current, pair = self.labels.current, self.pending()
        done = [current[p.id] for p in self.pairs if p.id in current]
        shown = pair and {
            "id": pair.id,
            "messages": pair.messages,
            "answers": list(reversed(pair.answers) if self.swapped(pair) else pair.answers),
        }
        return {
            "labeller": self.labels.labeller,
            "total": len(self.pairs),
            "labelled": sum(not row.get("skipped") for row in done),
            "skipped": sum(bool(row.get("skipped")) for row in done),
            "undoable": bool(current),
            "dimensions": [{"name": name, "grades": grades} for name, grades in GRADES.items()],
            "pair": shown,
        }

    def asked(self, name: str) -> Pair:
        """The pending pair. Raises ApiError where the page shows another one."""
        pair = self.pending()
        if pair is None or pair.id != name:
            raise ApiError(409, "another window has gone on meanwhile: reload the page", "id", "stale")
        return pair

    def label(self, judged: Judged) -> None:
        """Keep what was said."""
        pair, half = self.asked(judged.id), len(STRENGTHS)
        second = judged.choice >= half
        strength = judged.choice - half if second else half - 1 - judged.choice
        grades = judged.grades[::-1] if self.swapped(pair) else judged.grades
        better = int(second != self.swapped(pair))
        self.labels.add(preference(pair, self.labels.labeller, better, strength, grades))

    def skip(self, skipped: Skipped) -> None:
        """Leave the pair out."""
        self.labels.add({"id": self.asked(skipped.id).id, "labeller": self.labels.labeller, "skipped": True})


def create_app(sitting: Sitting) -> FastAPI:
    """Build the server of the page."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(only_from_here)])
    app.add_middleware(OneLength)
    app.add_middleware(Accounting, metrics=Metrics(), log=None)
    answer_errors(app)
    add_page(app, "label")

    @app.get("/state")
    async def state() -> Response:
        """Tell the page what it shows."""
        return to_json(sitting.state())

    @app.post("/label")
    async def label(request: Request) -> Response:
        """Keep a judgement of the pending pair; answers with the next state."""
        sitting.label(parse(Judged, await read_body(request)))  # not in a thread: one label after the other
        return to_json(sitting.state())

    @app.post("/skip")
    async def skip(request: Request) -> Response:
        """Leave the pending pair out; answers with the next state."""
        sitting.skip(parse(Skipped, await read_body(request)))
        return to_json(sitting.state())

    @app.post("/undo")
    async def undo(request: Request) -> Response:
        """Take the last label or skip back; answers with the state before it."""
        parse(Undone, await read_body(request))
        sitting.labels.undo()
        return to_json(sitting.state())

    return app


def serve(run: Path, pairs: Sequence[Pair], labeller: str, seed: int, port: int) -> None:
    """Show the page on this machine until interrupted. Raises OSError where the port is taken."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        labels = Labels(run, labeller)
        sitting = Sitting(pairs, labels, seed)
        asked = sitting.state()
        print(f"{len(pairs)} pairs, {asked['labelled']} labelled and {asked['skipped']} skipped; kept in {labels.path}")
        print(f"http://127.0.0.1:{listener.getsockname()[1]}  the page. Ctrl-C stops.", flush=True)
        uvicorn.Server(configuration(create_app(sitting))).run(sockets=[listener])
        labels.close()
