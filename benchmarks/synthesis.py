"""What a run of synthesis made: yields, samples to read, overlap, diversity, and every answer solved again.

    openafm run synthesis
    openafm bench synthesis --run runs/synthesis --samples 200

- Yields: made and kept by source, reasons of rejects.
- Samples: drawn evenly over the tasks and the reasons of rejects (`--samples 0` for none; `openafm data samples`).
- Overlap with each registered benchmark, by a program of its own: shared runs of 13 words, and, where the sources hold
  a sentence encoder, near meanings (cosine of 0.95 or more and the same numbers). The closest pairs are printed.
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
from openafm.sampling.embedding import Embedder
from openafm.synthesis.items import MAKERS
from openafm.synthesis.samples import samples

Row = dict[str, Any]
NEAR = 0.95


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


def asked(row: Row) -> str:
    """What a person says in an example: the last user's turn without the list of tools."""
    said = next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")
    return said.partition("\n")[2] if said.startswith("Tools: ") else said


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[i : i + n]) for i in range(len(said) - n + 1)}


def encoder_of(sources: Path) -> Embedder | None:
    folder = sources / "models" / "embedder"
    return Embedder.load(folder) if (folder / "model.safetensors").exists() else None


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
    for name, counts in found["by_benchmark"].items():
        print(f"    {name:<16}{counts['items']:>7,} items, {counts['sharing_13_grams']} examples share a run")
    embedder = encoder_of(sources)
    if embedder is None or not items:
        print("  meanings: no sentence encoder in these sources (models/embedder)")
        return found
    prompts = sorted({asked(row) for row in rows})
    prompts = random.Random(0).sample(prompts, min(most, len(prompts)))
    cosines = embedder.embed(prompts) @ embedder.embed([text for _, _, text in items]).T
    nearest = cosines.argmax(1)
    best = cosines[np.arange(len(prompts)), nearest]
    near = [i for i in np.argsort(-best) if best[i] >= NEAR]
    same = [i for i in near if re.findall(r"\d+", prompts[i]) == re.findall(r"\d+", items[nearest[i]][2])]
    found |= {"near_in_meaning": len(near), "near_with_the_same_numbers": len(same)}
    print(f"  cosine {NEAR} or more to an item: {len(near)} of {len(prompts):,} prompts; with its numbers: {len(same)}")
    for i in np.argsort(-best)[:5]:
        name, key, text = items[nearest[i]]
        print(f"    {best[i]:.3f} {prompts[i][:70]!r} ~ {name} {key}: {text[:70]!r}")
    return found


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
    groups = {"seeds": seeds, "kept prompts": [asked(row) for row in rows + solutions]}
    for step in sorted({row["step"] for row in rows + solutions}):
        groups[f"  {step}"] = [asked(row) for row in rows + solutions if row["step"] == step]
    groups["  written by a model"] = [asked(row) for row in rows + solutions if row["lineage"].startswith("writer")]
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
    if embedder := encoder_of(sources):
        prompts = sorted({asked(row) for row in rows + solutions})
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
    kept = [
        {**row, "step": name} for name, (folder, _) in steps.items() for row in reverify.read(folder / "examples.jsonl")
    ]
    solutions = [
        {**row, "step": name}
        for name, (folder, _) in steps.items()
        for row in reverify.read(folder / "solutions.jsonl")
    ]
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
