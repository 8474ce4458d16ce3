"""The command line: parse, call, print. Heavy imports stay inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import ShortVError
from .evaluation import tables

app = typer.Typer(
    name="shortv-export",
    help="Make a vision-language model faster and publish it: measure which layers the visual tokens need, freeze "
    "the others, and put weights, list and code on the Hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Base = Annotated[str, typer.Argument(metavar="BASE", help="Base model: a Hub id or a folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the base.")]
Data = Annotated[
    str,
    typer.Option(
        help="Calibration data: 'paper', a Hub data set, or a folder with images or videos and metadata.jsonl."
    ),
]
HeldOutData = Annotated[
    str | None,
    typer.Option(help="Data as in `score`, here also for --max-kl. Default: that of the scores, or else 'paper'."),
]
NumSamples = Annotated[int, typer.Option(min=1, help="Samples to measure on.")]
Seed = Annotated[int, typer.Option(help="Of every draw: samples, held-out samples, --method random.")]
Dtype = Annotated[str, typer.Option(help="Precision of the measurement: auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[str | None, typer.Option(help="Placement by accelerate, such as 'auto' or 'cuda'.")]
MaxMemory = Annotated[
    str | None, typer.Option(help="What --device-map (then 'auto') or --stream may use, such as 0=10GiB,cpu=20GiB.")
]
UntilStable = Annotated[
    bool, typer.Option("--until-stable", help="Score more samples in rounds until the selected layers stop changing.")
]
MaxSamples = Annotated[int, typer.Option(min=1, help="With --until-stable: stop there in any case.")]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Read decoder layers from disk one at a time: for bases larger than memory."),
]
ScoresFile = Annotated[Path | None, typer.Option("--scores", help="Scores from `shortv-export score`.")]
Preset = Annotated[str | None, typer.Option(help="'paper': the paper's own list for this base; needs no scoring.")]
FrozenLayers = Annotated[str | None, typer.Option(help="Freeze exactly these layers, such as 31,29,30.")]
NumFrozen = Annotated[int | None, typer.Option(help="Freeze this many layers. Default: 60 % of them.")]
FlopsRatio = Annotated[
    float | None,
    typer.Option(help="Freeze as few layers as bring the prefill FLOPs down to this share of the base's."),
]
MaxKl = Annotated[
    float | None,
    typer.Option(help="Freeze as many layers as keep KL(base || frozen), measured on held-out samples, at most this."),
]
Method = Annotated[str, typer.Option(help="'lc', or for comparison 'cosine' (of the hidden states) or 'random'.")]
License = Annotated[str | None, typer.Option(help="Licence of the result, if the base's card names none.")]
Weights = Annotated[
    str,
    typer.Option(help="'copy', or 'reference': publish no weights; the base's are loaded from its Hub repository."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def score(
    base: Base,
    revision: Revision = None,
    data: Data = "paper",
    num_samples: NumSamples = 40,
    seed: Seed = 0,
    until_stable: UntilStable = False,
    max_samples: MaxSamples = 160,
    num_frozen: Annotated[
        int | None, typer.Option(help="How many layers are to be selected. Default: 60 % of them.")
    ] = None,
    divergence: Annotated[
        str, typer.Option(help="'forward': KL(original || ablated), as the paper defines it; or 'reverse'.")
    ] = "forward",
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens per call of a layer; less takes less memory. Default: 2560.")
    ] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    stream: Stream = False,
    output: Annotated[Path, typer.Option(help="Where the scores go.")] = Path("scores.json"),
    as_json: AsJson = False,
) -> None:
    """Measure each decoder layer's Layer Contribution."""
    from . import pipeline
    from .measure import parse_max_memory
    from .selection import boundary, default_count, describe

    with _quiet_bars(as_json), _progress("Scoring samples", quiet=as_json) as progress:
        scores = pipeline.score(
            base,
            output,
            revision=revision,
            calibration=pipeline.CalibrationChoice(data, num_samples, seed, until_stable, max_samples),
            num_frozen=num_frozen,
            divergence=divergence,
            max_batch_tokens=max_batch_tokens,
            dtype=dtype,
            device_map=device_map,
            max_memory=parse_max_memory(max_memory),
            stream=stream,
            progress=progress,
            report=_silent if as_json else _print,
        )
    count = num_frozen or default_count(len(scores.visual))
    if as_json:
        found = boundary(scores, count)
        return _print_json({**asdict(scores), "boundary": asdict(found) if found else None})
    ranking = sorted(range(len(scores.visual)), key=scores.visual.__getitem__)
    _print(f"Layer Contribution over {scores.num_samples} samples, written to {output}")
    _print(f"least needed layers first: {', '.join(map(str, ranking))}")
    _print(f"of {count} frozen layers, {describe(scores, count)}")


@app.command()
def package(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Base model: a Hub id or a folder. A recipe may do without.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="Folder of the package; must not exist or be empty.", show_default=False),
    ] = None,
    revision: Revision = None,
    scores: ScoresFile = None,
    preset: Preset = None,
    frozen_layers: FrozenLayers = None,
    num_frozen: NumFrozen = None,
    flops_ratio: FlopsRatio = None,
    max_kl: MaxKl = None,
    method: Method = "lc",
    data: HeldOutData = None,
    num_samples: NumSamples = 40,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    license: License = None,
    weights: Weights = "copy",
    recipe: Annotated[
        Path | None, typer.Option(help="Build the package of this shortv.json again, byte for byte: [BASE] OUT.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the folder that gets published: weights, frozen-layer list, code and card."""
    from . import pipeline
    from .measure import parse_max_memory

    choice = pipeline.Choice(scores, preset, frozen_layers, num_frozen, flops_ratio, max_kl, method, seed)
    calibration = pipeline.CalibrationChoice(data, num_samples, seed)
    if recipe is not None:
        others = (choice, calibration, revision, license, weights, dtype, device_map, max_memory)
        if others != (pipeline.Choice(), pipeline.CalibrationChoice(), None, None, "copy", "auto", None, None):
            raise typer.BadParameter("it decides everything; leave the other options out.", param_hint="'--recipe'")
        given, out = (None, Path(base)) if out is None else (base, out)
        with _quiet_bars(as_json):
            made = pipeline.rebuild(recipe, out, base=given)
    elif out is None:
        raise typer.BadParameter("missing; name the folder of the package.", param_hint="'OUT'")
    else:
        with _quiet_bars(as_json):
            made = pipeline.package(
                base,
                out,
                choice,
                revision=revision,
                license=license,
                weights=weights,
                calibration=calibration,
                dtype=dtype,
                device_map=device_map,
                max_memory=parse_max_memory(max_memory),
                report=_silent if as_json else _print,
            )
    if as_json:
        return _print_json({"package": str(out), **made.to_dict()})
    frozen = ", ".join(map(str, made.frozen_layers))
    _print(f"{out}: {len(made.frozen_layers)} of {made.num_layers} layers frozen ({frozen})")
    if line := pipeline.boundary_line(made):
        _print(line)
    _print(f"FLOPs ratio {made.cost['flops_ratio']:.3f}; next: shortv-export verify {out}")


@app.command()
def verify(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="A package folder or a published repository.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load a package in a fresh process and compare it with its definition."""
    from . import pipeline

    with _quiet_bars(as_json):
        result = pipeline.verify(package, revision=revision, report=_silent if as_json else _print)
    if as_json:
        _print_json({"passed": result.passed, "checks": [asdict(check) for check in result.checks]})
    else:
        states = {True: "passed", False: "FAILED", None: "not made"}
        _print_table(
            f"Verification of {package}",
            [(states[check.passed], check.name, check.detail) for check in result.checks],
        )
    result.raise_if_failed()


@app.command()
def evaluate(
    package: Annotated[
        str, typer.Argument(metavar="PACKAGE", help="A package folder or a published repository; it freezes layers.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data as in `score`. Default: that of the package's scores, or else 'paper'.")
    ] = None,
    num_samples: NumSamples = 64,
    seed: Annotated[int, typer.Option(help="Of the draw of held-out samples.")] = 0,
    group_by: Annotated[
        str | None, typer.Option(help="A column of the data, such as 'task': accuracy for each of its values too.")
    ] = None,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Refuse data without answers.")] = False,
    task: Annotated[
        str | None, typer.Option(help="The data is a benchmark on the Hub: its task, for .eval_results/.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 32,
    sweep: Annotated[
        str | None, typer.Option(help="Also measure these numbers of frozen layers, such as 0,4,8, on one load.")
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Also measure FastV, VTW, ShortV with FastV, and random and cosine selection."
        ),
    ] = False,
    at: Annotated[
        str | None, typer.Option(help="Also time these text + visual tokens, such as 64+576,64+2880.")
    ] = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Leave out time, memory and FLOPs.")] = False,
    force_overlap: Annotated[
        bool, typer.Option("--force-overlap", help="Draw also from the samples that the layers were chosen by.")
    ] = False,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Put the result into the package, a folder, and on its card.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Where the result goes.")] = Path("evaluation.json"),
    as_json: AsJson = False,
) -> None:
    """Measure how close a package stays to its base, how often both are right, and how much faster it is."""
    from . import pipeline
    from .measure import parse_max_memory

    if no_speed and at is not None:
        raise typer.BadParameter("there is nothing to time with --no-speed.", param_hint="'--at'")
    counts = None if sweep is None else [_numbers(item, 1, "--sweep", "0,4,8")[0] for item in sweep.split(",")]
    lengths = [_numbers(item, 2, "--at", "64+576,64+2880") for item in at.split(",")] if at is not None else []
    if any(min(length) < 1 for length in lengths):
        raise typer.BadParameter("a prompt has text and visual tokens; give at least 1 of each.", param_hint="'--at'")
    with _quiet_bars(as_json), _progress("Evaluating samples", quiet=as_json) as progress:
        result = pipeline.evaluate(
            package,
            output,
            revision=revision,
            data=data,
            num_samples=num_samples,
            seed=seed,
            group_by=group_by,
            accuracy=accuracy,
            task=task,
            max_new_tokens=max_new_tokens,
            sweep=counts,
            baselines=baselines,
            speed=not no_speed,
            at=[(text, visual) for text, visual in lengths],
            force_overlap=force_overlap,
            dtype=dtype,
            device_map=device_map,
            max_memory=parse_max_memory(max_memory),
            update_card=update_card,
            progress=progress,
            report=_silent if as_json else _print,
        )
    if as_json:
        return _print_json(result.to_dict())
    _print(f"{package} against its base: {result.data['num_samples']} samples, {result.dtype}, {result.device}")
    for title, lines in tables(result):
        _print_table(f"\n{title}", lines)
    for note in result.notes:
        _print(note)
    _print(f"intervals are 95 %, KL in nats; written to {output}")
    if update_card:
        _print(f"{package}/README.md shows it; next: shortv-export push {package} REPO_ID")


@app.command()
def push(
    source: Annotated[
        str, typer.Argument(metavar="PACKAGE|BASE", help="A finished package, or a base to convert first.")
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="Where to publish: user/name or organisation/name.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    branch: Annotated[str | None, typer.Option(help="Branch to publish to. Default: main.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Publish into a repository that this tool did not make.")
    ] = False,
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    tag: Annotated[str | None, typer.Option(help="A second tag, such as v1, beside the recipe's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    evaluate_on: Annotated[
        int | None,
        typer.Option(
            "--evaluate", min=1, metavar="N", help="From a BASE: evaluate on N held-out samples, for the card."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="From a BASE: folder of the package. Default: ./NAME.")] = None,
    revision: Revision = None,
    data: HeldOutData = None,
    num_samples: NumSamples = 40,
    seed: Seed = 0,
    until_stable: UntilStable = False,
    max_samples: MaxSamples = 160,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    stream: Stream = False,
    scores: ScoresFile = None,
    preset: Preset = None,
    frozen_layers: FrozenLayers = None,
    num_frozen: NumFrozen = None,
    flops_ratio: FlopsRatio = None,
    max_kl: MaxKl = None,
    method: Method = "lc",
    license: License = None,
    weights: Weights = "copy",
    as_json: AsJson = False,
) -> None:
    """Publish a package on the Hub in one commit; from a base model, run every step before."""
    from . import pipeline
    from .measure import parse_max_memory
    from .publish import Push

    with _quiet_bars(as_json), _progress("Scoring samples", quiet=as_json) as progress:
        result = pipeline.push(
            source,
            repo_id,
            private=private,
            create_pr=create_pr,
            revision=branch,
            overwrite=overwrite,
            commit_message=commit_message,
            tag=tag,
            dry_run=dry_run,
            evaluate_on=evaluate_on,
            out=out,
            base_revision=revision,
            choice=pipeline.Choice(scores, preset, frozen_layers, num_frozen, flops_ratio, max_kl, method, seed),
            calibration=pipeline.CalibrationChoice(data, num_samples, seed, until_stable, max_samples),
            dtype=dtype,
            device_map=device_map,
            max_memory=parse_max_memory(max_memory),
            stream=stream,
            license=license,
            weights=weights,
            progress=progress,
            report=_silent if as_json else _print,
        )
    if as_json:
        _print_json(asdict(result))
    elif isinstance(result, Push) and not dry_run and not create_pr:
        _print(f"\nload it with\n\n{result.snippet}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("shortv-demo"),
    show: Annotated[bool, typer.Option("--open/--no-open", help="At a terminal, open the card in the end.")] = True,
) -> None:
    """The whole way on a small trained model, with a Hub on this machine; no account, no download."""
    from .demo.run import run_demo

    card = run_demo(output, report=_print, table=_print_table)
    if show and sys.stdout.isatty():
        typer.launch(str(card))


def main() -> None:
    """Runs the command line: status 0 done, 1 failed with a one-line reason, 2 wrong usage."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except ShortVError as error:
        if debug:
            raise
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("interrupted", err=True)
        sys.exit(130)


@contextmanager
def _progress(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rate and time left; yields `(done, total) -> None`. It appears with the first call."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    bar = Progress(*columns, console=Console(stderr=True), disable=quiet)

    def update(done: int, total: int) -> None:
        if not bar.task_ids:
            bar.start()
            bar.add_task(title)
        bar.update(bar.task_ids[0], completed=done, total=total)
        if done == total:
            bar.stop()  # other bars come after it, or this one's next round
            bar.remove_task(bar.task_ids[0])

    try:
        yield update
    finally:
        if bar.task_ids:
            bar.stop()


@contextmanager
def _quiet_bars(quiet: bool) -> Iterator[None]:
    """Whether hashing, downloads and uploads show their bars, in bytes, which are huggingface_hub's."""
    from huggingface_hub.utils import disable_progress_bars

    with disable_progress_bars() if quiet else nullcontext():
        yield


def _numbers(text: str, count: int, option: str, example: str) -> list[int]:
    """So many whole numbers, joined by plus signs."""
    parts = [part.strip() for part in text.split("+")]
    if len(parts) != count or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise typer.BadParameter(f"{text!r} is not understood; write it as in {example}.", param_hint=f"'{option}'")
    return [int(part) for part in parts]


def _silent(text: str) -> None:
    pass


def _print(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def _print_table(title: str, rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))
