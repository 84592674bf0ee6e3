"""Every flow passes safety, PII, dedup and decontamination: what is planted in each must be gone at the end."""

import json
import random
import re

import fasttext
import pytest

from openafm.data import documents
from openafm.data.clean import CleanConfig, clean
from openafm.data.decontaminate import DecontaminateConfig, decontaminate
from openafm.data.dedup import DedupConfig, dedup
from openafm.stage import Context

QUESTION = "A shop sells apples in bags of seven. How many bags hold ninety one apples, and what is left?"
CARD = "4111 1111 1111 1111"  # passes the Luhn check
ENGLISH = """the a of in on with and to for is are was house garden river mountain summer winter people often long small
water morning walk reads writes book letter answer town street light quiet green after before between where which
because although several many travel music painter window kitchen story teacher child"""
GERMAN = "das ist der und die nicht ein wir haben für mit auf dem werden eine von sich auch wurde nach"
WORDS = ENGLISH.split()


def prose(draw: random.Random, sentences: int = 12) -> str:
    return " ".join(" ".join(draw.choices(WORDS, k=draw.randint(8, 14))).capitalize() + "." for _ in range(sentences))


def code(draw: random.Random) -> str:
    names = [f"{a}_{b}" for a in WORDS[10:30] for b in WORDS[30:40]]
    functions = []
    for name in draw.sample(names, 8):
        first, second = draw.sample(WORDS[12:50], 2)
        functions.append(f'def {name}({first}, {second}):\n    """{prose(draw, 1)}"""\n    return {first} + {second}\n')
    return "\n\n".join(functions)


def corpus() -> list[documents.Row]:
    draw, rows = random.Random(7), []
    for flow in documents.FLOWS:
        columns = {"licence": "MIT", "code_language": "python" if flow == "code" else ""}
        texts = [code(draw) if flow == "code" else prose(draw) for _ in range(5)]
        planted = {
            "benchmark": f"{texts[0]}\n# {QUESTION.upper().replace(' ', '  ')}\n",
            "card": f"{texts[1]}\n# Paid with card {CARD}, thank you.\n",
            "exact_copy": texts[3],
            "near_copy": f"{texts[4]}\n# one more line\n",
        }
        for number, text in enumerate(texts[2:]):
            rows.append(documents.document(f"http://{flow}.example/{number}", flow, text, **columns))
        for kind, text in planted.items():
            rows.append(documents.document(f"http://{flow}.example/{kind}", flow, text, planted=kind, **columns))
    return rows


@pytest.fixture
def sources(tmp_path):
    draw, folder = random.Random(1), tmp_path / "sources"
    for name in ("models", "words", "benchmarks"):
        (folder / name).mkdir(parents=True)
    labelled = (("en", WORDS), ("de", GERMAN.split()))
    lines = [f"__label__{label} {' '.join(draw.choices(words, k=20))}" for label, words in labelled for _ in range(40)]
    (tmp_path / "lid.txt").write_text("\n".join(lines))
    model = fasttext.train_supervised(str(tmp_path / "lid.txt"), dim=4, epoch=20, bucket=1000, thread=1, verbose=0)
    model.save_model(str(folder / "models" / "lid.176.ftz"))
    (folder / "words" / "profanity.txt").write_text("damnword\n")
    (folder / "benchmarks" / "shop.jsonl").write_text(json.dumps({"id": "1", "text": QUESTION}))
    return folder


def test_planted_items_go_in_every_flow_and_the_rest_stays(tmp_path, sources):
    documents.write(corpus(), tmp_path / "extract")
    for name in ("clean", "dedup", "decontaminate"):
        (tmp_path / name).mkdir()
    contexts = {name: Context(tmp_path / name, tmp_path) for name in ("clean", "dedup", "decontaminate")}
    clean(CleanConfig(), contexts["clean"], documents=tmp_path / "extract", sources=sources)
    dedup(DedupConfig(), contexts["dedup"], documents=tmp_path / "clean")
    inputs = {"documents": tmp_path / "dedup", "sources": sources}
    decontaminate(DecontaminateConfig(), contexts["decontaminate"], **inputs)
    fate = {row["url"]: row for row in documents.read(tmp_path / "decontaminate").to_pylist()}
    for flow in documents.FLOWS:
        assert fate[f"http://{flow}.example/card"]["reason"] == "pii.card"
        assert fate[f"http://{flow}.example/benchmark"]["reason"] == "benchmark.shop"
        assert fate[f"http://{flow}.example/0"]["verdict"] == "keep"
        for number, kind in ((1, "exact"), (2, "near")):  # one of each pair of copies stays
            pair = [fate[f"http://{flow}.example/{name}"] for name in (number, f"{kind}_copy")]
            assert sorted(row["reason"] for row in pair) == ["", f"duplicate.{kind}"]
    assert len(fate) == len(corpus())
    left = [row["text"].casefold() for row in fate.values() if row["verdict"] == "keep"]
    assert len(left) == 5 * len(documents.FLOWS) - 2 * len(documents.FLOWS)
    words = " ".join(re.findall(r"\w+", QUESTION.casefold()))
    assert not any(CARD in text or words in " ".join(re.findall(r"\w+", text)) for text in left)
    for flow in documents.FLOWS:
        assert "clean: dropped: pii.card" in documents.why(f"http://{flow}.example/card", tmp_path)
        told = documents.why(f"http://{flow}.example/benchmark", tmp_path).splitlines()
        assert [line.split(" (")[0].strip() for line in told[2:]] == [
            *("clean: kept", "dedup: kept", "decontaminate: dropped: benchmark.shop")
        ]
