"""One model behind HTTP: who may ask, what the models are called, and a request's way to its answer."""

import hmac
import ipaddress
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from openafm.sampling.sampler import prompt_tokens
from openafm.serving.accounting import record
from openafm.serving.adapters import Adapters, Fetched
from openafm.serving.answer import Answer
from openafm.serving.body import ApiError
from openafm.serving.calls import CallReader
from openafm.serving.embeddings import EmbeddingRequest, embeddings
from openafm.serving.logprobs import Teller
from openafm.serving.metrics import Metrics
from openafm.serving.opening import Opened
from openafm.serving.reading import Reading
from openafm.serving.replies import CompletionReply, Reply
from openafm.serving.requests import ChatCompletion, Completion, LoraAdapter, TextCompletion
from openafm.serving.responses import NAMES, ResponseReply, ResponseRequest
from openafm.serving.streams import events, refusal, whole
from openafm.serving.tools import Manner, Toolbox
from openafm.serving.transport import EventStream, to_json, unless_gone
from openafm.serving.worker import Busy, Job, Task, Worker

KNOWN = 20
"""Most model ids that an error lists."""


@dataclass(frozen=True)
class Limits:
    """What one client may take from the others."""

    queue: int = 8
    """Requests that may wait; the next one is refused."""
    seconds: float = 300.0
    """Time of a request, its wait included."""
    in_memory: int = 64
    """Adapters of the folder that are kept in memory."""


class Serving:
    """One model behind HTTP: the state that requests share."""

    def __init__(self, opened: Opened, key: str | None, limits: Limits, adapters: Path | None):
        self.opened, self.engine, self.key, self.limits = opened, opened.engine, key, limits
        self.adapters = Adapters(self.engine, adapters, limits.in_memory, opened.carried)
        self.worker = Worker(self.engine, self.adapters, limits.queue)
        self.metrics = Metrics()
        self._manner = Manner(self.engine.tokenizer, opened.short_calls)
        self.created = int(time.time())

    def models(self) -> list[str]:
        """All model ids, the one to use unless another is asked for first."""
        adapters = [self.opened.adapter, None, *self.adapters.names()]
        return [self._id(adapter) for adapter in dict.fromkeys(adapters)]

    def model(self, name: str) -> dict[str, Any]:
        """OpenAI's model object, and what a client may want to know. Raises ApiError for an unknown name."""
        adapter = self.adapter(name)
        about = {"id": name, "object": "model", "created": self.created, "owned_by": "openafm"}
        extra = {"adapter": adapter, "max_length": self.engine.max_length, "chat": self.opened.talks}
        size = {"bytes": self.opened.bytes} if adapter is None else self.adapters.about(adapter)
        return about | extra | size | {"options": sorted(self.engine.options)}

    def adapter(self, name: str) -> str | None:
        """The adapter that a model id stands for. Raises ApiError for an unknown one."""
        model, colon, adapter = name.partition(":") if name != self.opened.name else (name, "", "")
        if model == self.opened.name and (not colon or adapter in self.adapters):
            return adapter or None
        known = self.models()
        some = ", ".join(known[:KNOWN]) + (f" and {len(known) - KNOWN} more" if len(known) > KNOWN else "")
        raise ApiError(404, f"no model called {name!r}; there are: {some}", "model", "model_not_found")

    def _id(self, adapter: str | None) -> str:
        return self.opened.name if adapter is None else f"{self.opened.name}:{adapter}"

    def load(self, asked: LoraAdapter) -> dict[str, Any]:
        """Let requests name an adapter of the folder; returns its model object."""
        try:
            self.adapters.add(asked.lora_name)
        except ValueError as error:
            raise ApiError(400, str(error), "lora_name") from None
        return self.model(self._id(asked.lora_name))

    def unload(self, asked: LoraAdapter) -> dict[str, Any]:
        """Let requests name it no more; returns what OpenAI says of a deleted model."""
        try:
            self.adapters.drop(asked.lora_name)
        except ValueError as error:
            raise ApiError(400, str(error), "lora_name") from None
        return {"id": self._id(asked.lora_name), "object": "model", "deleted": True}

    async def admit(self, request: Request) -> None:
        """Raise ApiError unless the client may ask: by the key, or, without one, from a page of this machine."""
        if self.key is None:
            return only_from_here(request)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self.key.encode()):
            raise ApiError(401, "wrong or missing API key: send Authorization: Bearer KEY", code="invalid_api_key")

    async def complete(self, request: Request, asked: ChatCompletion | TextCompletion) -> Response:
        """Answer a chat or a text completion."""
        if isinstance(asked, TextCompletion) and asked.echo:
            return await self._echo(request, asked)
        chat = isinstance(asked, ChatCompletion)
        tellers = [] if asked.told is None else [Teller(self.engine.tokenizer, chat) for _ in range(asked.n)]
        readers = [self._reader(asked) for _ in range(asked.n)]
        reply = CompletionReply(asked.model, chat, readers, tellers, asked.stream_options)
        return await self._respond(request, asked, reply)

    async def respond(self, request: Request, asked: ResponseRequest) -> Response:
        """Answer a request for a response."""
        chat = asked.chat()
        try:
            return await self._respond(request, chat, ResponseReply(asked, self._reader(chat)))
        except ApiError as error:
            name = NAMES.get(error.param or "")
            if name is None:
                raise
            message = error.message.replace(str(error.param), name)
            raise ApiError(error.status, message, name, error.code) from None

    async def _respond(self, request: Request, asked: ChatCompletion | TextCompletion, reply: Reply) -> Response:
        """Queue the answers, wait for the first piece so that errors still have a status, then send it."""
        kept = record(request)
        kept.model, kept.answer = asked.model, reply.id
        kept.adapter = adapter = self.adapter(asked.model)
        answers = await self._answers(asked, adapter)
        jobs: list[Job] = []
        handed_on = False
        try:
            fetched = await run_in_threadpool(self.adapters.fetch, adapter)
            kept.jobs = jobs = self._submit(asked.model, answers, fetched)
            if not asked.stream:
                return to_json(reply.whole(await unless_gone(request, whole(jobs)), answers))
            first = await unless_gone(request, anext(jobs[0]))
            handed_on = True
            return EventStream(events(reply, jobs, answers, first, kept), jobs)
        except Exception as error:
            raise refusal(error) or error from None
        finally:
            if not handed_on:
                for job in jobs:
                    job.stop()

    async def embed(self, request: Request, asked: EmbeddingRequest) -> Response:
        """Read texts and tell their vectors."""
        texts = await run_in_threadpool(lambda: [prompt_tokens(self.engine.tokenizer, text) for text in asked.input])
        for number, text in enumerate(texts):
            if len(text) > self.engine.max_length:
                message = (
                    f"text {number} has {len(text)} tokens, more than this model's {self.engine.max_length}: cut it"
                )
                raise ApiError(400, message, "input", "context_length_exceeded")
        return to_json(embeddings(asked, await self._read(request, asked.model, texts)))

    async def _echo(self, request: Request, asked: TextCompletion) -> Response:
        """Tell how likely a prompt is."""
        text = await run_in_threadpool(prompt_tokens, self.engine.tokenizer, asked.prompt)
        if len(text) > self.engine.max_length:
            raise ApiError(400, f"the prompt has more tokens than this model's {self.engine.max_length}", "prompt")
        reading = await self._read(request, asked.model, [text], asked.logprobs)
        reply = CompletionReply(asked.model, False, [CallReader({})], [Teller(self.engine.tokenizer, chat=False)])
        return to_json(reply.echo(asked.prompt, reading.results()[0]))

    async def _read(self, request: Request, model: str, texts: list[list[int]], told: int | None = None) -> Reading:
        """Queue texts to read, and wait for it."""
        kept = record(request)
        kept.model = model
        kept.adapter = adapter = self.adapter(model)
        reading = Reading(texts, adapter, time.monotonic() + self.limits.seconds, told)
        jobs: list[Job] = []
        try:
            fetched = await run_in_threadpool(self.adapters.fetch, adapter)
            kept.jobs = jobs = self._submit(model, [reading], fetched)
            await unless_gone(request, whole(jobs))
            reading.results()
            return reading
        except Exception as error:
            raise refusal(error) or error from None
        finally:
            for job in jobs:
                job.stop()

    async def _answers(self, asked: ChatCompletion | TextCompletion, adapter: str | None) -> list[Answer]:
        """Everything that can be refused is refused here."""
        until = time.monotonic() + self.limits.seconds
        try:
            prompt = await run_in_threadpool(self._prompt, asked)
        except ValueError as error:
            raise ApiError(400, str(error), "messages") from None
        options, guided_by = asked.options(), "tools" if _toolbox(asked) else "response_format"
        try:
            if (grammar := await run_in_threadpool(self._grammar, asked)) is not None:
                options["grammar"] = grammar
        except ValueError as error:
            raise ApiError(400, str(error), guided_by, "unsupported_value") from None
        if unknown := sorted(options.keys() - self.engine.options):
            name = {"grammar": guided_by}.get(unknown[0], unknown[0])
            message = f"{name}: this engine does not carry it out: leave it out, or build the native engine"
            raise ApiError(400, message, name, "unsupported_value")
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        return [
            Answer(
                self.engine.tokenizer,
                prompt,
                max_tokens=_room(asked, len(prompt), self.engine.max_length),
                temperature=asked.temperature,
                seed=(seed + index) % 2**63,
                adapter=adapter,
                stop=asked.stop,
                until=until,
                **options,
            )
            for index in range(asked.n)
        ]

    def _prompt(self, asked: Completion) -> list[int]:
        """What the model reads; OpenAI's newer name of the system role is taken as that."""
        if isinstance(asked, TextCompletion):
            return prompt_tokens(self.engine.tokenizer, asked.prompt)
        assert isinstance(asked, ChatCompletion)
        turns = [
            {"role": {"developer": "system"}.get(m.role, m.role), "content": self._manner.turn(m.content, m.tool_calls)}
            for m in asked.messages
        ]
        shown = [] if asked.tool_choice == "none" else [tool.function for tool in asked.tools]
        return self._manner.prompt(turns, shown)

    def _grammar(self, asked: Completion) -> str | None:
        toolbox = _toolbox(asked)
        return toolbox.grammar(self._manner.form) if toolbox else asked.response_format.grammar()

    def _reader(self, asked: Completion) -> CallReader:
        toolbox = _toolbox(asked)
        return CallReader.of(self._manner.form, toolbox.names) if toolbox else CallReader({})

    def _submit(self, model: str, answers: Sequence[Task], fetched: Fetched | None) -> list[Job]:
        asked_at = time.monotonic()

        def over(job: Job) -> None:
            """Count what a job took, in seconds and tokens; one that never began has only waited."""
            began = job.began or time.monotonic()
            self.metrics.add("openafm_queue_seconds_total", began - asked_at, model=model)
            if job.began:
                self.metrics.add("openafm_prompt_tokens_total", len(job.answer.prompt), model=model)
                self.metrics.add("openafm_completion_tokens_total", job.answer.tokens, model=model)
                self.metrics.add("openafm_generation_seconds_total", job.ended - job.began, model=model)

        try:
            return self.worker.submit(answers, over, fetched)
        except Busy:
            message = f"{self.worker.waiting} requests are waiting already: try again later"
            raise ApiError(429, message, code="queue_full") from None


def _toolbox(asked: Completion) -> Toolbox | None:
    return asked.toolbox if isinstance(asked, ChatCompletion) else None


def _room(asked: Completion, prompt: int, longest: int) -> int:
    """Tokens the answer may have. Raises ApiError where prompt and answer do not fit the model."""
    wanted = 1 if asked.limit is None else asked.limit
    if prompt + wanted > longest:
        message = (
            f"this model's maximum context length is {longest} tokens, and the prompt's {prompt} with an answer of "
            f"{wanted} exceed it: shorten the prompt or lower max_tokens"
        )
        raise ApiError(400, message, "messages" if prompt >= longest else "max_tokens", "context_length_exceeded")
    return asked.limit or longest - prompt


def only_from_here(request: Request) -> None:
    """Raise ApiError unless the client calls this server by a loopback name.

    Else a page anywhere could have its name point here and read the answers.
    """
    if not is_loopback(_host(request)):
        raise ApiError(403, "without an API key this server answers to localhost only", code="host")


def _host(request: Request) -> str:
    """The name by which the client called this server."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean itself by `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
