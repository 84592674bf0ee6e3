"""Precision on real documents: what the filters hit there, joined to what its readers said.

Recall is measured on planted dirt, precision is not: real pages are where filters hit what they should not. Each filter
step writes its real hits to `audit.jsonl`; `labels/*.jsonl` beside this module say of hits that were read whether they
were right: {"kind", "url", "hash", "label", "note", "evidence"}, evidence masked where it is personal. The hash is of
what was judged (the finding, the n-gram, or the document's text), so a label holds as long as that stays the same, on
any machine and under changed filters; a hit that nobody has read is counted as unlabelled, and never as right.

The labels are the developers' (a language model read for them), not an outside panel's; filters were changed after it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from openafm import jsonl
from openafm.scoring.intervals import wilson
from openafm.stage import Metrics

FILE = "audit.jsonl"
LABELS = ("true", "false")

Key = tuple[str, str, str]
"""Kind, URL and hash of the evidence."""


@dataclass(frozen=True)
class Hit:
    """Something a filter found in a real document. `evidence` and `text` (its beginning) hold no personal data."""

    reason: str
    url: str
    hash: str
    flow: str
    evidence: str
    text: str = ""

    @property
    def key(self) -> Key:
        """What a label is joined by."""
        return self.reason, self.url, self.hash


def evidence_hash(*evidence: str) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of texts; case and white space make no difference."""
    folded = "\n".join(" ".join(text.casefold().split()) for text in evidence)
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@cache
def read_labels(folder: Path | None = None) -> dict[Key, bool]:
    """Read the committed labels, or those of a folder. Raises ValueError naming the line of a broken one."""
    labels: dict[Key, bool] = {}
    for path in sorted((folder or Path(str(files("openafm.data") / "labels"))).glob("*.jsonl")):
        for number, label in jsonl.numbered(path.read_bytes(), str(path)):
            try:
                key = str(label["kind"]), str(label["url"]), str(label["hash"])
                labels[key] = LABELS.index(label["label"]) == 0
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}:{number}: not a label {{"kind", "url", "hash", "label"}}: {error!r}'
                ) from error
    return labels


def measure(hits: Iterable[Hit], labels: dict[Key, bool]) -> dict[str, Metrics]:
    """Count each kind's hits by label: {"hits", "true", "false", "unlabelled", "precision", "precision_95"} a kind.

    Precision is true / (true + false) with Wilson's interval, None where nothing is labelled.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for key in {hit.key for hit in hits}:
        said = labels.get(key)
        counts[key[0]]["unlabelled" if said is None else "true" if said else "false"] += 1
    return {kind: _row(found) for kind, found in sorted(counts.items())}


def _row(found: Counter[str]) -> Metrics:
    read = found["true"] + found["false"]
    row: Metrics = {"hits": found.total()} | {name: found[name] for name in ("true", "false", "unlabelled")}
    if not read:
        return row | {"precision": None, "precision_95": None}
    interval = [round(end, 4) for end in wilson(found["true"], read)]
    return row | {"precision": round(found["true"] / read, 4), "precision_95": interval}


def audit(hits: Iterable[Hit], out: Path) -> dict[str, Metrics]:
    """Write the hits to `audit.jsonl`, sorted, each once, for reading; return their precision by the labels."""
    listed = sorted({hit.key: hit for hit in hits}.values(), key=lambda hit: hit.key)
    jsonl.write(out / FILE, map(asdict, listed))
    return measure(listed, read_labels())
