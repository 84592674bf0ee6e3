"""A policy's answers drawn by a vLLM server, which is given each policy's weights by file (step `mdloo`).

Drawing answers takes most of the time of learning from rewards, and a server does it on devices of its own. Before an
iteration the weights are written into a new folder on a disk that both see (of a path that it has read, vLLM may keep
what was there), and the server is told to read them: `reload_weights` through `/collective_rpc`, then
`/reset_prefix_cache`, both of which it has with VLLM_SERVER_DEV_MODE=1. Prompts go and answers come as token ids, so
nothing is tokenized twice, and the trainer computes the log-probabilities of these very tokens.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from uuid import uuid4

from pydantic import model_validator

from openafm.model.checkpoint import save_model
from openafm.posttraining.examples import Row
from openafm.posttraining.policy import Answer, Policy
from openafm.sampling.endpoint import EndpointSampler
from openafm.sampling.sampler import stop_tokens
from openafm.stage import Config


class ServerConfig(Config):
    """The server that draws the answers; without a URL this process does."""

    url: str = ""
    """Where vLLM listens, ending in `/v1`."""
    model: str = ""
    """What it calls the model."""
    weights: str = ""
    """A folder on a disk that this process and the server see under this name; what is written there is removed."""
    concurrency: int = 64
    """Requests at a time."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.url and not (self.url.startswith(("http://", "https://")) and self.url.rstrip("/").endswith("/v1")):
            raise ValueError(f"url {self.url!r}: give where vLLM listens, as http://host:8000/v1")
        if self.url and not (self.model and Path(self.weights).is_absolute()):
            raise ValueError("a server needs its `model`'s name and, as an absolute path, a folder for `weights`")
        return self


class RolloutServer:
    """Draws answers of whatever policy it was last given."""

    def __init__(self, config: ServerConfig):
        self.sampler = EndpointSampler(config.url, config.model, concurrency=config.concurrency)
        self.weights = Path(config.weights)

    def answer(self, policy: Policy, examples: Sequence[Row], max_tokens: int, seed: int) -> list[Answer]:
        """One answer of `policy` for each example at temperature 1, checked by its own program.

        Raises ValueError where the server refuses the weights or a request.
        """
        self._refresh(policy)
        prompts = [policy.prompt(example) for example in examples]
        stop = stop_tokens(policy.tokenizer)
        made = self.sampler.continue_tokens(prompts, max_tokens=max_tokens, temperature=1.0, seed=seed, stop=stop)
        return [policy.checked(example, one) for example, one in zip(examples, made, strict=True)]

    def _refresh(self, policy: Policy) -> None:
        """Have the server read the policy's weights, which are removed when it has."""
        folder = self.weights / f"policy-{uuid4().hex}"
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            save_model(policy.model, folder)
            self.sampler.control("collective_rpc", call)
            self.sampler.control("reset_prefix_cache", {})
        except ValueError as error:
            remedy = f"start vLLM with VLLM_SERVER_DEV_MODE=1, and {self.weights} on a disk that it sees"
            raise ValueError(f"the server did not read the policy's weights: {error}; {remedy}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
