"""Mutated WARC, WET, text and row files, robots.txt, page heads and tdmrep.json for the readers of `openafm.data`.

    openafm bench fuzz_inputs --inputs 100000 --seed 1

An input is a whole file of its kind with bytes flipped, cut, doubled, moved or spliced with another's. Each must come
back within 5 seconds, without an exception, and as pages, documents or rejects: what is lost must be counted. Exit code
1 with the inputs at fault, which are kept in the folder that is named.
"""

import argparse
import gzip
import io
import json
import random
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fastwarc import stream_io
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from openafm.data import optout, own, robots
from openafm.data.catalogue import Source
from openafm.data.ingest import ExtractConfig, page_document
from openafm.data.warc import is_robots, pages

SOURCE = Source(package="p", tier="folder", form="any", flow="web", host="h.example")
SECONDS = 5
WORDS = "the garden river letter answer winter school table children writes reads slowly".split()
ROBOTS = (
    b"User-agent: *\nDisallow: /a*b$\nAllow: /a/%C3%A9?x=*\nCrawl-delay: 2\n\nUser-agent: openafm\nDisallow: /*.php\n"
)
TDMREP = b'[{"location": "/a/*", "tdm-reservation": 1}, {"location": "/", "tdm-reservation": 0, "tdm-policy": "x"}]'


def _html(draw: random.Random) -> bytes:
    body = "".join(f"<p>{' '.join(draw.choices(WORDS, k=9))}</p>" for _ in range(draw.randint(1, 5)))
    head = '<meta name="robots" content="noai, nofollow"><meta name="tdm-reservation" content="0">'
    return (
        f"<html><head>{head if draw.random() < 0.3 else ''}<title>T</title></head><body>{body}</body></html>".encode()
    )


def _warc(draw: random.Random, wet: bool) -> bytes:
    file, compress = io.BytesIO(), draw.random() < 0.6
    writer = WARCWriter(file, gzip=compress, warc_version="1.1")
    for number in range(draw.randint(1, 4)):
        url, body = f"https://h.example/{number}", _html(draw)
        if wet:
            record = writer.create_warc_record(url, "conversion", io.BytesIO(body), warc_content_type="text/plain")
        else:
            encoding = draw.choice(
                [("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked"), ("X-Robots-Tag", "all")]
            )
            body = gzip.compress(body) if encoding[1] == "gzip" and draw.random() < 0.7 else body
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html"), encoding], protocol="HTTP/1.1")
            record = writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=http)
        writer.write_record(record)
    if compress or draw.random() < 0.3:
        return file.getvalue()
    packed = io.BytesIO()
    zstd = stream_io.ZstdWriter(packed)
    zstd.write(file.getvalue())
    zstd.close()
    return packed.getvalue()


def _rows(draw: random.Random) -> bytes:
    rows = [
        {"text": " ".join(draw.choices(WORDS, k=9)), "flow": "web", "url": f"https://h.example/{n}"} for n in range(3)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _parquet(draw: random.Random) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": [" ".join(draw.choices(WORDS, k=9)) for _ in range(3)], "n": [1, 2, 3]}), file)
    return file.getvalue()


def _text(draw: random.Random) -> bytes:
    encoding = draw.choice(["utf-8", "utf-16", "latin-1", "shift-jis"])
    return (" ".join(draw.choices(WORDS, k=30)) + " é").encode(encoding, "replace")


def mutated(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """One change or some; every fourth of them at the beginning or the end."""
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        at = draw.randrange(len(out) + 1) if draw.random() < 0.75 else draw.choice([0, max(0, len(out) - 8)])
        size = draw.choice([1, 1, 2, 4, 16, 64, 1_000])
        change = draw.choice([0, 0, 0, 1, 2, 3, 4, 4, 5])
        if change == 0:
            out[at : at + size] = draw.randbytes(min(size, max(0, len(out) - at)))
        elif change == 1:
            del out[at : at + size]
        elif change == 2:
            out[at:at] = out[at : at + size] * draw.randint(1, 4)
        elif change == 3:
            start = draw.randrange(len(other) + 1)
            out[at:at] = other[start : start + size]
        elif change == 4:
            out[at:at] = (
                draw.choice([b"\0", b"\xff\xff\xff\xff", b"9" * 20, b"-1", b"\r\n\r\n", b"WARC/1.0\r\n", b"%", b"*"])
                * size
            )
        else:
            del out[at:]
    return bytes(out)


def _recompressed(data: bytes, draw: random.Random) -> bytes:
    """Mutated content in a whole wrapper, which mutations of the compressed bytes hardly ever reach."""
    try:
        plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error):
        return data
    return gzip.compress(mutated(plain, plain, draw), 1)


def _read_archive(path: Path) -> Counter[str]:
    """Pages by fate; one that is whole goes through the extraction's own row."""
    fates: Counter[str] = Counter()
    for page in pages(path):
        row = page_document(page, {}, ExtractConfig()) if not is_robots(page.url) else {"reason": "robots.txt"}
        fates[row["reason"] or "kept"] += 1
    return fates


def _read_own(path: Path) -> Counter[str]:
    items = own.read_file(path, SOURCE, path.name)
    return Counter(item.reason if isinstance(item, own.Reject) else "kept" for item in items)


def _read_rules(path: Path) -> Counter[str]:
    data = path.read_bytes()
    url = "https://h.example/" + data[-200:].decode("utf-8", "replace")
    answers = [
        robots.allowed(data, url),
        robots.allowed(data, data.decode("latin-1")[:300]),
        optout.tdmrep_reserved(data, url),
    ]
    optout.of_page({"x-robots-tag": [data.decode("latin-1")], optout.TDM: [data.decode("latin-1")]}, data)
    return Counter(str(answer) for answer in answers)


KINDS: dict[str, tuple[str, Callable[[random.Random], bytes], Callable[[Path], Counter[str]]]] = {
    "warc": (".warc.gz", lambda draw: _warc(draw, wet=False), _read_archive),
    "wet": (".warc.wet.gz", lambda draw: _warc(draw, wet=True), _read_archive),
    "text": (".txt", _text, _read_own),
    "html": (".html", _html, _read_own),
    "rows": (".jsonl", _rows, _read_own),
    "rows.gz": (".jsonl.gz", lambda draw: gzip.compress(_rows(draw)), _read_own),
    "parquet": (".parquet", _parquet, _read_own),
    "robots": (".txt", lambda draw: draw.choice([ROBOTS, TDMREP, _html(draw)]), _read_rules),
}


def _late(signum: int, frame: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS} s")


def _nothing_counted(kind: str, data: bytes, fates: Counter[str]) -> bool:
    """Whether an input vanished: an archive or a whole file must give at least one page, document or reject."""
    return not fates and (kind in ("warc", "wet", "text", "html") or bool(kind == "rows" and data.strip()))


def run(inputs: int, seed: int, kept: Path) -> tuple[dict[str, Counter[str]], list[str], float]:
    """Fates by kind, what went wrong, and the slowest input's seconds."""
    draw, faults, slowest = random.Random(seed), [], 0.0
    fates: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    signal.signal(signal.SIGALRM, _late)
    for number in range(inputs):
        kind = list(KINDS)[number % len(KINDS)]
        suffix, make, read = KINDS[kind]
        data = mutated(make(draw), make(draw), draw) if draw.random() < 0.6 else _recompressed(make(draw), draw)
        path = kept / f"input{suffix}"
        path.write_bytes(data)
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            found = read(path)
            wrong = "nothing counted" if _nothing_counted(kind, data, found) else ""
            fates[kind] += found
        except Exception as error:  # the very thing that is looked for
            wrong = f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.monotonic() - started)
        if wrong:
            path.rename(kept / f"fault-{number}{suffix}")
            faults.append(f"{kind} {kept / f'fault-{number}{suffix}'}: {wrong[:200]}")
    return fates, faults, slowest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kept = Path(tempfile.mkdtemp(prefix="fuzz-inputs-"))
    fates, faults, slowest = run(options.inputs, options.seed, kept)
    for kind, counts in fates.items():
        print(
            f"{kind:<9}{counts.total():>9,} items  " + ", ".join(f"{name} {n:,}" for name, n in counts.most_common(8))
        )
    print(f"{options.inputs:,} inputs, slowest {slowest:.2f} s, {len(faults)} faults")
    for fault in faults[:20]:
        print(fault)
    if options.json:
        detail = {kind: dict(counts) for kind, counts in fates.items()}
        print(
            json.dumps(
                {
                    "name": "fuzz_inputs",
                    "unit": "faults",
                    "ours": len(faults),
                    "peers": {},
                    "limit": 0,
                    "detail": detail,
                }
            )
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
