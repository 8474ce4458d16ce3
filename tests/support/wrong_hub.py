"""A Hub whose answers are wrong, and commands that ask it.

A `WrongHub` stands before a loopback Hub and answers one of the requests wrongly: with other JSON, no JSON, half of
it, without end, or never. Each command runs in a fork of a process that has imported everything, with short time-outs.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shortv_export.base.resolve import resolve_base
from shortv_export.loopback import LoopbackHub
from shortv_export.records.selection import Selection
from tests.support.packages import make_package
from tests.support.wrong_answers import BODIES, HEADERS, SLOW

BASE, PACKAGE = "acme/base", "acme/package"
SCENARIOS = ("push", "update", "copy", "pull-request", "package", "open")


@dataclass(frozen=True)
class Case:
    """One wrong answer to the `nth` request of a scenario, counted from 1: the name of a fault, or a body."""

    scenario: str
    nth: int
    fault: str | bytes

    @property
    def is_slow(self) -> bool:
        """Whether it lasts until a time-out."""
        return self.fault in SLOW


@dataclass
class Seen:
    """A request, and the JSON that it got; empty if it was something else."""

    method: str
    path: str
    body: bytes = b""


class WrongHub:
    """Passes requests on to a loopback Hub; from the `nth` on, the same request gets a wrong answer."""

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub
        self.case: Case | None = None
        self.struck: Seen | None = None
        self.requests: list[Seen] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"wrong": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def begin(self, case: Case | None) -> None:
        self.requests, self.case, self.struck = [], case, None

    def note(self, method: str, path: str) -> tuple[Seen, bool]:
        """Logs a request; returns whether it is to get the wrong answer."""
        with self.lock:
            seen = Seen(method, path)
            self.requests.append(seen)
            if self.case is not None and len(self.requests) == self.case.nth:
                self.struck = seen
            same = self.struck is not None and (self.struck.method, self.struck.path) == (method, path)
            return seen, same

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    wrong: WrongHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen, is_wrong = self.wrong.note(self.command, self.path.partition("?")[0])
        self.close_connection = True
        with suppress(OSError):
            if is_wrong:
                assert self.wrong.case
                self._answer_wrongly(self.wrong.case.fault)
            else:
                self._pass_on(body, seen)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _pass_on(self, body: bytes, seen: Seen) -> None:
        hub = http.client.HTTPConnection(self.wrong.hub.url.removeprefix("http://"))
        hub.request(self.command, self.path, body, dict(self.headers))
        answer = hub.getresponse()
        content = answer.read()
        if "json" in answer.headers.get("Content-Type", ""):
            seen.body = content
        self._send(answer.status, dict(answer.headers), content, length=answer.headers["Content-Length"])

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: Any = None) -> None:
        left_out = ("content-length", "connection", "date", "server", "transfer-encoding")
        lines = [f"HTTP/1.1 {status} X", "Connection: close", f"Content-Length: {length or len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in left_out]
        head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
        self.wfile.write(head if self.command == "HEAD" else head + body)

    def _answer_wrongly(self, fault: str | bytes) -> None:
        json_type = {"Content-Type": "application/json"}
        if isinstance(fault, bytes):
            return self._send(200, json_type, fault)
        if fault in BODIES:
            return self._send(200, json_type if fault != "page" else {"Content-Type": "text/html"}, BODIES[fault])
        if fault in HEADERS:
            status, headers, body = HEADERS[fault]
            headers = {**headers, "Location": self.path} if headers.get("Location") == "." else headers
            return self._send(status, json_type | headers, body)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if fault == "garbage":
            self.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        elif fault == "half":
            self.wfile.write(head + b"Content-Length: 100\r\n\r\n" + b'{"id": "')
        elif fault == "more-than-announced":
            self.wfile.write(head + b"Content-Length: 1\r\n\r\n" + b'{"id": "x"}')
        elif fault == "silence":
            self._wait()
        elif fault == "silent-body":
            self.wfile.write(head + b"Content-Length: 100\r\n\r\n{")
            self._wait()
        elif fault == "drip-head":
            self.wfile.write(head + b"X-Padding: ")
            while not self.wrong.stopped.is_set():
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif fault in ("endless", "endless-json", "drip"):
            self._send_without_end(head, fault)

    def _send_without_end(self, head: bytes, fault: str) -> None:
        self.wfile.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = {"endless": b"x" * 60_000, "endless-json": b"[" + b"0," * 30_000, "drip": b" "}[fault]
        while not self.wrong.stopped.is_set():
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if fault == "drip":
                time.sleep(0.05)

    def _wait(self) -> None:
        self.connection.settimeout(0.1)
        while not self.wrong.stopped.is_set():
            with suppress(TimeoutError):
                if not self.connection.recv(1, socket.MSG_PEEK):
                    return


class Bench:
    """A loopback Hub with a base and a package, behind a `WrongHub`, and a process that runs commands."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.hub = LoopbackHub().start()
        self.hub.add_token("hf_acme", "acme", "write")
        commit = self.hub.create_repo(BASE, files={path.name: path for path in base.iterdir()})
        local = resolve_base(base)
        on_hub = replace(local, name=BASE, repo_id=BASE, revision=commit)
        self.packages = {
            "old": make_package(local, folder / "old", Selection((1, 3), 4, "given")),
            "push": make_package(local, folder / "push", Selection((1,), 4, "given")),
            "copy": make_package(on_hub, folder / "copy", Selection((1,), 4, "given")),
        }
        self.hub.create_repo(PACKAGE, files={path.name: path for path in self.packages["copy"].iterdir()})
        self.wrong = WrongHub(self.hub)
        environment = {**os.environ, **self.hub.env(), "HF_ENDPOINT": self.wrong.url, "PYTHONWARNINGS": "ignore"}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error"}
        self.runner = subprocess.Popen(
            [sys.executable, "-m", "tests.support.wrong_hub"],
            cwd=Path(__file__).parents[2],
            env={**environment, "HF_HOME": str(folder / "hf-home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.number = 0
        self.known: dict[str, dict[int, Seen]] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.communicate()
        self.wrong.stop()
        self.hub.stop()

    def requests(self, scenario: str) -> dict[int, Seen]:
        """The requests of a command whose answers are right, by number: one of each kind."""
        if scenario in self.known:
            return self.known[scenario]
        status, out, err = self._run(scenario, None)
        assert status == 0, out + err
        kinds: dict[Any, tuple[int, Seen]] = {}
        for number, seen in enumerate(self.wrong.requests, start=1):
            path = re.sub(r"/resolve/.*", "/resolve", re.sub(r"[0-9a-f]{40,64}|model-[0-9]+", "*", seen.path))
            kinds.setdefault((seen.method, path, bool(seen.body)), (number, seen))
        self.known[scenario] = dict(kinds.values())
        return self.known[scenario]

    def run(self, case: Case) -> tuple[int, str]:
        """Runs a command; returns its exit status and its error line.

        Raises:
            AssertionError: it ended with a traceback, with more than a line, or not at all.
        """
        status, out, err = self._run(case.scenario, case)
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert self.wrong.struck is not None, f"there was no such request: {out}{err}"
        assert "Traceback" not in out + err, err
        assert status in (0, 1), (status, out, err)
        assert len(lines) == status, err
        assert status == 0 or lines[0].startswith("error: "), err
        assert "this is a bug" not in err, err
        assert all(character.isprintable() for character in "".join(lines)), err
        return status, lines[0] if lines else ""

    def _run(self, scenario: str, case: Case | None) -> tuple[int, str, str]:
        self.number += 1
        repo_id = f"loopback/model-{self.number}"
        place = self.folder / f"run-{self.number}"
        place.mkdir()
        self.wrong.begin(None)
        if scenario == "update":
            self._ask(["push", str(self.packages["old"]), repo_id], place, "before", 10)
        elif scenario == "pull-request":
            repo_id = f"acme/model-{self.number}"
            self.hub.create_repo(repo_id)
        package = str(self.packages["copy" if scenario == "copy" else "push"])
        commands = {
            "package": ["package", BASE, str(place / "out"), "--frozen-layers", "1"],
            "open": ["open", PACKAGE],
            "pull-request": ["push", package, repo_id, "--create-pr"],
        }
        self.wrong.begin(case)
        seconds = 0.5 if case and case.is_slow else 10  # until a time-out; the machine may be slow, too
        return self._ask(commands.get(scenario, ["push", package, repo_id]), place, "cache", seconds)

    def _ask(self, command: list[str], place: Path, cache: str, seconds: float) -> tuple[int, str, str]:
        assert self.runner.stdin
        assert self.runner.stdout
        self.runner.stdin.write(json.dumps([command, str(place), cache, seconds]) + "\n")
        self.runner.stdin.flush()
        status = int(self.runner.stdout.readline())
        out, err = ((place / name).read_text("utf-8", "replace") for name in ("out.txt", "err.txt"))
        return status, out, err


def _serve() -> None:
    """Runs a command for each line of stdin, in a fork; prints its exit status."""
    import huggingface_hub.hf_api
    import transformers.models.auto.processing_auto
    import transformers.models.clip.modeling_clip
    import transformers.models.llama.modeling_llama
    import transformers.models.llava.modeling_llava  # noqa: F401
    from huggingface_hub import constants

    from shortv_export import cli, terminal
    from shortv_export.hub import patience, session
    from shortv_export.packaging import Package

    _shorten(session)
    for line in sys.stdin:
        command, place, cache, seconds = json.loads(line)
        for name in ("CONNECT_SECONDS", "READ_SECONDS", "PATIENCE_SECONDS"):
            setattr(patience, name, seconds)
        session._ANSWER_SECONDS = session._SLOW_SECONDS = seconds
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            for number, name in ((1, "out.txt"), (2, "err.txt")):
                os.dup2(os.open(Path(place, name), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
            constants.HF_HUB_CACHE = str(Path(place, cache))
            sys.argv = ["shortv-export", *command]
            status = 70
            try:
                if command[0] == "open":
                    status = terminal.run(lambda: Package.open(command[1]).recipe, debug=False)  # noqa: B023
                else:
                    cli.main()
            except SystemExit as end:
                status = int(end.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(ended))
    assert huggingface_hub.hf_api


def _shorten(session: Any) -> None:
    """Nothing is large, and nothing waits between two tries."""
    session._MOST_BYTES = session._MOST_BYTES_OF_UNKNOWN_LENGTH = 2 << 20
    sleep: Callable[[float], None] = time.sleep

    def short(seconds: float) -> None:
        if seconds > session.LONGEST_WAIT + 1:
            raise AssertionError(f"it would sleep for {seconds} seconds")
        sleep(min(seconds, 0.01))

    time.sleep = short


if __name__ == "__main__":
    _serve()
