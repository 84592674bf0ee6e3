"""Tasks of the lm-evaluation-harness: local ones from packages' data, a user's own files, and any by its name.

Local tasks are the harness's own kind of configuration over JSON Lines files, so they run through any of its model
classes (`benchmarks/harness_bridge.py`). The harness's own tasks need the data sets that they name, from a hub.
"""

import hashlib
import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import Any

from openafm import jsonl
from openafm.evaluation.suite.items import Item, NotMeasuredError
from openafm.evaluation.suite.material import Material, spread
from openafm.evaluation.suite.subject import Subject
from openafm.evaluation.suite.task import Bench, Size, Task
from openafm.evaluation.suite.texts import paragraphs, squad

Rows = Callable[[Material], list[dict[str, Any]]]
INSTALL = "lm-evaluation-harness is not installed: pip install 'openafm[evaluation]'"
_QUESTION = re.compile(
    r"(?:^|\n)Q: (.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*?The answer is \(([A-D])\)", re.S
)
_SENTENCE = re.compile(r"(?<=[.!?]) +(?=[A-Z\"'(])")
PERPLEXITIES = {"bits_per_byte": "bits_per_byte", "word_perplexity": "bits_per_word"}
"""Metrics whose samples are (log-likelihood, bytes or words), and what is made of them."""


def mmlu(material: Material) -> list[dict[str, Any]]:
    """MMLU's development questions (Hendrycks et al., 2021), out of the harness's few-shot prompts."""
    found = []
    for subject, text in json.loads(material.text("mmlu")).items():
        topic = text.partition("\n")[0].rpartition("about ")[2].rstrip(".")
        for question, *choices, letter in _QUESTION.findall(text):
            row = {"subject": subject, "topic": topic, "question": question.strip(), "choices": choices}
            found.append({**row, "answer": "ABCD".index(letter)})
    return found


def answerable(material: Material) -> list[dict[str, Any]]:
    """SQuAD's questions that their paragraph answers, one a paragraph."""
    found = []
    for article in squad(material):
        for part in article["paragraphs"]:
            asked = [qa for qa in part["qas"] if not qa["is_impossible"]]
            if asked and len(part["context"]) < 1200:
                answers = list(dict.fromkeys(answer["text"] for answer in asked[0]["answers"]))
                found.append(
                    {
                        "title": article["title"],
                        "context": part["context"],
                        "question": asked[0]["question"],
                        "answers": answers,
                    }
                )
    return found


def following(material: Material) -> list[dict[str, Any]]:
    """Which sentence ends a paragraph? Its own last one, or the last of three other paragraphs of the same article.

    All four are last ones: those end otherwise than sentences from the middle do, 7% of them without a full stop.
    """
    found = []
    for article in squad(material):
        split = [_SENTENCE.split(part["context"]) for part in article["paragraphs"]]
        for number, sentences in enumerate(split):
            others = sorted({other[-1] for other in split if len(other) > 1} - {sentences[-1]})
            if not 3 <= len(sentences) <= 8 or len(others) < 3:
                continue
            rng = random.Random(f"{article['title']}/{number}")
            choices = [sentences[-1], *rng.sample(others, 3)]
            answer = rng.randrange(4)
            choices[0], choices[answer] = choices[answer], choices[0]
            found.append({"context": " ".join(sentences[:-1]), "choices": choices, "answer": answer})
    return found


def whole(material: Material) -> list[dict[str, Any]]:
    """Paragraphs to be scored whole."""
    return [{"text": text} for text in paragraphs(material)]


LOCAL: dict[str, tuple[str, Rows, dict[str, Any]]] = {
    "openafm_mmlu": (
        "MMLU development questions, letter by log-probability", mmlu,
        {
            "output_type": "multiple_choice",
            "description": "",
            "doc_to_text": "The following are multiple choice questions (with answers) about {{topic}}.\n\n"
            "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
    "openafm_sentence": (
        "a paragraph's own last sentence among four last ones, by log-probability a byte", following,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
    "openafm_squad": (
        "SQuAD questions answered from their paragraph, an answer word for word", answerable,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{context}}\n\nQuestion: {{question}}\nAnswer:",
            "doc_to_target": "answers",
            "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 32, "do_sample": False},
            "filter_list": [
                {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            ],
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
                 "ignore_punctuation": True}
            ],
        },
    ),
    "openafm_paragraph": (
        "bits per byte of Wikipedia paragraphs, in the harness's way", whole,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
        },
    ),
}  # fmt: skip
"""Name of a local task to what it measures, its rows, and the harness's configuration."""


def local(name: str, rows: Sequence[dict[str, Any]], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The harness's configuration of a task over `rows`, which are written into `folder` under their digest."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    place = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}, "cache_dir": str(folder.resolve() / "arrow")},
        "test_split": "test",
    }
    return {"task": name, **place, "num_fewshot": 0, **settings}


def run(lm: Any, task: str | dict[str, Any], limit: int | None, *, chat: bool = False) -> dict[str, Any]:
    """The harness's results of one task, every sample logged. Raises NotMeasuredError where its data cannot be had."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    file = Path(task) if isinstance(task, str) and task.endswith((".yaml", ".yml")) else None
    name, folder = (task, None) if file is None else (file.stem, [str(file.parent)])
    manager = TaskManager(include_defaults=isinstance(task, str), include_path=folder)
    try:
        found = simple_evaluate(
            model=lm, tasks=[name], limit=limit, task_manager=manager, bootstrap_iters=0, log_samples=True,
            apply_chat_template=chat, batch_size=lm.batch if hasattr(lm, "batch") else None,
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(
            f"{task} is no task of the lm-evaluation-harness ({error}); `lm_eval ls tasks` names them"
        ) from error
    except (ConnectionError, OSError) as error:
        raise NotMeasuredError(f"its data set cannot be had: {str(error).strip().partition(chr(10))[0]}") from error
    assert found is not None
    return dict(found)


def items(found: dict[str, Any]) -> Iterator[Item]:
    """Each sample's metrics, apart by task and by filter where there are several of those."""
    for name, samples in found["samples"].items():
        several, filters = len(found["samples"]) > 1, {sample["filter"] for sample in samples}
        for sample in samples:
            for metric in sample["metrics"]:
                part, top, bottom = counted(metric, sample[metric])
                if part:
                    part = f"{part}, {sample['filter']}" if len(filters) > 1 else part
                    part = f"{name}/{part}" if several else part
                    yield Item(part, f"{name}/{sample['doc_id']}", top, bottom, _shown(sample))


def counted(metric: str, value: Any) -> tuple[str, float, float]:
    """A sample's metric as part, top and bottom; no part where it is of all samples together, or another says the same.

    Log-likelihoods become bits of bytes or words, or nats an item.
    """
    if isinstance(value, tuple | list) and len(value) == 2 and metric in PERPLEXITIES:
        return PERPLEXITIES[metric], -float(value[0]) / log(2), float(value[1])
    if metric == "perplexity":
        return "nats_per_item", -float(value), 1.0
    if isinstance(value, bool | int | float) and metric != "byte_perplexity":
        return metric, float(value), 1.0
    return "", 0.0, 1.0


def _shown(sample: dict[str, Any]) -> dict[str, Any]:
    return {"target": str(sample["target"])[:200], "answer": str(sample["filtered_resps"])[:400]}


def _measure(name: str, subject: Subject, bench: Bench) -> Iterable[Item]:
    _, rows, settings = LOCAL[name]
    chosen = spread(rows(bench.material), bench.size.items)
    return _harnessed(subject, bench, local(name, chosen, settings, bench.context.scratch), None)


def _named(task: str, subject: Subject, bench: Bench) -> Iterable[Item]:
    return _harnessed(subject, bench, task, bench.size.items or None)


def _harnessed(subject: Subject, bench: Bench, task: str | dict[str, Any], limit: int | None) -> list[Item]:
    try:
        from openafm.evaluation.harness import OpenAFM
    except ImportError as error:
        raise NotMeasuredError(f"{INSTALL} ({error})") from error
    lm = OpenAFM(
        model=subject.model, tokenizer=subject.tokenizer, report=bench.context.report, batch_size=subject.batch
    )
    return list(items(run(lm, task, limit)))


def named_task(task: str) -> Task:
    """A task of the harness by its name, or by a YAML file of the user's."""
    label = Path(task).stem if task.endswith((".yaml", ".yml")) else task
    version = hashlib.sha256(Path(task).read_bytes()).hexdigest() if Path(task).is_file() else ""
    return Task(f"harness/{label}", "lm-evaluation-harness, as configured there", _partial(_named, task),
                Size(100), Size(0), better="", version=version)  # fmt: skip


def own_task(path: Path) -> Task:
    """A user's questions: JSON Lines of {"question", "choices", "answer"} (the right choice's number or text) or of
    {"question", "answer"} (text to be found word for word). Raises ValueError naming the line that is neither."""
    rows = []
    for number, row in jsonl.numbered(path.read_bytes(), str(path)):
        rows.append(_own_row(row, f"{path}:{number}"))
    if not rows:
        raise ValueError(f"{path} holds no questions")
    if len({"choices" in row for row in rows}) > 1:
        raise ValueError(f"{path}: some lines have choices and some have none; make two files of them")
    settings = LOCAL["openafm_sentence" if "choices" in rows[0] else "openafm_squad"][2]
    asked = {"doc_to_text": "Question: {{question}}\nAnswer:"}
    if "choices" in rows[0]:
        asked["target_delimiter"] = " "
    name = re.sub(r"\W+", "_", path.stem)
    measured = _partial(_own, (name, rows, {**settings, **asked}))
    version = hashlib.sha256(path.read_bytes()).hexdigest()
    return Task(f"own/{name}", f"questions of {path.name}", measured, Size(100), Size(1_000_000), version=version)


def _own_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(row.get("question"), str) or "answer" not in row:
        raise ValueError(f'{where}: give {{"question": text, "answer": ...}}, and "choices" for multiple choice')
    if "choices" not in row:
        return {"question": row["question"], "answers": [str(row["answer"])]}
    choices, answer = [str(choice) for choice in row["choices"]], row["answer"]
    at = answer if isinstance(answer, int) and not isinstance(answer, bool) else None
    at = choices.index(str(answer)) if at is None and str(answer) in choices else at
    if at is None or not 0 <= at < len(choices):
        raise ValueError(f"{where}: answer {answer!r} is neither the number (from 0) nor the text of a choice")
    return {"question": row["question"], "choices": choices, "answer": at}


def _own(given: tuple[str, list[dict[str, Any]], dict[str, Any]], subject: Subject, bench: Bench) -> Iterable[Item]:
    name, rows, settings = given
    chosen = spread(rows, bench.size.items)
    return _harnessed(subject, bench, local(f"own_{name}", chosen, settings, bench.context.scratch), None)


def _partial(function: Callable[..., Iterable[Item]], first: Any) -> Callable[[Subject, Bench], Iterable[Item]]:
    """`function` with its first argument set; its module stays told."""
    made = partial(function, first)
    made.__module__ = function.__module__
    return made


_SIZES = {
    "openafm_mmlu": (Size(100), Size(285), ("mmlu",), 0.25),
    "openafm_sentence": (Size(40), Size(400), ("squad",), 0.25),
    "openafm_squad": (Size(40), Size(400), ("squad",), None),
    "openafm_paragraph": (Size(32), Size(300), ("squad",), None),
}
TASKS = tuple(
    Task(
        f"harness/{name.removeprefix('openafm_')}", LOCAL[name][0], _partial(_measure, name), nano, full, data,
        "lower" if name == "openafm_paragraph" else "higher", "bits" if name == "openafm_paragraph" else "%", guess,
    )
    for name, (nano, full, data, guess) in _SIZES.items()
)  # fmt: skip
