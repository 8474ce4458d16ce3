"""A command ends with a status and at most one line of reason, and prints on any screen."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export import cli, terminal
from shortv_export.errors import ShortVError, UsageError, add_note
from tests.support.packages import write_questions

HOSTILE = "a\n\x1b[31m\u202e" + os.fsdecode(b"\xff")
SHOWN = r"a\n\x1b[31m\u202e\udcff"


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ShortVError(f"{HOSTILE} is missing."), 1, f"error: {SHOWN} is missing."),
        (UsageError("not together."), 2, "error: not together."),
        (
            KeyError("name"),
            1,
            "error: unexpected KeyError: 'name'; this is a bug: run again with --debug and report it.",
        ),
        (RecursionError("too deep"), 1, "error: unexpected RecursionError: too deep; this is a bug"),
        (ValueError(HOSTILE), 1, r"error: unexpected ValueError: a \x1b[31m\u202e\udcff; this is a bug"),
        (UnicodeEncodeError("ascii", "\u2192", 0, 1, "no"), 1, "error: unexpected UnicodeEncodeError: 'ascii' codec"),
        (Odd(), 1, "error: unexpected Odd: Odd; this is a bug"),
        (MemoryError(), 1, "error: out of memory; close other programs, or ask for less."),
        (OSError(28, "No space left on device", "/tmp/x"), 1, "error: [Errno 28] No space left on device: '/tmp/x'."),
        (EOFError(), 1, "error: unexpected EOFError: EOFError; this is a bug"),
        (BrokenPipeError(32, "Broken pipe"), 1, "error: [Errno 32] Broken pipe."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(0), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("no tasks"), 1, "error: no tasks"),
        (SystemExit(None), 0, ""),
    ],
)
def test_any_exception_is_a_status_and_a_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("shortv_export.packaging.Package.open", fail)
    found, out, err = run("verify", "package")
    assert (found, out) == (status, "")
    assert err.startswith(line)
    assert len(err.splitlines()) == bool(line)
    if not isinstance(error, KeyboardInterrupt | SystemExit):
        with pytest.raises(type(error)):
            run("--debug", "verify", "package")


def test_what_is_kept_is_told_on_the_same_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, line in (
        (ShortVError("the disk is full."), "error: the disk is full; 3 are kept\n"),
        (KeyboardInterrupt(), "interrupted; 3 are kept\n"),
    ):
        add_note(error, "3 are kept")
        monkeypatch.setattr("shortv_export.packaging.Package.open", lambda *_, error=error, **__: throw(error))
        assert run("verify", "package")[2] == line


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["package"], "Missing argument"),
        (["score", "base", "--num-samples", HOSTILE], "--num-samples"),
        (["score", "base", "--dtype", HOSTILE], "--dtype"),
        ([HOSTILE.replace("\n", "")], "No such command"),
        (["--nothing"], "--nothing"),
    ],
)
def test_wrong_usage_is_one_line(run: Any, arguments: list[str], words: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.endswith("--help.\n")
    assert err[:-1].isprintable()


def test_without_arguments_there_is_help(run: Any) -> None:
    status, out, err = run()
    assert status == 2
    assert "Usage: shortv-export" in out + err
    assert run("--help")[0] == 0


def test_log_messages_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("shortv_export.test")

    def show() -> None:
        logger.info("found %s", HOSTILE)
        logger.warning("left out %s", HOSTILE)
        logging.getLogger("transformers.test").warning(f"{HOSTILE} hf_SECRETSECRETSECRET")
        terminal.say_table(f"[red]{HOSTILE}", [(HOSTILE, ":smile: [/red]")])

    handler = terminal.LogPrinter(str.upper)
    logging.getLogger("shortv_export").addHandler(handler)
    other = logging.StreamHandler(sys.stderr)
    logging.getLogger("transformers").addHandler(other)
    try:
        assert terminal.run(show, debug=False) == 0
    finally:
        logging.getLogger("shortv_export").removeHandler(handler)
        logging.getLogger("transformers").removeHandler(other)
    out, err = capsys.readouterr()
    assert [line.rstrip() for line in out.splitlines()] == [
        f"[red]{SHOWN}",
        f"{SHOWN}  :smile: [/red]",
    ]
    assert err.splitlines() == [f"FOUND {SHOWN.upper()}", f"warning: LEFT OUT {SHOWN.upper()}", rf"{SHOWN} hf_***"]


def test_threads_and_libraries_print_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        thread = threading.Thread(target=lambda: throw(ValueError(HOSTILE)))
        thread.start()
        thread.join()
        try:
            throw(KeyError("inside"))
        except KeyError:
            logging.getLogger("other").exception("a library failed")

    assert terminal.run(fail, debug=False) == 0
    err = capsys.readouterr().err
    assert r"warning: ValueError: a \x1b[31m" in err
    assert "Traceback" not in err


SAYS = """
import sys
from shortv_export import cli, terminal
def say():
    for _ in range(int(sys.argv[1])):
        terminal.say("\\u6a21\\u578b \\U0001f917 caf\\xe9 " + "x" * 100)
    print("from a library")
sys.exit(terminal.run(say, debug=False))
"""


def shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "-c", f"set -o pipefail; {line}", sys.executable, *arguments]
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root, **environment}, capture_output=True, timeout=60
    )


def test_a_reader_may_stop_reading() -> None:
    result = shell('"$0" -c "$1" 10000 | head -1', SAYS)
    assert (result.returncode, result.stderr) == (0, b"")
    result = shell('"$0" -m shortv_export --help | head -1')
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_told() -> None:
    result = shell('"$0" -c "$1" 1 > /dev/full', SAYS)
    assert result.returncode == 1
    assert result.stderr == b"error: the output could not be written: No space left on device.\n"
    assert shell('"$0" -c "$1" 1 2> /dev/full', SAYS).returncode == 0
    assert shell('"$0" -c "$1" 1 >&- 2>&-', SAYS).returncode == 0


ENCODINGS = [
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("environment", ENCODINGS)
def test_characters_that_the_screen_does_not_have(environment: dict[str, str]) -> None:
    result = shell('"$0" -c "$1" 1', SAYS, **environment)
    assert (result.returncode, result.stderr) == (0, b"")
    encoding = environment.get("PYTHONIOENCODING", "").partition(":")[0]
    if encoding:
        expected = "模型 🤗 café ".encode(encoding, "backslashreplace")
        assert result.stdout.startswith(expected)
    name = "模型🤗".encode() + b"\xff"
    result = shell('"$0" -m shortv_export score base --num-samples "$1"', os.fsdecode(name), **environment)
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: ")
    assert result.stderr.count(b"\n") == 1


def test_a_path_and_json_on_a_screen_of_cp1252(
    tiny_base: Callable[..., Path], photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = {"猫 🐈": photos["chelsea"], "b": photos["rocket"]}
    data = write_questions(tmp_path / "数据", photos, ["what ?"])
    output = tmp_path / os.fsdecode("模型🤗\n".encode() + b"\xff.json")
    screens = {name: io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for name in ("stdout", "stderr")}
    for name, screen in screens.items():
        monkeypatch.setattr(sys, name, screen)
    options = ["--data", data, "--num-samples", 2, "--output", output]
    monkeypatch.setattr(sys, "argv", list(map(str, ["shortv-export", "score", tiny_base(), *options])))
    for printed in ("text", "json"):
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0, printed
        sys.argv.append("--json")
    out = screens["stdout"].buffer.getvalue()  # type: ignore[attr-defined]
    text, _, encoded = out.partition(b"\n{")
    assert "模型🤗".encode("cp1252", "backslashreplace") + rb"\n\udcff.json" in text
    assert json.loads(b"{" + encoded)["num_samples"] == 2
    assert json.loads(output.read_bytes())["num_samples"] == 2
