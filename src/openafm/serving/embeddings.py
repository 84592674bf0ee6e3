"""`/v1/embeddings`: a text's vector is the mean of the model's last hidden states over its tokens, of length 1.

After the last norm, without the token that begins a text. A decoder is not trained for this: near vectors tell texts on
like matters, but less well than a sentence encoder's.
"""

import base64
import math
import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from openafm.engine.protocol import Batch
from openafm.engine.protocol import Reading as ReadingRow
from openafm.model.generation import Choice
from openafm.serving.answer import Piece
from openafm.serving.body import Body

MAX_TEXTS = 2048
"""As OpenAI has it."""


class EmbeddingRequest(Body):
    """Body of `/v1/embeddings`."""

    model: str
    input: list[str] = Field(min_length=1, max_length=MAX_TEXTS)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Any = None

    @field_validator("input", mode="before")
    @classmethod
    def _list(cls, given: Any) -> Any:
        """One text or several; numbers are another tokenizer's tokens."""
        texts = [given] if isinstance(given, str) else given
        if isinstance(texts, list) and any(not isinstance(text, str) for text in texts):
            raise ValueError("give texts, not tokens (LangChain: check_embedding_ctx_length=False)")
        return texts

    @field_validator("input")
    @classmethod
    def _said(cls, texts: list[str]) -> list[str]:
        if not all(texts):
            raise ValueError("an empty text has no vector: leave it out")
        return texts

    @field_validator("dimensions")
    @classmethod
    def _whole(cls, _: Any) -> Any:
        raise ValueError("this model was not trained for vectors that can be cut: leave it out")


class Reading:
    """Texts to read, as a job of the worker."""

    tokens = 0
    """Made: none."""
    over = False

    def __init__(self, texts: list[list[int]], adapter: str | None, until: float = math.inf):
        """Each text begins with the token that begins a text; `until` is the `time.monotonic()` that ends it."""
        self._texts, self.adapter, self._until = texts, adapter, until
        self.prompt = [token for text in texts for token in text]
        self._row: ReadingRow | None = None

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self._until

    def begin(self, batch: Batch) -> ReadingRow:
        """Join an engine's batch."""
        self._row = batch.read(self._texts, self.adapter)
        return self._row

    def push(self, choice: Choice) -> Piece:
        """No token comes."""
        raise AssertionError(choice)

    def rest(self) -> str:
        """Nothing is said."""
        return ""

    def vectors(self) -> list[NDArray[np.float32]]:
        """Of length 1, one a text. Raises TimeoutError where time has not sufficed."""
        found = self._row.vectors if self._row else []
        if len(found) < len(self._texts):
            raise TimeoutError(f"the request's time was over after {len(found)} of {len(self._texts)} texts")
        return [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in found]


def embeddings(asked: EmbeddingRequest, reading: Reading) -> dict[str, Any]:
    """OpenAI's object."""

    def written(vector: NDArray[np.float32]) -> Any:
        if asked.encoding_format == "float":
            return vector.tolist()
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()

    data = [
        {"object": "embedding", "index": index, "embedding": written(vector)}
        for index, vector in enumerate(reading.vectors())
    ]
    counts = {"prompt_tokens": len(reading.prompt), "total_tokens": len(reading.prompt)}
    return {"object": "list", "data": data, "model": asked.model, "usage": counts}
