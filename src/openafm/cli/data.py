"""The verbs of data: download, crawl, and what became of a run's documents."""

import json
from pathlib import Path
from typing import Annotated

import typer

from openafm.cli.common import AsJson, Run, app, plain_errors, run_folder, terminal


@app.command()
def why(
    url: Annotated[str, typer.Argument(help="The document's address.")],
    run: Annotated[Path, typer.Option(help="The run's folder or name.")] = Path("nano"),
) -> None:
    """Tell what became of a document, and at which filter.

    Example: openafm why https://sqlite.docs.example/lang_select.html --run nano
    """
    with plain_errors():
        from openafm.data.documents import why
        from openafm.recipe.artifacts import verify

        folder = run_folder(run)
        for table in sorted(folder.glob("[!.]*/documents")):
            verify(table.parent)
        typer.echo(why(url, folder))


data = typer.Typer(help="A run's documents and examples for reading, and the dataset card.", no_args_is_help=True)
app.add_typer(data, name="data", rich_help_panel=None)


@data.command()
def audit(
    run: Run,
    stage: Annotated[str, typer.Option(help="Only this filter's: extract, clean, dedup, quality, decontaminate.")] = "",
    reason: Annotated[str, typer.Option(help="Only reasons that begin so, as pii or duplicate.near.")] = "",
    n: Annotated[int, typer.Option("--n", min=1, help="How many to show, an even share of each reason.")] = 20,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    json_: AsJson = False,
) -> None:
    """Show rejected documents with the filter's reason and evidence, personal data masked.

    Example: openafm data audit nano --stage clean --reason language --n 5
    """
    with plain_errors():
        from dataclasses import asdict

        from openafm.data.audit import rejects

        found = rejects(run_folder(run), stage, reason, n, seed)
        typer.echo(
            json.dumps([asdict(reject) for reject in found], indent=1) if json_ else "\n\n".join(map(str, found))
        )


@data.command()
def samples(
    run: Run,
    count: Annotated[int, typer.Option(min=1, help="How many, an even share of each task and each reason.")] = 200,
    only: Annotated[str, typer.Option(help="kept or rejected [default: both].")] = "",
    step: Annotated[str, typer.Option(help="Only this step's: math_data, tool_data, code_data, ...")] = "",
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    json_: AsJson = False,
) -> None:
    """Print synthetic examples for reading: kept ones and rejected ones, with lineage and reason.

    Example: openafm data samples nano --count 200 --only rejected
    """
    with plain_errors():
        from dataclasses import asdict

        from openafm.synthesis.samples import samples

        found = samples(run_folder(run), count, only, step, seed)
        if json_:
            typer.echo(json.dumps([asdict(sample) for sample in found], indent=1))
            return
        typer.echo("\n\n".join(f"[{number}] {sample}" for number, sample in enumerate(found, 1)))


@data.command()
def card(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="File to write [default: data-card.md in the run's folder].")] = None,
) -> None:
    """Write the dataset card: sources, licences, counts, filters, personal data, decontamination, mixtures, limits.

    Example: openafm data card nano
    """
    with plain_errors():
        from openafm.reporting.datacard import data_card

        folder = run_folder(run)
        path = out or folder / "data-card.md"
        path.write_text(data_card(folder), encoding="utf-8")
        typer.echo(str(path))


@app.command()
def fetch(
    catalogue: Annotated[str, typer.Argument(help="A catalogue's name (nano, micro) or a YAML file.")],
    cache: Annotated[Path | None, typer.Option(help="Folder of downloads [default: ~/.cache/openafm].")] = None,
) -> None:
    """Download what a recipe's `fetch` step reads; what is there with the right digest is not fetched again.

    Example: openafm fetch nano
    """
    with plain_errors():
        from openafm.data.fetch import fetch_catalogue
        from openafm.recipe.progress import Display

        console = terminal()
        with Display(console, {"fetch": 0.0}) as display:
            display.begin("fetch")
            fetched = fetch_catalogue(catalogue, cache, display.report)
        console.print(f"{len(fetched.archives)} packages are in the cache", highlight=False)
        for package, reason in (fetched.missing | fetched.tiers_missing).items():
            console.print(f"without {package}: {reason}", highlight=False, markup=False)


@app.command()
def extract(
    files: Annotated[list[Path], typer.Argument(help="HTML files, or archives of a crawl (.warc, .wet, also packed).")],
    json_: AsJson = False,
) -> None:
    """Print the body text of pages, as the `extract` step takes it; with --json a line a page.

    Example: openafm extract page.html --json
    """
    with plain_errors():
        from openafm.data.ingest import pages_of

        for file in files:
            for name, page in pages_of(file):
                fields = {"page": name, "title": page.title, "date": page.date, "language": page.language}
                typer.echo(json.dumps(fields | {"text": page.text}) if json_ else page.full_text + "\n")


@app.command()
def crawl(
    seeds: Annotated[list[str], typer.Argument(help="Addresses, or files of addresses, one a line.")],
    out: Annotated[Path, typer.Option(help="Folder to write; run again, a crawl in it goes on.")],
    contact: Annotated[str, typer.Option(help="Where a site's owner reaches you; in the User-Agent.")] = "",
    host: Annotated[list[str], typer.Option(help='More hosts than the seeds\'; "*.example.org" for all below.')] = [],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="A limit: depth, seconds, ...")] = [],  # noqa: B006
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Ask addresses of private networks too.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Crawl politely into WARC files: robots.txt, crawl delays and opt-outs obeyed, every page not taken recorded.

    Example: openafm crawl https://example.org/ --out crawl --contact me@example.org --set depth=3 --set seconds=600
    """
    with plain_errors():
        from openafm.data.crawl import CrawlConfig
        from openafm.data.crawl import crawl as run_crawl
        from openafm.recipe.progress import Display

        limits = dict(item.partition("=")[::2] for item in set_)
        config = CrawlConfig.model_validate(
            {"seeds": seeds, "hosts": host, "contact": contact, "allow_private": allow_private, "limits": limits}
        )
        with Display(terminal(), {"crawl": 0.0}) as display:
            display.begin("crawl")
            summary = run_crawl(config, out, display.report)
        if json_:
            typer.echo(json.dumps(summary))
            return
        for reason, count in summary["counts"].items():
            typer.echo(f"{count:>9,}  {reason}")
        typer.echo(f"why each: {out / 'pages.jsonl'}; next: openafm run nano --set fetch.texts={out}")
