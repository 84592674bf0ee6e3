import json
import math
from itertools import combinations

import pytest
import torch

from openafm.evaluation.suite import choices, directions, memory, problems, programs, safety, texts, tools
from openafm.evaluation.suite import subject as subject_module
from openafm.evaluation.suite.items import NotMeasuredError, by_metric, estimate
from openafm.evaluation.suite.material import spread
from openafm.evaluation.suite.task import Size
from openafm.sampling.sampler import Completion, prompt_tokens
from openafm.scoring.instructions import RULES, followed


def test_log_probabilities_are_those_of_single_passes(subject):
    tokenizer, model = subject.tokenizer, subject.model
    pairs = [
        ([1], tokenizer.encode("the cat")),
        (tokenizer.encode("the red door"), tokenizer.encode(" opens")),
        ([1], tokenizer.encode("the cat")),
    ]
    for (context, continuation), (nats, greedy) in zip(pairs, subject.logprobs(pairs), strict=True):
        logits = model(torch.tensor([context + continuation]))[0].float()
        rows = logits[len(context) - 1 : -1].log_softmax(-1)
        assert nats == pytest.approx(
            sum(float(row[token]) for row, token in zip(rows, continuation, strict=True)), abs=1e-4
        )
        assert greedy == (rows.argmax(-1).tolist() == continuation)


def test_bits_per_byte_count_every_token_of_a_piece_once(subject, bench):
    items = by_metric(texts.measure(subject, bench(Size(2))))
    assert set(items) == {"encyclopedia", "documentation", "code", "math"}
    piece = texts.pieces("\n\n".join(texts.paragraphs(bench().material)))
    (first, *_) = items["encyclopedia"]
    chosen = spread(piece, 2)[0]
    tokens = subject.tokenizer.encode(chosen)[: subject.context_length]
    rows = subject.model(torch.tensor([[subject.tokenizer.bos_id, *tokens[:-1]]]))[0].float().log_softmax(-1)
    nats = sum(float(row[token]) for row, token in zip(rows, tokens, strict=True))
    assert first.top == pytest.approx(-nats / math.log(2), rel=1e-4)
    assert first.bottom == len(subject.tokenizer.decode(tokens).encode())


@pytest.mark.parametrize(("n", "passed", "k"), [(5, 2, 1), (5, 2, 3), (6, 6, 2), (6, 0, 2), (4, 1, 4)])
def test_pass_at_k_is_the_share_of_draws_with_one_that_passes(n, passed, k):
    draws = list(combinations(range(n), k))
    share = sum(any(i < passed for i in draw) for draw in draws) / len(draws)
    assert programs.pass_at(k, n, passed) == pytest.approx(share)
    with pytest.raises(ValueError, match="pass@"):
        programs.pass_at(n + 1, n, passed)


@pytest.mark.parametrize(
    "answer",
    [
        "    return x + 1\n\ndef g():\n    1/0",
        "Sure:\n```python\ndef f(x):\n    return x + 1\n```\nprint(1)",
        "    return x + 1\n\nNow run it.",
    ],
)
def test_a_function_is_cut_out_of_an_answer(answer):
    names: dict = {}
    exec(programs.program("import math\ndef f(x):\n", answer), names)
    assert names["f"](1) == 2 and "g" not in names


def test_code_passes_only_its_tests(subject, bench, monkeypatch):
    class Writer:
        def sample(self, prompts, n=1, **settings):
            return [
                [Completion(f"```python\ndef f{i}(x):\n    return 1\n```") for _ in range(n)]
                for i, _ in enumerate(prompts)
            ]

    writing = subject.__class__(subject.path, "writer")
    writing.__dict__["_writer"] = Writer()
    found = by_metric(programs.measure(writing, bench(Size(12, samples=2))))
    assert [item.top for item in found["pass@1"]] == [0, 1, *[0] * 10] == [item.top for item in found["pass@2"]]


def test_instructions_are_the_same_in_every_run_and_can_be_checked():
    rows = list(directions.prompts(60))
    assert rows == list(directions.prompts(60)) and {len(row["rules"]) for row in rows} == {1, 2, 3}
    for row in rows:
        assert all(rule["rule"] in RULES for rule in row["rules"])
        followed("Some text.", row["rules"])


def test_the_loose_reading_forgives_what_ifeval_forgives():
    rules = [{"rule": "starts_with", "word": "Today"}, {"rule": "no_commas"}]
    text = "Sure, here it is:\nToday *is* fine."
    assert not all(followed(text, rules)) and any(all(followed(form, rules)) for form in directions.variants(text))


def test_tools_are_asked_for_and_compared(subject, bench):
    class Writer:
        def sample(self, prompts, n=1, **settings):
            told = [json.loads(prompt[0]["content"].partition("Tools: ")[2].partition("\n")[0]) for prompt in prompts]
            assert told[0][0]["parameters"]["properties"]["count"]["type"] == "integer"
            count = [prompt[-1]["content"].removeprefix("open ") for prompt in prompts]
            return [[Completion(f'{{"name": "door_open", "arguments": {{"count": {i}}}}}')] for i in count]

    writing = subject.__class__(subject.path, "writer")
    writing.__dict__["_writer"] = Writer()
    found = by_metric(tools.measure(writing, bench()))
    assert {kind: estimate(items).value for kind, items in found.items()} == {
        **dict.fromkeys(("simple_python", "multiple", "parallel", "parallel_multiple"), 1.0),
        "irrelevance": 0.0,
    }


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("So we add. The answer is 12.", "12", True),
        ("The answer is 12 apples", "12", True),
        ("The answer is 1/2", "0.5", True),
        ("12 and then 13", "12", False),
        ("", "12", False),
    ],
)
def test_math_answers_are_compared_by_value(text, wanted, right):
    assert problems.right(text, wanted) is right


def test_mmlu_is_read_out_of_the_prompts(material):
    rows = choices.mmlu(material)
    assert len(rows) == 10 and rows[1]["answer"] == 1 and rows[0]["choices"] == ["red", "blue", "a list", "value 1"]
    assert rows[0]["topic"] == "cats"


def test_last_sentences_hold_the_true_one_once(material):
    rows = choices.following(material)
    paragraphs = {part["context"] for article in choices.squad(material) for part in article["paragraphs"]}
    assert rows and len({row["answer"] for row in rows}) > 1
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert f"{row['context']} {row['choices'][row['answer']]}" in paragraphs
        assert all(any(text.endswith(choice) for text in paragraphs) for choice in row["choices"])


def test_the_order_of_a_benchmark_shows_what_a_model_read(subject, bench, monkeypatch):
    published = {"\n\n".join(group) for groups in memory.benchmarks(bench().material).values() for group in groups}

    class Reader(subject.__class__):
        def logprobs(self, pairs):
            texts_ = [self.tokenizer.decode(tokens) for _, tokens in pairs]
            return [(float(text in published), False) for text in texts_]

    found = by_metric(memory.order(Reader(subject.path, "reader"), bench(Size(4))))
    assert estimate(found["squad"]).value == 1.0


def test_a_document_that_is_known_by_heart_is_found(world, token_shards, tmp_path, subject, bench):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(world / "model", run / "model")
    shutil.copytree(token_shards, run / "shards")
    index = json.loads((run / "shards" / "index.json").read_text())
    (run / "shards" / "index.json").write_text(json.dumps({**index, "vocab_size": subject.model.config.vocab_size}))
    (run / "run.json").write_text(json.dumps({"steps": [{"name": "model", "stage": "pretrain"}]}))

    class Parrot(subject.__class__):
        def continue_tokens(self, prompts, max_tokens):
            return [
                Completion("", [(prompt[-1] + 1 + i) if i < 28 else 4 + i - 28 for i in range(max_tokens)])
                for prompt in prompts
            ]

    items = by_metric(memory.extracted(Parrot(run / "model", "parrot"), bench(Size(3))))
    assert set(items) == {"train", "heldout"}
    assert [item.top for item in items["train"]] == [1.0]
    (run / "run.json").write_text(json.dumps({"steps": [{"name": "model", "stage": "import_model"}]}))
    with pytest.raises(NotMeasuredError, match="trained in no run here"):
        memory.shards_of(Parrot(run / "model", "imported"))


def test_refusals_are_counted_by_source(subject, bench):
    class Writer:
        def sample(self, prompts, n=1, **settings):
            return [
                [Completion("I'm sorry, but I can't help." if "red" in prompt[0]["content"] else "Sure.")]
                for prompt in prompts
            ]

    writing = subject.__class__(subject.path, "writer")
    writing.__dict__["_writer"] = Writer()
    found = by_metric(safety.harmful(writing, bench()))
    assert [item.top for item in found["harmbench"]] == [1.0, 0.0] and [
        item.top for item in found["do_not_answer"]
    ] == [0.0]
    assert len(list(safety.harmless(writing, bench(Size(100))))) == 64


def test_what_leaves_no_room_for_an_answer_is_no_answer(subject):
    (long,), (short,) = subject.complete(["the cat " * 600, "the cat"], 4)
    assert (
        long == Completion("", finished=False)
        and len(prompt_tokens(subject.tokenizer, "the cat")) < 20
        and short.tokens
    )


def test_a_model_that_only_continues_is_asked_in_text(subject):
    base = subject.__class__(subject.path, "base", talks=False)
    asked = []

    class Writer:
        def sample(self, prompts, n=1, **settings):
            asked.extend(prompts)
            return [[Completion(" red\nQuestion: and", finished=False)]]

    base.__dict__["_writer"] = Writer()
    ((answer,),) = base.ask([[{"role": "system", "content": "s"}, {"role": "user", "content": "q?"}]], 8)
    assert asked == ["s\n\nQuestion: q?\nAnswer:"] and answer == Completion(" red", finished=True)


def test_own_questions_name_the_line_that_is_none(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "a?", "choices": ["x", "y"], "answer": "y"}\n')
    assert choices.own_task(path).name == "own/own"
    path.write_text('{"question": "a?", "choices": ["x", "y"], "answer": 7}\n')
    with pytest.raises(ValueError, match=r"own\.jsonl:1: answer 7"):
        choices.own_task(path)
    path.write_text('{"question": "a?", "answer": 7}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"own\.jsonl:2"):
        choices.own_task(path)


def test_batches_hold_all_rows_the_longest_first():
    rows = [tuple(range(n)) for n in (1, 2, 3, 5000, 6000)]
    assert list(subject_module._batches(rows)) == [[rows[4]], [rows[3]], rows[:3]]
