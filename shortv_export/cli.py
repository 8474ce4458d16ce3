"""The command line: parse, call, print. The options are those of the functions that it calls (see `options`)."""

from __future__ import annotations

import atexit
import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, pipeline, terminal
from .demo import run_demo
from .options import Option, options_of, with_flags

app = typer.Typer(
    name="shortv-export",
    help="Make a vision-language model faster and publish it: measure which layers the visual tokens need, freeze "
    "the others, and put weights, list and code on the Hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# When Python ends, it looks through all objects for garbage: with torch and transformers imported, for 1 to 2 seconds.
atexit.register(gc.freeze)

_VERBS = (pipeline.score, pipeline.package, pipeline.verify, pipeline.evaluate, pipeline.push, run_demo)
_NAMES = {option.name for verb in _VERBS for option in options_of(verb) if not option.positional}
"""The names of all options, which help texts and messages of the library mention."""


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        _print(__version__)
        raise typer.Exit


def _command(
    verb: Callable[..., Any], *without: str, json: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function: parses its options, calls it, and lets the decorated function print the result.

    Args:
        verb: the function.
        without: names of options that the command does not have.
        json: whether it can print JSON.

    The decorated function gets the result, whether JSON was asked for, and the arguments of the call by name.
    """
    options = [option for option in options_of(verb) if option.name not in without]

    def decorate(show: Callable[..., None]) -> Callable[..., None]:
        def run(as_json: bool = False, **typed: Any) -> None:
            arguments = _arguments(verb, options, typed)
            with _quiet() if as_json else nullcontext():
                result = verb(**arguments)
            show(result, as_json, **arguments)

        as_json = _parameter("as_json", bool, False, typer.Option("--json", help="Print one JSON object, no text."))
        parameters = [*map(_parsed, options), *([as_json] if json else [])]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name=verb.__name__.removeprefix("run_"), help=inspect.getdoc(verb).splitlines()[0])(run)  # type: ignore[union-attr]
        return show

    return decorate


def _parsed(option: Option) -> inspect.Parameter:
    """An option as typer takes it; one with a parser of its own as text."""
    shown: dict[str, Any] = {"help": with_flags(option.help.text, _NAMES), "metavar": option.help.metavar}
    if option.positional:
        return _parameter(option.name, option.type, option.default, typer.Argument(show_default=False, **shown))
    shown |= {"min": option.help.least, "rich_help_panel": option.group}
    if option.help.parse is not None:
        return _parameter(option.name, str | None, None, typer.Option(option.flag, **shown))
    flags = [option.flag] if option.default is False or option.type is not bool else []
    return _parameter(option.name, option.type, option.default, typer.Option(*flags, **shown))


def _parameter(name: str, kind: Any, default: Any, shown: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


def _arguments(verb: Callable[..., Any], options: list[Option], typed: dict[str, Any]) -> dict[str, Any]:
    """What was typed as the arguments of a call: options go back into their dataclasses."""
    arguments = {name: each.default for name, each in inspect.signature(verb).parameters.items()}
    for option in options:
        name, *inner = option.path
        arguments[name] = _with(arguments[name], inner, _value(option, typed[option.name]))
    return arguments


def _value(option: Option, typed: Any) -> Any:
    if option.help.parse is None:
        return typed
    try:
        return option.default if typed is None else option.help.parse(typed)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{option.flag}'") from None


def _with(values: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    return replace(values, **{path[0]: _with(getattr(values, path[0]), path[1:], value)})


LONG_ANSWER = 8
"""Tokens. Answers of a few tokens say little about captions and descriptions."""


@_command(pipeline.score, "flops_ratio", "max_kl")
def _show_score(scores: Any, as_json: bool, output: Path, budget: Any, **_: Any) -> None:
    from .selection import boundary, default_count, describe, ranking

    count = budget.num_frozen or default_count(len(scores.visual))
    if as_json:
        found = boundary(scores, count)
        return terminal.say_json({**asdict(scores), "boundary": asdict(found) if found else None})
    _print(f"Layer Contribution over {scores.num_samples} samples, written to {output}")
    _print(f"least needed layers first: {', '.join(map(str, ranking(scores.visual)))}")
    _print(f"with {count} frozen layers, {describe(scores, count)}")
    if scores.positions == "answer":
        lengths = [answer for *_, answer in scores.tokens]
        long = sum(length > LONG_ANSWER for length in lengths) / len(lengths)
        _print(f"answers of the base: {min(lengths)} to {max(lengths)} tokens, {long:.0%} longer than {LONG_ANSWER}")


@_command(pipeline.package)
def _show_package(package: Any, as_json: bool, base: str, out: Path | None, **_: Any) -> None:
    recipe, folder = package.recipe, out or base  # with a recipe, the folder may be the only argument
    if as_json:
        return terminal.say_json({"package": str(folder), **recipe.to_dict()})
    frozen = "; ".join(", ".join(map(str, layers)) for layers in recipe.frozen.lists.values() if layers)
    _print(f"{folder}: {recipe.frozen.describe(recipe.num_layers)} ({frozen})")
    _print(f"FLOPs ratio {recipe.cost['flops_ratio']:.3f}; next: shortv-export verify {folder}")


@_command(pipeline.verify)
def _show_verify(result: Any, as_json: bool, package: str, **_: Any) -> None:
    if as_json:
        terminal.say_json({"verdict": result.verdict, "checks": [asdict(check) for check in result.checks]})
    else:
        states = {True: "passed", False: "FAILED", None: "not made"}
        rows = [(states[check.passed], check.name, check.detail) for check in result.checks]
        _print_table(f"Verification of {package}", rows)
        _print(f"{package}: {result.summary}")
    result.raise_if_failed()
    if result.not_made:
        raise typer.Exit(3)


@_command(pipeline.evaluate)
def _show_evaluate(evaluation: Any, as_json: bool, package: str, output: Path, update_card: bool, **_: Any) -> None:
    from .evaluation import tables

    if as_json:
        return terminal.say_json(evaluation.to_dict())
    number, where = evaluation.data["num_samples"], f"{evaluation.dtype}, {evaluation.device}"
    _print(f"{package} against its base: {number} samples, {where}")
    for title, lines in tables(evaluation):
        _print("")
        _print_table(title, lines)
    for note in evaluation.notes:
        _print(note)
    _print(f"intervals are 95 %, KL in nats; written to {output}")
    if update_card:
        _print(f"{package}/README.md shows it; next: shortv-export push {package} REPO_ID")


@_command(pipeline.push, "recipe")
def _show_push(result: Any, as_json: bool, target: Any, **_: Any) -> None:
    if as_json:
        terminal.say_json(asdict(result))
    elif not target.dry_run and not target.create_pr:
        _print("", "load it with", "", *result.snippet.splitlines())


@_command(run_demo, json=False)
def _show_demo(demo: Any, as_json: bool, open: bool, **_: Any) -> None:
    for title, lines in demo.tables:
        _print("")
        _print_table(title, lines)
    _print("", f"Look at {demo.card}, the card, and {demo.card.with_name('layer_contribution.png')}.")
    _print("Next: shortv-export push llava-hf/llava-1.5-7b-hf USER/NAME --preset paper")
    if open and sys.stdout.isatty():
        typer.launch(str(demo.card))


def main() -> None:
    """Runs the command line. Its exit status is that of `terminal.run`."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # this tool says itself what it waits for
    logger = logging.getLogger(__package__)
    handler = terminal.LogPrinter(_in_flags)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        status = terminal.run(_run, debug="--debug" in sys.argv[1:], words=_in_flags)
    finally:
        logger.removeHandler(handler)
    sys.exit(status)


def _run() -> None:
    """Parses the command line and calls the command.

    Without typer's own `main`, which takes an interruption, the end of a file or a broken pipe for its own affair.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("shortv-export", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.Abort as error:
        raise EOFError("the input ended") from error
    except Exception as error:
        # click's exceptions for wrong usage; typer brings them along or not, depending on its release.
        if (tell := getattr(error, "format_message", None)) is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            path = getattr(getattr(error, "ctx", None), "command_path", "shortv-export")
            terminal.say_error(f"{tell().rstrip('.')}; see {path} --help.")
        sys.exit(error.exit_code)  # type: ignore[attr-defined]


class _quiet:
    """Neither messages nor progress bars, which are huggingface_hub's."""

    def __enter__(self) -> None:
        from huggingface_hub.utils import disable_progress_bars

        self.bars = disable_progress_bars()
        logging.getLogger(__package__).setLevel(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        self.bars.__exit__()


def _in_flags(text: str) -> str:
    return with_flags(text, _NAMES)


def _print(*lines: str) -> None:
    terminal.say(*map(_in_flags, lines))


def _print_table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    terminal.say_table(title, [tuple(map(_in_flags, row)) for row in rows])
