"""Counters and gauges in Prometheus' text format (version 0.0.4), for `GET /metrics`."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HELP = {
    "openafm_requests_total": "Requests by path and HTTP status; 499 is a client that left.",
    "openafm_prompt_tokens_total": "Tokens of prompts whose answer was begun, by model.",
    "openafm_completion_tokens_total": "Tokens generated, by model.",
    "openafm_generation_seconds_total": "Seconds of generating, by model.",
    "openafm_queue_seconds_total": "Seconds that answers waited for their turn, by model.",
    "openafm_adapter_loads_total": "How often one of the folder's adapters was put into memory.",
    "openafm_adapters_in_memory": "Adapters of the folder in memory.",
    "openafm_running": "Answers being made.",
    "openafm_waiting": "Requests in the queue.",
    "process_resident_memory_bytes": "Memory of the server, of the weights what has been read of them.",
    "process_open_fds": "Open files and connections.",
}


class Metrics:
    """Sums since the start of the server, by name and labels."""

    def __init__(self) -> None:
        self._sums: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def add(self, name: str, value: float = 1, **labels: Any) -> None:
        """Add to a counter."""
        assert name in HELP
        self._sums[name, tuple((key, str(label)) for key, label in labels.items())] += value  # type: ignore[assignment]

    def text(self, gauges: Mapping[str, float]) -> str:
        """Write all counters, and the gauges' values of this moment."""
        values = [*self._sums.items(), *(((name, ()), value) for name, value in gauges.items())]
        lines = []
        for name, meaning in HELP.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(labels)} {value:.10g}" for (of, labels), value in sorted(values) if of == name]
        return "\n".join(lines) + "\n"


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    inside = ",".join(f'{key}="{_escape(value)}"' for key, value in labels)
    return f"{{{inside}}}" if inside else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
