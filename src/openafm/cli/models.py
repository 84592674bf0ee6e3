"""Models: in from elsewhere and out again, compressed, adapted, talked to, measured, judged by people."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from openafm.cli.common import RUNS, AsJson, Run, RunsDir, app, plain_errors, run_folder, terminal


@app.command("import")
def import_(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a .gguf file, or a Hub name (owner/name).")],
    out: Annotated[Path | None, typer.Option(help="Folder to write [default: models/NAME].")] = None,
) -> None:
    """Turn any open dense model (Llama or Qwen3 class) into a model folder of this project.

    An adapter that PEFT saved becomes one for `openafm serve --adapters`: --out adapters/NAME.

    Example: openafm import HuggingFaceTB/SmolLM2-135M-Instruct --out models/smollm2
    """
    with plain_errors():
        from openafm.recipe.fitting import import_to

        folder, what = import_to(model, out)
        typer.echo(f"{folder}: {what}")


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a Hub name (owner/name).")],
    runs_dir: RunsDir = RUNS,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override of the recipe fit.")] = [],  # noqa: B006
    until: Annotated[str, typer.Option(metavar="STEP", help="Stop after this step.")] = "recovery",
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="4 bits, tensor by tensor; no text, no adapter: models of any size.")
    ] = False,
) -> None:
    """Compress a model to a package and train its recovery adapter (the recipe fit, under the model's name).

    Example: openafm compress models/smollm2 --set compress.target_bits=3.5
    """
    with plain_errors():
        from openafm.recipe.fitting import compress as fit
        from openafm.recipe.fitting import compress_uncalibrated

        if uncalibrated:
            if set_ or until != "recovery":
                raise ValueError("--uncalibrated runs no recipe: leave out --set and --until")
            folder, what = compress_uncalibrated(model, runs_dir, terminal())
            typer.echo(f"{what}\nopenafm chat {folder}")
            return

        typer.echo(f"openafm chat {fit(model, runs_dir, set_, until, terminal())}")


@app.command()
def adapt(
    base: Annotated[str, typer.Argument(help="What `compress` was given, or a run that holds a recovery adapter.")],
    task: Annotated[
        str, typer.Option(help="summaries, replies, tone, proofreading, tags, or a name for a task of your own.")
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON Lines, an example a line (docs/adapters.md), or an mbox.")
    ] = None,
    name: Annotated[str, typer.Option(help="The adapter's name [default: TASK].")] = "",
    rank: Annotated[int | None, typer.Option(help="8, 16 or 32 [default: the recovery adapter's].")] = None,
    made: Annotated[int, typer.Option(min=0, help="Examples made by rule beside FILE's: summaries and tags.")] = 0,
    writer: Annotated[
        str,
        typer.Option(
            metavar="URL_OR_FOLDER", help="Model that answers lines without an answer: http://…/v1, a folder."
        ),
    ] = "",
    writer_model: Annotated[str, typer.Option(help="Of a server: which of its models.")] = "",
    runs_dir: RunsDir = RUNS,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override of the run's recipe.")] = [],  # noqa: B006
) -> None:
    """Train a task's adapter on a compressed model, starting from the recovery adapter.

    Example: openafm adapt models/smollm2 --task summaries --data mails.jsonl
    """
    with plain_errors():
        from openafm.recipe import fitting

        wanted = fitting.Wanted(task, data, name, rank, made, writer, writer_model)
        folder = fitting.adapt(base, wanted, runs_dir, set_, terminal())
        typer.echo(f"openafm chat {folder} --adapter {name or task}")


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="A run's folder or name, a model folder, or an .afm package.")],
    adapter: Annotated[str | None, typer.Option(help="Name of one of the package's adapters.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
) -> None:
    """Talk to a run's best model, or to any model folder or package.

    Example: openafm chat nano --adapter summary
    """
    with plain_errors():
        from openafm.recipe.artifacts import verify
        from openafm.serving.chat import chat as talk
        from openafm.serving.opening import latest_model

        folder = latest_model(model if model.exists() else run_folder(model))
        verify(folder)
        talk(folder, adapter, max_tokens=max_tokens, temperature=temperature)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A run's folder or name, a model folder, or an .afm package.")],
    out: Annotated[Path, typer.Option(help="Folder to write; of gguf the file NAME.gguf.")],
    to: Annotated[str, typer.Option(help="hf (Hugging Face), peft (one adapter), gguf (llama.cpp) or coreml.")] = "hf",
    adapter: Annotated[str | None, typer.Option(help="hf, gguf: merged; peft: which; coreml: as inputs.")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", help="hf: bf16 (default), f16, f32; gguf: f16 (default), bf16, f32, q8_0, q4_0."),
    ] = None,
    length: Annotated[int | None, typer.Option(help="coreml: tokens that the program reads at once; 256.")] = None,
) -> None:
    """Write a model or an adapter for transformers, vLLM, PEFT, llama.cpp or Core ML.

    Example: openafm export device --to gguf --type q8_0 --adapter recovery --out device.gguf
    """
    with plain_errors():
        from openafm.serving.exporting import export

        typer.echo(export(model if model.exists() else run_folder(model), out, to, adapter, kind, length))


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="A run's folder or name, a model folder, or an .afm package.")],
    host: Annotated[str, typer.Option(help="Address; one that others reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAFM_API_KEY", help="Key that clients must send; better by the variable.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for their turn.")] = 8,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time of a request, its wait included.")] = 300,
    adapters: Annotated[Path | None, typer.Option(help="Folder of further adapters, NAME/adapter.safetensors.")] = None,
    in_memory: Annotated[int, typer.Option(min=1, help="How many of them are kept in memory.")] = 64,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may ask too, https://app.example; repeatable.")
    ] = None,
    log_format: Annotated[
        Literal["none", "json"], typer.Option(help="json: a line for each request on standard output.")
    ] = "none",
) -> None:
    """Serve a model and its adapters to OpenAI clients, with a web page to talk to them.

    Example: openafm serve nano --port 8000
    """
    with plain_errors():
        from openafm.serving.server import serve as listen
        from openafm.serving.service import Limits

        limits = Limits(queue, seconds, in_memory)
        folder = model if model.exists() else run_folder(model)
        listen(folder, host, port, api_key, limits, adapters, cors=cors or (), log_json=log_format == "json")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Runs, steps, model folders or .afm packages; or PATH:ADAPTER.")],
    suite: Annotated[
        Literal["nano", "full"], typer.Option(help="nano: minutes for a small model; full: hours.")
    ] = "nano",
    against: Annotated[list[str], typer.Option(help="Further models, as if named after the first.")] = [],  # noqa: B006
    only: Annotated[list[str], typer.Option(metavar="TASK", help="Only tasks of this name or pattern.")] = [],  # noqa: B006
    lm_eval: Annotated[
        list[str], typer.Option(metavar="TASK", help="Tasks of the lm-evaluation-harness, or their YAML files.")
    ] = [],  # noqa: B006
    data: Annotated[
        list[Path], typer.Option(help='JSONL of your own: {"question", "answer"}, with or without "choices".')
    ] = [],  # noqa: B006
    judge: Annotated[str, typer.Option(help="For win rates: a model as above, or URL#MODEL of a server.")] = "",
    engine: Annotated[
        Literal["torch", "native"], typer.Option(help="What writes answers; torch scores texts.")
    ] = "torch",
    plain: Annotated[bool, typer.Option("--plain", help="Ask without the chat template, as a base model is.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write the table and every answer to.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="File to write the table to, as Markdown.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of data and results [default: ~/.cache/openafm].")] = None,
    json_: AsJson = False,
) -> None:
    """Measure models on a suite: one table, n and a 95% interval on every line; two or more are compared pairwise.

    What was measured is kept by the model's digest; a killed evaluation goes on with the task it was in.

    Example: openafm evaluate runs/device/import runs/device/recovery --suite nano
    """
    with plain_errors():
        from rich.console import Console

        from openafm.evaluation.suite import sheet
        from openafm.recipe import evaluating

        wish = evaluating.Wish(
            [*models, *against], suite, only, lm_eval, data, judge, plain, engine, cache,
        )  # fmt: skip
        result = evaluating.evaluate(wish, Console(stderr=True) if json_ else terminal())
        if out:
            evaluating.write(result, out)
        if markdown:
            markdown.write_text(sheet.markdown(result.rows, result.sheets), encoding="utf-8")
        if json_:
            typer.echo(json.dumps(result.json()))
            return
        terminal().print(sheet.render(result.rows, result.sheets))
        typer.echo("\n".join(sheet.reasons(result.sheets)))


@app.command()
def label(
    run: Run,
    labeller: Annotated[str, typer.Option(help="Who labels; each has a file and an order of the answers.")] = "me",
    step: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="Rollouts or preferences to take pairs of [default: all rollouts]."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice, the order and the sides of the pairs.")] = 0,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8001,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all labels as JSONL for the step `labels`, and stop.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Let people say on a page which of two answers is better, and grade both; or export what they said.

    Example: openafm label nano --labeller ada; then openafm label nano --export labels.jsonl
    """
    with plain_errors():
        from openafm import jsonl
        from openafm.posttraining import labelling

        folder = run_folder(run)
        if export:
            rows = labelling.labelled(folder)
            jsonl.write(export, rows)
            found = labelling.agreement(rows)
            typer.echo(json.dumps(found, indent=1) if json_ else "\n".join(labelling.told(found, export)))
            return
        from openafm.serving.labelling import serve as show

        show(folder, labelling.pairs_of_run(folder, step, seed), labeller, seed, port)
