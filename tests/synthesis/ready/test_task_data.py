import json

import pytest

from openafm.sampling.sampler import Completion
from openafm.synthesis.ready import filters, writing
from openafm.synthesis.ready.task_data import TaskDataConfig, task_data
from openafm.synthesis.ready.tasks import READY, Summaries, Tags
from openafm.synthesis.writer import WriterConfig


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return TaskDataConfig(data=str(path))


GOOD = [{"text": f"text {i}", "summary": f"sum {i}"} for i in range(9)]
ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


def test_every_form_becomes_an_example(tmp_path, make_context):
    whole = {"messages": [*ASKED, {"role": "assistant", "content": "a"}]}
    rows = [*GOOD, "", {"messages": ASKED, "answer": "a", "source": 7}, whole, {"text": "t", "answer": "a\u2028b"}]
    context = make_context("out")
    assert task_data(write(tmp_path / "d.jsonl", rows), context)["examples"] == 12
    made = [json.loads(line) for line in (context.out / "examples.jsonl").read_text().split("\n") if line]
    assert made[0]["messages"] == [{"role": "user", "content": "Sum up: text 0"}] and made[0]["answer"] == "sum 0"
    assert made[9]["source"] == "7" and made[9]["id"] == f"{tmp_path / 'd.jsonl'}:11"
    assert made[10]["messages"] == ASKED and made[10]["answer"] == "a" and made[11]["answer"] == "a\u2028b"
    assert made[9]["messages"] == made[10]["messages"] and made[10]["source"] != made[0]["source"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"summary": "s"}, 'neither "messages" nor "text"'),
        ({"text": "t"}, 'no "answer"'),
        ({"text": "t", "answer": " "}, "empty"),
        ({"text": 1, "answer": "a"}, 'nor "text"'),
        ({"messages": [], "answer": "a"}, "list of at least one"),
        ({"messages": "x", "answer": "a"}, "list of at least one"),
        ({"messages": [{"role": "user"}], "answer": "a"}, 'text under "content"'),
        ({"messages": [{"role": "boss", "content": "x"}], "answer": "a"}, "role 'boss' is not one of"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing comes before"),
    ],
)
def test_the_line_at_fault_is_named(tmp_path, make_context, line, message):
    config = write(tmp_path / "d.jsonl", [*GOOD, "", line])
    with pytest.raises(ValueError, match=rf"d\.jsonl:11.*{message}"):
        task_data(config, make_context("out"))


def test_too_few_and_missing(tmp_path, make_context):
    config = write(tmp_path / "d.jsonl", GOOD)
    assert config.files() == [tmp_path / "d.jsonl"]
    with pytest.raises(ValueError, match="9 examples: give at least 10"):
        task_data(config, make_context("few"))
    with pytest.raises(ValueError, match="does not exist"):
        task_data(TaskDataConfig(data=str(tmp_path / "x.jsonl")), make_context("none"))


READY_ROWS = {
    "summaries": {"mails": [{"from": "Ann", "subject": "Lunch", "body": "Meet on Friday?"}], "answer": "Friday"},
    "replies": {"mails": [{"from": "Ann", "body": "Friday?"}], "wish": "yes", "answer": "Friday is fine."},
    "tone": {"text": "Can't come.", "tone": "friendly", "answer": "Sorry, I can't come!"},
    "proofreading": {"text": "teh mail", "answer": "the mail"},
    "tags": {"text": "See you on Friday", "answer": {"days": ["Friday"]}},
}


@pytest.mark.parametrize("task", sorted(READY_ROWS))
def test_lines_of_ready_tasks_are_laid_out(tmp_path, make_context, task):
    rows = [READY_ROWS[task] | {"id": f"r{i}", "source": f"s{i // 2}"} for i in range(10)]
    config = write(tmp_path / "d.jsonl", rows).model_copy(update={"task": task})
    context = make_context("out")
    assert task_data(config, context)["examples"] == 10
    made = [json.loads(line) for line in (context.out / "examples.jsonl").read_text().splitlines()]
    assert made[3]["id"] == "r3" and made[3]["source"] == "s1" and made[3]["task"] == task
    kinds = {"summaries": "summary", "replies": "reply", "tone": "tone", "proofreading": "edits", "tags": "fields"}
    assert isinstance(made[0]["answer"], str) and made[0]["check"]["kind"] == kinds[task]
    asked = READY[task].instruction.format(tone="friendly") if task == "tone" else READY[task].instruction
    assert made[0]["messages"][0]["content"].startswith(asked)


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("summaries", {"answer": "a"}, "give one of mails, chat, notifications and text"),
        ("summaries", {"mails": [{"from": "Ann"}], "answer": "a"}, '"mails.0.body": Field required'),
        ("summaries", {"text": "t", "sumary": "a"}, '"sumary": Extra inputs'),
        ("summaries", {"text": "t", "answer": 3}, "empty or no text"),
        ("summaries", {"text": "t"}, r'no "answer": add it, or let a model write it \(--writer'),
        ("summaries", {"notifications": [{"app": "x", "urgency": "high"}], "answer": "a"}, "notifications.0.urgency"),
        ("replies", {"mails": [], "answer": "a"}, "must hold the mail"),
        ("tone", {"text": "t", "tone": "rude", "answer": "a"}, '"tone"'),
        ("tone", {"text": "t", "tone": "friendly"}, "--writer"),
        ("tags", {"text": "t", "answer": {"colour": "red"}}, "object with the keys kind"),
    ],
)
def test_the_line_of_a_ready_task_at_fault_is_named(tmp_path, make_context, task, line, message):
    config = write(tmp_path / "d.jsonl", [READY_ROWS[task], "", line]).model_copy(update={"task": task})
    with pytest.raises(ValueError, match=rf"d\.jsonl:3: .*{message}"):
        task_data(config, make_context("out"))


def test_texts_without_answers_get_them_by_rule(tmp_path, make_context):
    rows = [{"text": f"I am sure that number {i} does not work."} for i in range(12)]
    context = make_context("out")
    config = write(tmp_path / "d.jsonl", rows).model_copy(update={"task": "proofreading"})
    assert task_data(config, context)["examples"] == 12
    made = [json.loads(line) for line in (context.out / "examples.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in made] == [row["text"] for row in rows]
    assert not any(row["answer"] in row["messages"][0]["content"] for row in made)
    rows = [row | {"tone": "casual"} for row in rows] + [{"text": "nothing to change here", "tone": "casual"}]
    context = make_context("tone")
    config = write(tmp_path / "t.jsonl", rows).model_copy(update={"task": "tone"})
    metrics = task_data(config, context)
    assert metrics["examples"] == 12 and metrics["rejected"] == {"nothing_to_change": 1}


def test_examples_made_from_nothing(make_context):
    assert task_data(TaskDataConfig(task="tags", made=20), make_context("tags"))["examples"] == 20
    with pytest.raises(ValueError, match="nothing is made by rule for replies; so it is for: summaries, tags"):
        task_data(TaskDataConfig(task="replies", made=20), make_context("replies"))
    with pytest.raises(ValueError, match="no examples: give a file"):
        task_data(TaskDataConfig(task="tags"), make_context("none"))
    with pytest.raises(ValueError, match="no ready task 'summary': choose summaries"):
        task_data(TaskDataConfig(task="summary", made=9), make_context("unknown"))


class Stronger:
    """Answers with what stands in its list, and believes only claims whose first word is in the text."""

    def __init__(self, answers):
        self.answers = answers

    def sample(self, prompts, n=1, **_):
        assert len(prompts) == len(self.answers)
        return [[Completion(f" {answer}\n\nText: the next example")] * n for answer in self.answers]

    def score(self, prompts, options):
        rows = []
        for prompt in prompts:
            text, _, claim = prompt.rpartition("Text: ")[2].partition("\nClaim: ")
            rows.append([1.0 if claim.split()[0] in text else -1.0, 0.0])
        return rows


def test_what_a_stronger_model_writes_is_filtered(tmp_path, make_context, monkeypatch):
    words = "alpha beta gamma delta epsilon zeta omicron theta iota kappa lambda mu nu xi".split()
    rows = [{"text": f"{word} is the name of tool {i}, which sorts files."} for i, word in enumerate(words)]
    answers = [f"{word} sorts files" for word in words]
    answers[:4] = ["sorts", "beta sorts 99 files", "gamma sorts Bob's files", "omega sorts files"]
    monkeypatch.setattr(writing, "open_sampler", lambda *_, **__: Stronger(answers))
    config = write(tmp_path / "d.jsonl", rows).model_copy(
        update={"task": "summaries", "writer": WriterConfig(where="http://127.0.0.1:1/v1", model="big")}
    )
    context = make_context("out")
    metrics = task_data(config, context)
    assert metrics["examples"] == 10
    assert metrics["rejected"] == dict.fromkeys(
        ("name_not_in_text", "not_entailed", "number_not_in_text", "too_short"), 1
    )
    made = [json.loads(line) for line in (context.out / "examples.jsonl").read_text().splitlines()]
    assert made[0]["answer"] == "epsilon sorts files" and made[0]["lineage"].startswith("writer-big/summaries/")


def test_entailment_is_told_against_another_text():
    texts = ["alpha sorts", "alpha sorts", "beta sorts"]
    found = filters.entailment(Stronger([]), texts, ["alpha", "sorts", "alpha"], texts)
    assert found == [2.0, 0.0, -2.0]  # its own alone, both texts, the other alone
    with pytest.raises(ValueError, match="two or more that differ"):
        filters.entailment(Stronger([]), ["a", "a"], ["x", "y"], ["a", "a"])


def test_written_tags_are_json_of_the_text():
    row = Tags(text="See you on Friday in the gym")
    assert writing.judged("tags", row, '{"days": ["Friday"]}\nmore')[:2] == ('{"days": ["Friday"]}', None)
    assert writing.judged("tags", row, '{"days": ["Sunday"]}')[1:] == ("not_in_text", "Sunday")
    assert writing.judged("tags", row, "Friday")[1] == "no_json"
    copy = Summaries(text="Three words here.")
    assert writing.judged("summaries", copy, "three words here")[1] == "copy_of_text"
