"""Adapters of a folder: named by requests, loaded and removed while the server runs, the last used in memory."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from tests.engine.random_models import random_adapter
from tests.serving.conftest import client, listening
from tests.toy import SHAPE

from openafm.adapters.store import AdapterStore
from openafm.engine import Engine, TorchEngine, open_engine
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise
from openafm.serving.adapters import Adapters, Unusable
from openafm.serving.opening import open_model
from openafm.serving.server import Limits

BODY = {"messages": [{"role": "user", "content": "words"}], "max_tokens": 12, "temperature": 0.0}


def store_of(folder, names, shape=SHAPE):
    folder.mkdir(exist_ok=True)
    model = initialise(Transformer(shape), 0).eval().requires_grad_(False)
    store = AdapterStore(folder)
    for seed, name in enumerate(names, 10):
        store.save(name, random_adapter(model, seed, 2, size=1.0))
    return store


@pytest.fixture(params=["native", "torch"])
def engine(run, request) -> Engine:
    if request.param == "torch":
        return TorchEngine.load(run / "recovery")
    try:
        return open_engine(run / "recovery", "native")
    except ValueError as error:
        pytest.skip(str(error))


def said(engine, adapter):
    return list(engine.generate([5, 6, 7], max_tokens=8, temperature=0.0, adapter=adapter))


def test_the_last_used_stay_in_memory(engine, tmp_path):
    names = [f"task{i}" for i in range(5)]
    store_of(tmp_path, names)
    adapters = Adapters(engine, tmp_path, room=2)
    assert adapters.names() == ["recovery", "summary", *names] and adapters.in_memory == 0
    answers = {}
    for name in names:
        adapters.enter(name, set())
        answers[name] = said(engine, name)
        assert adapters.in_memory <= 2 and set(engine.adapters()) <= {"recovery", "summary", *names}
    assert adapters.loads == 5 and len({tuple(answer) for answer in answers.values()}) == 5
    adapters.enter("task3", set())  # is there still, and is now the one used last
    adapters.enter("task0", set())
    assert adapters.loads == 6
    assert adapters.about("task3")["in_memory"] and not adapters.about("task4")["in_memory"]
    assert [said(engine, name) for name in ("task3", "task0")] == [answers[name] for name in ("task3", "task0")]


def test_what_answers_use_stays(engine, tmp_path):
    store_of(tmp_path, ["a", "b", "c"])
    adapters = Adapters(engine, tmp_path, room=1)
    adapters.enter("a", set())
    adapters.enter("b", {"a"})
    assert {"a", "b"} <= set(engine.adapters())  # over the room rather than without an answer's adapter
    adapters.enter("c", {None})
    assert {"a", "b", "c"} & set(engine.adapters()) == {"c"}


def test_a_changed_adapter_waits_for_answers_with_the_old_one(engine, tmp_path):
    store = store_of(tmp_path, ["a"])
    adapters = Adapters(engine, tmp_path, room=4)
    adapters.enter("a", set())
    before = said(engine, "a")
    adapters.drop("a")
    with pytest.raises(Unusable, match="has been removed"):
        adapters.enter("a", set())
    model = initialise(Transformer(SHAPE), 0).eval().requires_grad_(False)
    store.save("a", random_adapter(model, 99, 2, size=1.0))
    adapters.add("a")
    with pytest.raises(Unusable, match="try again"):
        adapters.enter("a", {"a"})
    assert said(engine, "a") == before
    adapters.fetch("a")
    adapters.enter("a", set())
    assert said(engine, "a") != before and adapters.in_memory == 1


def test_bad_folders_and_names_are_told(engine, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        Adapters(engine, tmp_path / "nothing", 1)
    with pytest.raises(ValueError, match="start it with --adapters"):
        Adapters(engine, None, 1).add("a")
    store_of(tmp_path, ["a", "b"])
    adapters = Adapters(engine, tmp_path, 1)
    with pytest.raises(ValueError, match="already"):
        adapters.add("a")
    with pytest.raises(ValueError, match="already"):
        adapters.add("recovery")
    with pytest.raises(ValueError, match="belongs to the package"):
        adapters.drop("recovery")
    with pytest.raises(ValueError, match="no adapter 'c'"):
        adapters.add("c")
    with pytest.raises(ValueError, match="use up to 64 letters"):
        adapters.add("../b")
    weights = tmp_path / "a" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for use in (adapters.fetch, lambda name: adapters.enter(name, set())):
        with pytest.raises(Unusable, match="damaged"):
            use("a")
    adapters.enter("b", set())
    engine.remove_adapter("b")
    (tmp_path / "b" / "card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card\.json is damaged"):
        Adapters(engine, tmp_path, 1)


def test_an_adapter_of_another_model_is_refused(engine, tmp_path):
    store_of(tmp_path, ["wide"], ModelConfig(**SHAPE.model_dump() | {"d_ff": 64}))
    adapters = Adapters(engine, tmp_path, 1)
    with pytest.raises(Unusable, match="made for another model"):
        adapters.enter("wide", set())
    assert "wide" not in engine.adapters() and adapters.in_memory == 0


def test_adapters_come_and_go_while_answers_are_made(run, tmp_path):
    names = [f"task{i}" for i in range(6)]
    store_of(tmp_path / "there", names)
    folder = tmp_path / "adapters"
    folder.mkdir()
    shutil.copytree(tmp_path / "there" / "task0", folder / "task0")
    with listening(open_model(run / "recovery"), limits=Limits(queue=40, in_memory=3), adapters=folder) as url:

        def lora(verb, **body):
            return httpx.post(f"{url}/v1/{verb}_lora_adapter", json=body)

        def answer(name):
            made = client(url).chat.completions.create(model=f"toy-recovery:{name}", **BODY)
            return made.choices[0].message.content

        listed = [model.id for model in client(url).models.list()]
        assert listed == ["toy-recovery:recovery", "toy-recovery", "toy-recovery:summary", "toy-recovery:task0"]
        with pytest.raises(openai.NotFoundError, match="no model called 'toy-recovery:task1'"):
            answer("task1")
        assert lora("load", lora_name="task1").status_code == 400  # it does not lie there
        for name in names[1:]:
            shutil.copytree(tmp_path / "there" / name, folder / name)
            made = lora("load", lora_name=name, lora_path=f"/anywhere/{name}")
            assert made.status_code == 200 and made.json()["id"] == f"toy-recovery:{name}"
        assert lora("load", lora_name="task1").status_code == 400
        assert lora("load", lora_name="task1", lora_path="/etc/passwd").status_code == 400
        alone = {name: answer(name) for name in names}
        with ThreadPoolExecutor(12) as clients:
            wanted = names * 6
            assert list(clients.map(answer, wanted)) == [alone[name] for name in wanted]
        metrics = httpx.get(f"{url}/metrics").text
        assert int(metrics.split("\nopenafm_adapter_loads_total ")[1].split()[0]) >= 6
        card = client(url).models.retrieve("toy-recovery:task5")
        assert card.rank == 2 and card.bytes > 0
        gone = lora("unload", lora_name="task5")
        assert gone.json() == {"id": "toy-recovery:task5", "object": "model", "deleted": True}
        with pytest.raises(openai.NotFoundError):
            answer("task5")
        assert lora("unload", lora_name="recovery").status_code == 400
        (folder / "task4" / "adapter.safetensors").write_bytes(b"")
        for _ in range(2):  # push it out of memory
            for name in names[:3]:
                answer(name)
        with pytest.raises(openai.InternalServerError, match="damaged or missing") as caught:
            answer("task4")
        assert caught.value.code == "adapter_unusable" and answer("task0") == alone["task0"]
