"""`/v1/embeddings`: a text's vector is the mean of the model's last hidden states over its tokens, of length 1.

After the last norm, without the token that begins a text. A decoder is not trained for this: near vectors tell texts on
like matters, but less well than a sentence encoder's.
"""

import base64
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, WithJsonSchema, field_validator

from openafm.serving.body import Body
from openafm.serving.reading import Reading

MAX_TEXTS = 2048
"""As OpenAI has it."""
_TEXT = {"type": "string", "minLength": 1}
TEXTS = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_TEXTS}]}


class EmbeddingRequest(Body):
    """Body of `/v1/embeddings`."""

    model: str
    input: Annotated[list[str], WithJsonSchema(TEXTS)] = Field(min_length=1, max_length=MAX_TEXTS)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[Any, WithJsonSchema({"type": "null"})] = None

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


def embeddings(asked: EmbeddingRequest, reading: Reading) -> dict[str, Any]:
    """OpenAI's object."""

    def written(vector: NDArray[np.float32]) -> Any:
        """The vector `(d_model,)` in the encoding asked for: numbers, or float32 in base64."""
        if asked.encoding_format == "float":
            return vector.tolist()
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()

    data = [
        {"object": "embedding", "index": index, "embedding": written(vector)}
        for index, vector in enumerate(map(_unit, reading.results()))
    ]
    counts = {"prompt_tokens": len(reading.prompt), "total_tokens": len(reading.prompt)}
    return {"object": "list", "data": data, "model": asked.model, "usage": counts}


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
