"""A polite crawler that writes WARC: `openafm crawl https://example.org/ --out crawl`.

It asks a host one page at a time, with a pause, and nothing that robots.txt (RFC 9309), a reservation of text and data
mining (TDMRep) or the page itself (`noindex`, `noai`) keeps back. It stays on the hosts of its seeds, refuses private
addresses, and gives up on traps. Run again, it goes on. `openafm run nano --set fetch.texts=crawl` reads what it took.

    OUT/warc/*.warc.gz   warcinfo, then request and response of every page taken and of every robots.txt
    OUT/pages.jsonl      every address met: taken or not, and why
    OUT/state.sqlite     what waits; OUT/crawl.json: settings and sums
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from openafm.data import robots
from openafm.data.frontier import CRAWL, Limits, host_of
from openafm.data.warc import is_address
from openafm.stage import Config


class CrawlConfig(Config):
    """What is crawled, and under which name."""

    seeds: tuple[str, ...]
    """Addresses, or files of addresses."""
    hosts: tuple[str, ...] = ()
    """Hosts beside those of the seeds; "*.example.org" for all below one."""
    contact: str = ""
    """An address at which a site's owner reaches you; part of the User-Agent."""
    allow_private: bool = False
    """Whether addresses that are not of the public internet may be asked (tests, intranets)."""
    limits: Limits = Limits()

    @property
    def user_agent(self) -> str:
        """What requests carry: our product token, version and contact."""
        return f"{robots.AGENT}/{version('openafm')}" + (f" (+{self.contact})" if self.contact else "")


def crawl(config: CrawlConfig, out: Path, report: Callable[[str, float, float | None], None]) -> dict[str, Any]:
    """Crawl into the folder `out` until nothing waits or the time is over; return what was counted.

    Runs Scrapy's event loop, so it can be called once a process. Raises ValueError for seeds that are no addresses, and
    ImportError where Scrapy is missing.
    """
    if importlib.util.find_spec("scrapy") is None:
        raise ImportError("the crawler needs Scrapy: pip install 'openafm[crawl]'")
    if not config.contact.isprintable():
        raise ValueError("the contact goes into a header: leave line breaks out")
    from openafm.data.crawl_spider import run

    seeds = list(dict.fromkeys(seeds_of(config.seeds)))
    if not seeds:
        raise ValueError(f"no seed in {', '.join(config.seeds)}: give addresses, or a file of them, one a line")
    if out.exists() and not (out / CRAWL).is_file() and any(out.iterdir()):
        raise ValueError(f"{out} holds something else than a crawl; give a new folder")
    (out / "warc").mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"config": config.model_dump(mode="json"), "user_agent": config.user_agent}
    (out / CRAWL).write_text(json.dumps(summary, indent=1) + "\n")
    summary["counts"] = run(config, seeds, hosts_of(config, seeds), out, report)
    (out / CRAWL).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def seeds_of(given: Sequence[str]) -> Iterator[str]:
    """Addresses on the command line, and in files of one a line (`#` begins a comment).

    Raises ValueError naming the file and line that is no address.
    """
    for item in given:
        file = Path(item) if Path(item).is_file() else None
        lines = [line.split(" #", 1)[0] for line in file.read_text().splitlines()] if file else [item]
        for number, line in enumerate(lines, 1):
            url = line.strip()
            if url and not url.startswith("#"):
                if not is_address(url):
                    where = f"{file}:{number}: {url!r}" if file else repr(item)
                    raise ValueError(f"{where} is no address that begins with http:// or https://, nor a file of such")
                yield url


def hosts_of(config: CrawlConfig, seeds: Sequence[str]) -> list[str]:
    """Hosts that may be asked, without www."""
    return sorted({*(host_of(seed) for seed in seeds), *(host.removeprefix("www.") for host in config.hosts)})
