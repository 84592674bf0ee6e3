"""What a run of synthesis made: yields, samples to read, overlap, diversity, and every answer solved again.

    openafm run synthesis
    openafm bench synthesis --run runs/synthesis --samples 200

- Yields: made and kept by source, reasons of rejects.
- Samples: drawn evenly over the tasks and the reasons of rejects (`--samples 0` for none; `openafm data samples`).
- Overlap with each registered benchmark of what the run's step `screen` let pass: shared runs of 13 words, and, where
  the sources hold a sentence encoder, near meanings, with the closest pairs; and what the screen finds of planted
  paraphrases.
- Diversity: distinct 2-grams and 3-grams of kept prompts beside those of the seeds, how near prompts stay to a seed,
  and how kept code is spread over the 71 topics.
- Every kept answer solved again (benchmarks/reverify.py).
"""

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import reverify
from harness import machine
from openafm.data.meanings import Meanings, asked
from openafm.data.screen import ScreenConfig
from openafm.sampling.embedding import Embedder
from openafm.synthesis.items import MAKERS
from openafm.synthesis.samples import samples

Row = dict[str, Any]


def steps_of(run: Path) -> dict[str, tuple[Path, Row]]:
    """The data steps of a run: name -> folder and manifest."""
    found = {}
    for path in sorted(run.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["stage"] in MAKERS:
            found[path.parent.name] = path.parent, manifest
    return found


def yields(steps: dict[str, tuple[Path, Row]]) -> dict[str, Row]:
    """Print what each step made, kept and rejected, and which source was used."""
    print(f"{'step: source':<42}{'made':>8}{'kept':>8}{'share':>8}")
    for name, (_, manifest) in steps.items():
        for source, n in manifest["metrics"]["yield"].items():
            print(f"{name + ': ' + source:<42}{n['made']:>8}{n['kept']:>8}{n['kept'] / max(1, n['made']):>8.0%}")
    print()
    for name, (_, manifest) in steps.items():
        reasons = ", ".join(f"{reason} {n}" for reason, n in manifest["metrics"]["reasons"].items()) or "none"
        print(f"{name}: writer {manifest['metrics']['writer']['model']}; rejects: {reasons}")
    return {name: manifest["metrics"]["yield"] for name, (_, manifest) in steps.items()}


def text_of(row: Row) -> str:
    return "\n".join([*(message["content"] for message in row["messages"]), row["answer"]])


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[i : i + n]) for i in range(len(said) - n + 1)}


def screened(run: Path) -> dict[str, Path]:
    """Steps whose examples the run's step `screen` read -> the folder with what it let pass."""
    return {
        made["step"]: path.parent / key.removeprefix("parts.")
        for path in sorted(run.glob("*/manifest.json"))
        if (manifest := json.loads(path.read_text()))["stage"] == "screen"
        for key, made in manifest["inputs"].items()
        if key.startswith("parts.")
    }


def overlap(rows: list[Row], sources: Path, most: int) -> dict[str, Any]:
    """Shared 13-grams of all kept examples with each benchmark, and near meanings of `most` of their prompts."""
    items = [
        (path.stem, row["id"], row["text"])
        for path in sorted((sources / "benchmarks").glob("*.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
    ]
    of = {gram: (name, key) for name, key, text in items for gram in runs(text, 13)}
    shared = [(row["id"], of[gram]) for row in rows for gram in runs(text_of(row), 13) if gram in of]
    found: dict[str, Any] = {"items": len(items), "benchmarks": len({name for name, _, _ in items})}
    found["sharing_13_grams"] = len({key for key, _ in shared})
    found["by_benchmark"] = {
        name: {"items": n, "sharing_13_grams": len({key for key, (of_name, _) in shared if of_name == name})}
        for name, n in sorted(Counter(name for name, _, _ in items).items())
    }
    print(f"\n{len(rows):,} kept examples against {found['items']:,} items of {found['benchmarks']} benchmarks")
    print(f"  sharing a run of 13 words: {found['sharing_13_grams']}", *sorted({str(s) for s in shared})[:5])
    meanings = Meanings.open(sources)
    if meanings is None:
        print("  meanings: no sentence encoder in these sources (models/embedder)")
        return found
    prompts = sorted({asked(row)[-1] for row in rows})
    prompts = random.Random(0).sample(prompts, min(most, len(prompts)))
    return found | {"meanings": near(meanings, prompts, found["by_benchmark"]), "planted": planted(meanings)}


def near(meanings: Meanings, prompts: list[str], by_benchmark: dict[str, Row]) -> Row:
    """Print how near prompts come to each benchmark, and the nearest pairs; those above the screen's limits count."""
    cosines = meanings.embedder.embed(prompts) @ meanings.vectors.T  # (prompts, items' texts)
    limits, names = ScreenConfig(), np.array([name for name, _, _ in meanings.items])
    least = min(limits.meaning, limits.meaning_of_numbers)
    print(f"  {'':<14}{'items':>7}{'13 words':>10}{'nearest':>9}{'99th of 100':>13}{'same question':>15}")
    same: list[tuple[int, int]] = []
    for name, counts in by_benchmark.items():
        of = np.flatnonzero(names == name)
        best = cosines[:, of].max(1)
        pairs = [
            (i, int(j)) for i, prompt in enumerate(prompts) for j in of[cosines[i, of] >= least]
            if limits.same(meanings.pair(prompt, cosines[i], j))
        ]  # fmt: skip
        same += pairs
        counts |= {"nearest": round(float(best.max()), 3), "same_question": len({i for i, _ in pairs})}
        print(
            f"  {name:<14}{counts['items']:>7,}{counts['sharing_13_grams']:>10}{counts['nearest']:>9.3f}"
            f"{float(np.percentile(best, 99)):>13.3f}{counts['same_question']:>15}"
        )
    print(f"  {len(prompts):,} prompts compared; the nearest, and what they are near to:")
    closest = np.argsort(-cosines.max(1))[:8]
    for i, j in same + [(int(i), int(cosines[i].argmax())) for i in closest]:
        name, key, text = meanings.items[j]
        print(f"    {cosines[i, j]:.3f} {prompts[i][:90]!r} ~ {key}: {' '.join(text.split())[:90]!r}")
    return {"prompts": len(prompts), "same_question": len({i for i, _ in same})}


PARAPHRASES = {
    "reasoning/chain_sum/13": "What do you get for 0 + 4 - 2 + 7?",
    "reasoning/lcm/0": "What is the smallest number that both 56 and 19 divide?",
    "reasoning/calendar_arithmetic/4": "Was 1990 a leap year?",
    "reasoning/count_primes/17": "How many primes lie between 7436 and 8731, both ends counted?",
    "reasoning/calendar_arithmetic/14":
        "Between May 26, 2022 and August 7, 2022, both days counted, how many Thursdays are there?",
    "bfcl/simple_python_388": "If I exchange 500 US dollars, how much is that in Canadian dollars?",
    "bfcl/simple_python_240": "Tell me who was US president in the year 1940.",
    "bfcl/multiple_99": "What is the slope of 2x^2 at the point x = 1?",
    "bfcl/multiple_109": "Which proteins can be found in a cell's plasma membrane?",
    "bfcl/simple_python_295": "Show me the words of the song Bohemian Rhapsody by Queen.",
    "bfcl/multiple_50": "What will houses in New York cost next month?",
    "human_eval/34": "Write f(x) that returns the sorted distinct elements of the list x.",
}  # fmt: skip
"""Items of the catalogue `synthesis`, asked in other words by hand."""


def planted(meanings: Meanings) -> Row:
    """Print which planted paraphrases the screen's rule finds."""
    limits, found = ScreenConfig(), 0
    known = {key for _, key, _ in meanings.items}
    there = {key: text for key, text in PARAPHRASES.items() if key in known}
    print(f"  {len(there)} planted paraphrases:")
    for (key, text), (nearest, same) in zip(there.items(), meanings.nearest(list(there.values())), strict=True):
        hit = limits.same(same)
        found += hit
        told = "found" if hit else "missed"
        print(f"    {told:<7}{(same or nearest).similarity:.3f} {text[:80]!r} ~ {(same or nearest).item}, of {key}")
    return {"paraphrases": len(there), "found": found}


def seed_texts(rows: list[Row]) -> list[str]:
    """What examples grew from: the problems of the code seeds, and the sums that rules and writers rewrote."""
    code = [row["problem"] for row in yaml.safe_load((reverify.PACKAGE / "code_seeds.yaml").read_text())]
    grown = (row["lineage"].split("/", 2) for row in rows if row["lineage"].startswith(("rule-", "writer-")))
    return code + sorted({parts[2] for parts in grown if parts[1].startswith("math_")})


def diversity(rows: list[Row], solutions: list[Row], sources: Path, most: int) -> dict[str, Any]:
    """Distinct n-grams of prompts beside those of the seeds they grew from, and how near prompts stay to a seed."""
    seeds = seed_texts(rows)
    found: dict[str, Any] = {}
    print(f"\n{'distinct n-grams':<28}{'texts':>8}{'words':>10}{'2-grams':>10}{'3-grams':>10}{'new 3-grams':>13}")
    known = {gram for text in seeds for gram in runs(text, 3)}
    groups = {"seeds": seeds, "kept prompts": [asked(row)[-1] for row in rows + solutions]}
    for step in sorted({row["step"] for row in rows + solutions}):
        groups[f"  {step}"] = [asked(row)[-1] for row in rows + solutions if row["step"] == step]
    groups["  written by a model"] = [asked(row)[-1] for row in rows + solutions if row["lineage"].startswith("writer")]
    for name, texts in groups.items():
        grams = {n: {gram for text in texts for gram in runs(text, n)} for n in (2, 3)}
        total = sum(len(words(text)) for text in texts)
        new = len(grams[3] - known)
        print(f"{name:<28}{len(texts):>8,}{total:>10,}{len(grams[2]):>10,}{len(grams[3]):>10,}{new:>13,}")
        found[name.strip()] = {
            "texts": len(texts),
            "distinct_2": len(grams[2]),
            "distinct_3": len(grams[3]),
            "new_3": new,
        }
    if embedder := Embedder.find(sources / "models" / "embedder"):
        prompts = sorted({asked(row)[-1] for row in rows + solutions})
        prompts = random.Random(0).sample(prompts, min(most, len(prompts)))
        nearest = (embedder.embed(prompts) @ embedder.embed(seeds).T).max(1)
        told = {f"{q}%": round(float(np.percentile(nearest, q)), 3) for q in (10, 50, 90)}
        print(
            f"cosine of {len(prompts):,} prompts to their nearest seed: "
            + ", ".join(f"{q} {v}" for q, v in told.items())
        )
        found["nearest_seed"] = told
    return found


def spread(solutions: list[Row], rejected: list[Row]) -> dict[str, Any]:
    """How kept code is spread over the 71 topics: evenness is the entropy over that of an even spread."""
    topics = (reverify.PACKAGE / "topics.txt").read_text().splitlines()
    kept = Counter(row["topic"] for row in solutions)
    made = kept + Counter(row["topic"] for row in rejected if "topic" in row)
    shares = np.array(list(kept.values())) / max(1, kept.total())
    evenness = float(-(shares * np.log(shares)).sum() / np.log(len(topics))) if len(kept) else 0.0
    print(f"\ntopics of kept code: {len(kept)} of {len(topics)}, evenness {evenness:.3f} (1 is even)")
    print(f"  kept most: {', '.join(f'{t} {n}' for t, n in kept.most_common(5))}")
    print(f"  solutions made a topic: {min((made[t] for t in topics), default=0)} to {max(made.values(), default=0)}")
    print(f"  none kept: {', '.join(t for t in topics if not kept[t]) or 'no topic'}")
    return {
        "topics": len(kept),
        "of": len(topics),
        "evenness": evenness,
        "none_kept": [t for t in topics if not kept[t]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/synthesis"), help="a run, default runs/synthesis")
    parser.add_argument("--samples", type=int, default=20, help="examples printed for reading, default 20")
    parser.add_argument("--embedded", type=int, default=4000, help="prompts compared by meaning, default 4000")
    parser.add_argument("--json", action="store_true", help="print the result as one last line of JSON")
    options = parser.parse_args()
    steps = steps_of(options.run)
    if not steps:
        raise SystemExit(f"{options.run} holds no data steps: openafm run synthesis, then --run RUN")
    made = yields(steps)
    passed = {name: folder for name, (folder, _) in steps.items()} | screened(options.run)
    kept, solutions = (
        [{**row, "step": name} for name in steps for row in reverify.read(passed[name] / f"{file}.jsonl")]
        for file in ("examples", "solutions")
    )
    synthetic = [row for row in kept if row["origin"] == "synthetic"]
    if options.samples:
        print(*(f"\n[{n}] {sample}" for n, sample in enumerate(samples(options.run, options.samples), 1)), sep="\n")
    found = {"yield": made, "overlap": overlap(synthetic + solutions, options.run / "fetch", options.embedded)}
    found["diversity"] = diversity(synthetic, solutions, options.run / "fetch", options.embedded)
    rejected = [row for folder, _ in steps.values() for row in reverify.read(folder / "rejected.jsonl")]
    found["topics"] = spread(solutions, rejected)
    print("\nSolved again by a second program (benchmarks/reverify.py)")
    summed = reverify.table(reverify.reverify_run(options.run))
    found["reverified"] = dict(summed)
    if options.json:
        right = summed["right"] / max(1, summed.total())
        line = {"name": "synthesis", "unit": "share of kept answers solved again and right", "ours": right}
        print(json.dumps({**line, "peers": {}, "limit": 1.0, "detail": found, "machine": machine()}))


if __name__ == "__main__":
    main()
