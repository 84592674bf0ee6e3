"""Many clients at once: their answers share the engine's steps and are what each would get alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest
from tests.serving.conftest import client, listening

from openafm.engine.native_engine import missing
from openafm.serving.opening import open_model
from openafm.serving.server import Limits

native = pytest.mark.skipif(missing() is not None, reason=str(missing()))
MODELS = ("toy-recovery", "toy-recovery:recovery", "toy-recovery:summary")


def asked(i):
    """A request of its own kind, greedy or drawn."""
    kind = {"temperature": 0.0} if i % 2 else {"temperature": 1.2, "seed": i, "top_p": 0.9}
    content = f"some words {i} " * (1 + 10 * (i % 3))
    return {"model": MODELS[i % 3], "messages": [{"role": "user", "content": content}], "max_tokens": 30, **kind}


class Stepwise:
    """A batch whose steps wait for permits; `broken` is raised by the next one."""

    def __init__(self, batch):
        self._batch, self.room = batch, batch.room
        self.permits, self.broken = threading.Semaphore(0), None

    def __getattr__(self, name):
        return getattr(self._batch, name)

    def step(self):
        self.permits.acquire()
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        return self._batch.step()


@pytest.fixture
def stepwise(run):
    """A server of the native engine that steps by permit; two may wait beside the 16."""
    opened = open_model(run / "recovery")
    batch = Stepwise(opened.engine.together())
    opened.engine.together = lambda: batch
    with listening(opened, limits=Limits(queue=2)) as url:
        yield batch, url
        batch.permits.release(100_000)


@contextmanager
def clients_of(batch, count):
    """Threads that cannot be left waiting for a step, whatever fails in between."""
    with ThreadPoolExecutor(count) as clients:
        try:
            yield clients
        finally:
            batch.permits.release(100_000)


def gauges(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(("openafm_running ", "openafm_waiting "))]


def until(url, *wanted):
    for _ in range(2000):
        if gauges(url) == list(wanted):
            return
    raise AssertionError(gauges(url))


@native
def test_answers_that_come_together_are_those_that_come_alone(run):
    with listening(open_model(run / "recovery"), limits=Limits(queue=50)) as url:

        def answer(i):
            (choice,) = client(url).chat.completions.create(**asked(i)).choices
            return choice.message.content, choice.finish_reason

        alone = [answer(i) for i in range(24)]
        with ThreadPoolExecutor(24) as clients:
            assert list(clients.map(answer, range(24))) == alone
        assert len(set(alone)) > 12


@native
def test_sixteen_are_made_together_and_the_next_wait(stepwise):
    batch, url = stepwise
    with clients_of(batch, 18) as clients:
        answers = [clients.submit(client(url).chat.completions.create, **asked(i)) for i in range(18)]
        while sum(gauges(url)) < 18:
            assert not any(answer.done() for answer in answers)
        batch.permits.release()  # the first ones are in a step, the others join after it
        until(url, 16, 2)
        with pytest.raises(openai.RateLimitError, match="2 requests are waiting"):
            client(url).chat.completions.create(**asked(0))
        batch.permits.release(100_000)
        assert all(answer.result().usage.completion_tokens > 0 for answer in answers)


@native
def test_out_of_memory_costs_the_newest_answer_only(stepwise):
    batch, url = stepwise
    with clients_of(batch, 2) as clients:
        first = clients.submit(client(url).chat.completions.create, **asked(0))
        until(url, 1, 0)
        second = clients.submit(client(url).chat.completions.create, **asked(1))
        until(url, 1, 1)  # it joins after the step that is waiting for its permit
        batch.permits.release()
        until(url, 2, 0)
        batch.broken = MemoryError()
        batch.permits.release(100_000)
        with pytest.raises(openai.InternalServerError, match="no memory") as caught:
            second.result()
        assert caught.value.status_code == 503
        assert first.result().usage.completion_tokens > 0


@native
def test_several_answers_to_one_prompt(run):
    with listening(open_model(run / "recovery")) as url:
        create = client(url).chat.completions.create
        body = {"model": MODELS[0], "messages": [{"role": "user", "content": "words"}], "max_tokens": 12}
        whole = create(**body, n=3, seed=5, temperature=1.3)
        texts = [choice.message.content for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) == 3
        assert texts[1] == create(**body, seed=6, temperature=1.3).choices[0].message.content
        streamed = {0: "", 1: "", 2: ""}
        ends = []
        for chunk in create(**body, n=3, seed=5, temperature=1.3, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
                ends += [choice.index] if choice.finish_reason else []
        assert list(streamed.values()) == texts and sorted(ends) == [0, 1, 2]
        assert chunk.usage.completion_tokens == whole.usage.completion_tokens


@native
def test_cuts_and_penalties_are_carried_out(run):
    opened = open_model(run / "recovery")
    tokenizer = opened.engine.tokenizer
    prompt = tokenizer.render_chat([{"role": "user", "content": "words"}])
    with listening(opened) as url:
        options = {"temperature": 1.0, "seed": 3, "max_tokens": 20}
        plain = list(opened.engine.generate(prompt, **options))
        for cuts in (
            {"top_p": 0.3}, {"presence_penalty": 2.0, "frequency_penalty": 1.0}, {"min_p": 0.2}, {"top_k": 3},
            {"repetition_penalty": 1.3},
        ):  # fmt: skip
            made = client(url).chat.completions.create(
                model=MODELS[0], messages=[{"role": "user", "content": "words"}], **options, extra_body=cuts
            )
            tokens = list(opened.engine.generate(prompt, **options, **cuts))
            assert tokens != plain
            assert made.usage.completion_tokens == len(tokens)
            assert made.choices[0].message.content == tokenizer.decode(
                [token for token in tokens if token not in opened.engine.stop]
            )


def test_torch_names_what_it_does_not_carry_out(gated):
    _, url = gated
    with pytest.raises(openai.BadRequestError, match="top_p: this engine does not carry it out") as caught:
        client(url).chat.completions.create(model="toy-sft", messages=[{"role": "user", "content": "a"}], top_p=0.5)
    assert caught.value.param == "top_p"
