"""Command lines, parsed without running them, and what commands say."""

from __future__ import annotations

from typing import Any


def command_group() -> Any:
    from typer.main import get_command

    from shortv_export.cli import app

    return get_command(app)


def parse(arguments: list[str]) -> None:
    """Parses a command line without running it; raises the parser's error. Works with old and new typer."""
    group = command_group()
    context = group.make_context("shortv-export", list(arguments), resilient_parsing=False)
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    name, command, rest = group.resolve_command(context, rest)
    command.make_context(name, rest, parent=context)


def one_line(err: str) -> str:
    """The reason of a command that failed: the last line on standard error, after what was said on the way."""
    *before, line = err.strip().splitlines()
    assert line.startswith("error: "), err
    assert not any(each.startswith(("error: ", "Traceback")) for each in before), err
    return f"{line}\n"
