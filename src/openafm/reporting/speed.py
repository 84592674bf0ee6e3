"""Chapter of the report on decode speed against the memory's bandwidth: what `openafm bench decode --keep RUN` left."""

from collections.abc import Iterator
from statistics import median

from openafm.reporting import plots
from openafm.reporting.document import Artifacts, Block, Chapter, Figure, Rows, Table, Text, number


def decoding(artifacts: Artifacts) -> Iterator[Block]:
    """Tokens a second of the engine, and the most that reading the weights allows."""
    for name, found in artifacts.benchmarks.items():
        if found["name"] not in ("decode", "decode_long"):
            continue
        dots = {
            contestant: plots.Dot(median(values), min(values), max(values))
            for contestant, values in found["figures"].items()
        }
        limit = found["limit"]
        if limit is not None:
            dots["limit: the weights, read once a token"] = plots.Dot(limit, control=True)
        alt = "; ".join(f"{contestant}: {dot.value:.4g}" for contestant, dot in dots.items())
        rounds = len(next(iter(found["figures"].values())))
        detail, machine = found["detail"], found["machine"]
        source = f"From `benchmarks/{name}`; made by `{found['command']}`"
        yield Figure(
            f"Decode speed, median of {rounds} rounds, bars from the slowest to the fastest"
            + (
                f". The diamond is the limit: {detail['read_gb_a_second_plain']} GB/s of plain reading on the same "
                f"threads, over {detail['weights_mb']} MB of weights; one sequence reaches "
                f"{median(found['figures']['one sequence']) / limit:.0%} of it."
                if limit is not None
                else "."
            ),
            plots.points(dots, f"{found['unit']}", name=name.removesuffix(".json"), alt=alt),
            source,
        )
        rows: Rows = [[f"machine: {key}", str(value)] for key, value in machine.items()]
        rows += [[key.replace("_", " "), number(value)] for key, value in detail.items()]
        yield Table("What was measured, and on what.", ["what", "value"], rows, source=source)
    if not artifacts.benchmarks and artifacts.run is not None and artifacts.of("compress", "recovery"):
        made = artifacts.of("compress", "recovery")[-1]
        yield Text(
            "Not measured on this machine yet: `openafm bench decode --model runs/NAME/"
            f"{made} --keep runs/NAME` measures this run's package, then `openafm report NAME` shows it here."
        )


CHAPTERS = (Chapter("Decode speed", (), decoding),)
