"""Any OpenAI-compatible endpoint as a `Sampler`: vLLM on a cluster, a stronger writer or judge.

Each completion is a request of its own, which every server understands, many at a time. Answers are kept on disk under
a digest of the request, so that a step run again asks nothing twice and gives the same bytes; delete the cache folder
to ask anew.
"""

import hashlib
import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any, TypeVar

from openafm.model.generation import Generation
from openafm.sampling.sampler import Completion, Prompt

Answer = TypeVar("Answer")

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP states that another try may cure."""
_LONGEST_WAIT_SECONDS = 120.0
"""Between two tries, whatever a server asks for."""


class EndpointSampler:
    """Samples from `url` (ending in `/v1`), `concurrency` requests at a time, retried with doubled waits.

    The key, if the server wants one, is `key` or the environment's OPENAI_API_KEY. A server that refuses to tell
    log-probabilities by name is asked without them from then on; `logprobs=False` never asks.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        *,
        cache: Path | None = None,
        concurrency: int = 8,
        timeout_seconds: float = 120.0,
        tries: int = 5,
        wait_seconds: float = 1.0,
        logprobs: bool = True,
    ):
        self.url, self.model, self.cache, self.logprobs = url.rstrip("/"), model, cache, logprobs
        self.key = key if key is not None else os.environ.get("OPENAI_API_KEY", "")
        self.concurrency, self.timeout_seconds, self.tries, self.wait_seconds = (
            concurrency, timeout_seconds, tries, wait_seconds,
        )  # fmt: skip

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int, temperature: float = 1.0, seed: int = 0
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt, in order, each drawn with a seed of its own made of `seed`.

        Raises ValueError when the endpoint keeps refusing or answers in another protocol.
        """
        settings = {"max_tokens": max_tokens, "temperature": temperature}
        asked = [(prompt, {**settings, "seed": _own(seed, i)}) for prompt in prompts for i in range(n)]
        with ThreadPoolExecutor(self.concurrency) as pool:
            made = list(pool.map(lambda pair: self._complete(*pair), asked))
        return [made[start : start + n] for start in range(0, len(made), n)]

    def score(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[list[float]]:
        """Return log p(option | prompt) by echoing prompt + option with log-probabilities (vLLM and llama.cpp do).

        Chats cannot be echoed: give text prompts. Raises ValueError for chats and for endpoints without `echo`.
        """
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("an endpoint scores text prompts only; render the chat to text first")
        pairs = [(str(prompt), option) for prompt in prompts for option in options]
        with ThreadPoolExecutor(self.concurrency) as pool:
            flat = list(pool.map(lambda pair: self._echo(*pair), pairs))
        return [flat[start : start + len(options)] for start in range(0, len(flat), len(options))]

    def continue_tokens(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, temperature: float, seed: int, stop: Set[int]
    ) -> list[Generation]:
        """Return an answer to each prompt of token ids, with the ids and log-probabilities of its tokens.

        vLLM does this (`return_token_ids`, 0.10.2 and later). One of the ids in `stop` ends an answer. Raises
        ValueError for a server that does not tell ids, or whose answers and log-probabilities do not match.
        """
        shared: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": 1.0, "top_k": -1}
        shared |= {"stop_token_ids": sorted(stop), "logprobs": 0, "return_token_ids": True}
        bodies = [{**shared, "prompt": list(prompt), "seed": _own(seed, i)} for i, prompt in enumerate(prompts)]
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(
                pool.map(lambda body: self._ask("completions", body, lambda a: self._continued(a, stop)), bodies)
            )

    def _continued(self, answer: dict[str, Any], stop: Set[int]) -> Generation:
        try:
            (choice,) = answer["choices"]
            tokens, logprobs = list(choice["token_ids"]), list(choice["logprobs"]["token_logprobs"])
            if len(tokens) != len(logprobs) or (tokens[-1] in stop) != (choice["finish_reason"] == "stop"):
                raise ValueError("tokens, log-probabilities and the reason it ended do not match")
            ended = tokens.pop() if tokens[-1] in stop else None
            return Generation(tokens, logprobs, ended)
        except (LookupError, TypeError, ValueError) as error:
            told = json.dumps(answer)[:200]
            raise ValueError(f"{self.url} does not tell its tokens as vLLM does ({error!r}): {told}") from error

    def control(self, path: str, body: Mapping[str, Any]) -> None:
        """POST to the server itself, beside `/v1`, whatever it answers. Raises ValueError when it keeps refusing."""
        self._post(f"{self.url.removesuffix('/v1')}/{path}", json.dumps(body).encode(), bytes)

    def _complete(self, prompt: Prompt, settings: dict[str, Any]) -> Completion:
        body: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        path, wanted = ("completions", 1) if isinstance(prompt, str) else ("chat/completions", True)
        body |= settings
        told: dict[str, Any] = {"logprobs": wanted} if self.logprobs else {}
        try:
            return self._ask(path, body | told, self._completed)
        except ValueError as error:
            if not re.search(r"HTTP 4\d\d: .*logprobs", str(error), re.S):
                raise
            self.logprobs = False
        return self._ask(path, body, self._completed)

    def _completed(self, answer: dict[str, Any]) -> Completion:
        try:
            (choice,) = answer["choices"]
            return _completion(choice)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told = json.dumps(answer)[:200]
            raise ValueError(f"{self.url} does not answer in the OpenAI protocol: {told}") from error

    def _echo(self, prompt: str, option: str) -> float:
        body = {"prompt": prompt + option, "max_tokens": 0, "echo": True, "logprobs": 0}
        return self._ask("completions", body, lambda answer: self._echoed(answer, len(prompt)))

    def _echoed(self, answer: dict[str, Any], start: int) -> float:
        try:
            told = answer["choices"][0]["logprobs"]
            rows = zip(told["text_offset"], told["token_logprobs"], strict=True)
            return float(sum(value for offset, value in rows if offset >= start and value is not None))
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.url} does not echo log-probabilities; score with a model folder instead"
            ) from error

    def _ask(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Answer]) -> Answer:
        """POST a request, or take its answer from the cache; what `read` refuses is not kept."""
        request = json.dumps({"model": self.model, **body}, sort_keys=True)
        digest = hashlib.sha256(f"{self.url}/{path}\n{request}".encode()).hexdigest()
        kept = self.cache / f"{digest}.json" if self.cache else None
        if kept and kept.exists():
            return read(json.loads(kept.read_text()))
        answer = self._post(f"{self.url}/{path}", request.encode(), _object)
        found = read(answer)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}")
            beside.write_text(json.dumps(answer))
            beside.replace(kept)  # whole or absent, whoever else writes the same
        return found

    def _post(self, url: str, body: bytes, read: Callable[[bytes], Answer]) -> Answer:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(url, body, headers)
        for attempt in range(self.tries):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
                    return read(response.read())
            except urllib.error.HTTPError as error:
                why, curable = (
                    f"HTTP {error.code}: {error.read()[:200].decode('utf-8', 'replace')}",
                    error.code in _PASSING,
                )
                wait = _seconds(error.headers.get("Retry-After")) if curable else 0.0
            except (OSError, http.client.HTTPException, ValueError) as error:  # no connection, time out, broken answer
                why, curable, wait = str(error) or type(error).__name__, True, 0.0
            if not curable or attempt + 1 == self.tries:
                break
            time.sleep(min(max(wait, self.wait_seconds * 2**attempt), _LONGEST_WAIT_SECONDS))
        raise ValueError(f"{url} failed after {attempt + 1} tries: {why}; check the URL, key and model name")


def _own(seed: int, number: int) -> int:
    """The seed of one completion of many."""
    return zlib.crc32(f"{seed}/{number}".encode()) >> 1


def _object(raw: bytes) -> dict[str, Any]:
    answer = json.loads(raw)
    if not isinstance(answer, dict):
        raise ValueError(f"the answer is no JSON object: {str(answer)[:100]}")
    return answer


def _seconds(retry_after: str | None) -> float:
    """How long a server wants to be left alone: seconds or a date (RFC 9110, 10.2.3); 0 where it says neither."""
    try:
        seconds = float(retry_after or 0)
        return seconds if math.isfinite(seconds) else 0.0
    except ValueError:
        until = parsedate_tz(retry_after)
        return max(0.0, mktime_tz(until) - time.time()) if until else 0.0


def _completion(choice: dict[str, Any]) -> Completion:
    """Read one choice of either protocol; token ids are the endpoint's own business."""
    told = choice.get("logprobs") or {}
    if "message" in choice:
        logprobs = [token["logprob"] for token in told.get("content") or []]
        text = choice["message"].get("content") or ""
    else:
        logprobs, text = told.get("token_logprobs") or [], choice["text"]
    return Completion(text, [], logprobs, choice.get("finish_reason") == "stop")
