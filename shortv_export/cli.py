"""The command line: parse, call, print. The options are those of the functions that it calls (see `options`)."""

from __future__ import annotations

import atexit
import gc
import inspect
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, pipeline, terminal
from .demo import run_demo
from .errors import ShortVError, UsageError, hide
from .options import Option, options_of, with_flags
from .usage import refuse_unused

app = typer.Typer(
    name="shortv-export",
    help="Make a vision-language model faster and publish it: measure which layers the visual tokens need, freeze "
    "the others, and put weights, list and code on the Hub.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# When Python ends, it looks through all objects for garbage: with torch and transformers imported, for 1 to 2 seconds.
atexit.register(gc.freeze)

_VERBS = (
    pipeline.score,
    pipeline.package,
    pipeline.verify,
    pipeline.evaluate,
    pipeline.compare,
    pipeline.push,
    run_demo,
)
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


_PRINTED = "What is printed"
_TOKEN = re.compile(r"[!-~]{8,}")
_COMPLETE = "_SHORTV_EXPORT_COMPLETE"  # set by the shell to ask for completions

_EXAMPLES = {
    "score": "score llava-hf/llava-1.5-7b-hf --data photos/ --num-samples 40",
    "package": "package llava-hf/llava-1.5-7b-hf OUT --scores scores.json",
    "verify": "verify OUT",
    "evaluate": "evaluate OUT --data questions/ --update-card",
    "compare": "compare OUT",
    "push": "push llava-hf/llava-1.5-7b-hf you/llava-1.5-7b-shortv --preset paper",
    "demo": "demo --output shortv-demo",
}


def _command(
    verb: Callable[..., Any],
    *without: str,
    json: Callable[..., Any],
    line: Callable[..., Any],
    end: Callable[..., None] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function: parses its options, calls it, and lets the decorated function print the result.

    Args:
        verb: the function.
        without: names of options that the command does not have.
        json: what `--json` prints of the result.
        line: what `--quiet` prints of it.
        end: called in the end; may raise.

    All of them get the result and the arguments of the call by name.
    """
    options = [option for option in options_of(verb) if option.name not in without]
    name = verb.__name__.removeprefix("run_")

    def decorate(show: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, as_json: bool, quiet: bool, token: str | None = None, **typed: Any) -> None:
            if as_json and quiet:
                raise UsageError("--quiet does not apply with --json; leave it out.")
            arguments = _arguments(verb, options, typed)
            refuse_unused(verb, arguments, _given(context))
            with _token(token), _quiet(bars=verb is not run_demo) if as_json or quiet else nullcontext():
                result = verb(**arguments)
            if as_json:
                terminal.say_json(json(result, **arguments))
            elif quiet:
                _print(str(line(result, **arguments)))
            else:
                show(result, **arguments)
            if end is not None:
                end(result, **arguments)

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, *map(_parsed, options), *(_PARAMETERS if verb is not run_demo else _PARAMETERS[1:])]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        help = inspect.getdoc(verb).splitlines()[0]  # type: ignore[union-attr]
        app.command(name=name, help=help, epilog=f"Example: shortv-export {_EXAMPLES[name]}")(run)
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
    flags += [option.help.short] if option.help.short else []
    return _parameter(option.name, option.type, option.default, typer.Option(*flags, **shown))


def _parameter(name: str, kind: Any, default: Any, shown: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


_PARAMETERS = [
    _parameter(
        "token",
        str | None,
        None,
        typer.Option(
            "--token",
            help="A token of the Hub, from https://huggingface.co/settings/tokens. Default: HF_TOKEN, or that of "
            "`hf auth login`.",
            rich_help_panel="Access to the Hub",
            show_default=False,
        ),
    ),
    _parameter(
        "as_json",
        bool,
        False,
        typer.Option("--json", help="Print one JSON object, no text.", rich_help_panel=_PRINTED),
    ),
    _parameter(
        "quiet",
        bool,
        False,
        typer.Option(
            "--quiet",
            "-q",
            help="Print one line: where the result is, or what `verify` found.",
            rich_help_panel=_PRINTED,
        ),
    ),
]
"""Those of the command line alone."""


@contextmanager
def _token(token: str | None) -> Iterator[None]:
    """Lets huggingface_hub use a token as if it were in the environment, before any other; processes inherit it."""
    if token is None:
        yield
        return
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            "what follows --token is no token: it is too short, or holds other characters than a token's."
        )
    hide(token)
    names = ("HF_TOKEN", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_OIDC_RESOURCE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        del os.environ["HF_TOKEN"]
        os.environ.update(before)


def _arguments(verb: Callable[..., Any], options: list[Option], typed: dict[str, Any]) -> dict[str, Any]:
    """What was typed as the arguments of a call: options go back into their dataclasses."""
    arguments = {name: each.default for name, each in inspect.signature(verb).parameters.items()}
    for option in options:
        name, *inner = option.path
        arguments[name] = _with(arguments[name], inner, _value(option, typed[option.name]))
    return arguments


def _given(context: typer.Context) -> set[str]:
    """The names of what was typed, also where it is the default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _value(option: Option, typed: Any) -> Any:
    if option.help.parse is None:
        return typed
    try:
        return option.default if typed is None else option.help.parse(typed)
    except (ValueError, ShortVError) as error:
        raise typer.BadParameter(str(error), param_hint=f"'{option.flag}'") from None


def _with(values: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    return replace(values, **{path[0]: _with(getattr(values, path[0]), path[1:], value)})


LONG_ANSWER = 8
"""Tokens. Answers of a few tokens say little about captions and descriptions."""


def _score_json(scores: Any, budget: Any, **_: Any) -> dict[str, Any]:
    from .selection import boundary, default_count

    found = boundary(scores, budget.num_frozen or default_count(len(scores.visual)))
    return {**asdict(scores), "boundary": asdict(found) if found else None}


@_command(pipeline.score, "flops_ratio", "max_kl", json=_score_json, line=lambda _, output, **__: output)
def _show_score(scores: Any, output: Path, budget: Any, **_: Any) -> None:
    from .selection import default_count, describe, ranking

    count = budget.num_frozen or default_count(len(scores.visual))
    _print(f"Layer Contribution over {scores.num_samples} samples, written to {output}")
    _print(f"least needed layers first: {', '.join(map(str, ranking(scores.visual)))}")
    _print(f"with {count} frozen layers, {describe(scores, count)}")
    if scores.positions == "answer":
        lengths = [answer for *_, answer in scores.tokens]
        long = sum(length > LONG_ANSWER for length in lengths) / len(lengths)
        _print(f"answers of the base: {min(lengths)} to {max(lengths)} tokens, {long:.0%} longer than {LONG_ANSWER}")


def _folder(_: Any, base: str, out: Path | None, **__: Any) -> str:
    return str(out or base)  # with a recipe, the folder may be the only argument


@_command(
    pipeline.package,
    json=lambda package, **asked: {"package": _folder(package, **asked), **package.recipe.to_dict()},
    line=_folder,
)
def _show_package(package: Any, **asked: Any) -> None:
    recipe, folder = package.recipe, _folder(package, **asked)
    frozen = "; ".join(", ".join(map(str, layers)) for layers in recipe.frozen.lists.values() if layers)
    _print(f"{folder}: {recipe.frozen.describe(recipe.num_layers)} ({frozen})")
    _print(f"FLOPs ratio {recipe.cost['flops_ratio']:.3f}; next: shortv-export verify {folder}")


def _end_verify(result: Any, **_: Any) -> None:
    result.raise_if_failed()
    if result.not_made:
        raise typer.Exit(3)


@_command(
    pipeline.verify,
    json=lambda result, **_: {"verdict": result.verdict, "checks": [asdict(check) for check in result.checks]},
    line=lambda result, **_: result.verdict,
    end=_end_verify,
)
def _show_verify(result: Any, package: str, **_: Any) -> None:
    states = {True: "passed", False: "FAILED", None: "not made"}
    rows = [(states[check.passed], check.name, check.detail) for check in result.checks]
    _print_table(f"Verification of {package}", rows)
    _print(f"{package}: {result.summary}")


@_command(
    pipeline.evaluate,
    json=lambda evaluation, **_: evaluation.to_dict(),
    line=lambda _, output, **__: output,
)
def _show_evaluate(evaluation: Any, package: str, output: Path, update_card: bool, **_: Any) -> None:
    from .evaluation import tables

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


def _end_compare(page: Any, open: bool, **_: Any) -> None:
    if open and sys.stdout.isatty():
        typer.launch(page.url)
    page.wait()


@_command(
    pipeline.compare, json=lambda page, **_: {"url": page.url}, line=lambda page, **_: page.url, end=_end_compare
)
def _show_compare(page: Any, package: str, **_: Any) -> None:
    _print(f"{package} beside its base: {page.url}", "Ctrl-C ends it")


@_command(pipeline.push, "recipe", json=lambda result, **_: asdict(result), line=lambda result, **_: result.url)
def _show_push(result: Any, target: Any, **_: Any) -> None:
    _print(result.summary)
    if target.dry_run:
        if result.rows:
            _print_table("Files of the commit", result.rows)
    elif not target.create_pr:
        _print("", "load it with", "", *result.snippet.splitlines())


def _end_demo(demo: Any, open: bool, **_: Any) -> None:
    if open and sys.stdout.isatty():
        typer.launch(str(demo.card))


@_command(run_demo, json=lambda demo, **_: demo.to_dict(), line=lambda demo, **_: demo.card, end=_end_demo)
def _show_demo(demo: Any, **_: Any) -> None:
    for title, lines in demo.tables:
        _print("")
        _print_table(title, lines)
    _print("", f"Look at {demo.card}, the card, and {demo.card.with_name('layer_contribution.png')}.")
    _print(f"Next: {_program()} push llava-hf/llava-1.5-7b-hf USER/NAME --preset paper")


def _program() -> str:
    """This command as it can be typed here: `make demo` does not put it on the PATH."""
    if shutil.which("shortv-export") or not Path(sys.argv[0]).is_file():
        return "shortv-export"
    return os.path.relpath(sys.argv[0])


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
    if _COMPLETE in os.environ:
        command(prog_name="shortv-export")  # prints the completions and ends
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
            reason = tell().rstrip(".").replace(": Value error, ", ": ")  # which newer releases of typer say
            terminal.say_error(f"{reason}; see {path} --help.")
        sys.exit(error.exit_code)  # type: ignore[attr-defined]


@contextmanager
def _quiet(bars: bool = True) -> Iterator[None]:
    """Neither messages nor progress bars, which are huggingface_hub's. The demo shows none; it imports that later."""
    logging.getLogger(__package__).setLevel(logging.WARNING)
    if not bars:
        yield
        return
    from huggingface_hub.utils import disable_progress_bars

    with disable_progress_bars():
        yield


def _in_flags(text: str) -> str:
    return with_flags(text, _NAMES)


def _print(*lines: str) -> None:
    terminal.say(*map(_in_flags, lines))


def _print_table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    terminal.say_table(title, [tuple(map(_in_flags, row)) for row in rows])
