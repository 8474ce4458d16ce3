"""The command line in processes of its own with a loopback Hub: secrets, network access, output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shortv_export.base.resolve import resolve_base
from shortv_export.loopback import LoopbackHub
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from tests.support.packages import make_package, write_questions
from tests.support.typed import one_line as last_line

CANARY = "hf_CanaryCanaryCanaryCanaryCanary"
BASE, REPO = "loopback/base", "loopback/faster"
FROZEN = ("--frozen-layers", "1,3")
PLACES = ["hf-home", "home", "tmp"]  # folders that exist before a command runs


@pytest.fixture
def hub(tiny_base: Callable[..., Path]) -> Iterator[LoopbackHub]:
    """A Hub with a base; its token is the canary."""
    with LoopbackHub(token=CANARY) as hub:
        hub.create_repo(BASE, files={path.name: path for path in tiny_base().iterdir()})
        yield hub
        assert hub.errors == []


@pytest.fixture
def run(hub: LoopbackHub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run("push", ..., HF_TOKEN="")`` -> the finished process, which writes into `tmp_path` only."""
    places = {"HOME": tmp_path / "home", "HF_HOME": tmp_path / "hf-home", "TMPDIR": tmp_path / "tmp"}
    for place in places.values():
        place.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TQDM_"))}
    environment = {**inherited, **{name: str(place) for name, place in places.items()}, **hub.env()}

    def run(*arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shortv_export", *map(str, arguments)],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def package(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "package"
    return make_package(resolve_base(tiny_base()), folder, Selection((1, 3), 4, "given"))


def one_line(result: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The message of a command that failed."""
    assert result.returncode == status, result
    return last_line(result.stderr).rstrip()


class Environments:
    """Collects the environments of `verify`'s isolated processes during a context (on Linux).

    Only of processes whose temporary files are in `folder`: other tests may run at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Environments:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if "verification/child.py" in (process / "cmdline").read_text():
                        environment = (process / "environ").read_text()
                        if f"TMPDIR={self.folder}" in environment:
                            self.seen[process.name] = environment
                except OSError:  # the process has ended
                    pass


def test_the_token_is_nowhere(hub: LoopbackHub, run: Any, package: Path, tmp_path: Path) -> None:
    """In no file, message or address, and not in the environment of the process that runs a package's code."""
    hub.add_token(f"{CANARY}Reader", "loopback", role="read")
    hub.create_repo("loopback/foreign", files={"model.safetensors": b"x"})
    results = []
    with Environments(tmp_path) as environments:
        results.append(run("push", BASE, REPO, *FROZEN, HF_DEBUG="1"))
        assert results[0].returncode == 0, results[0].stderr
        results.append(run("verify", REPO, "--json", HF_HUB_VERBOSITY="debug"))
        assert results[1].returncode == 0, results[1].stderr
    assert sys.platform != "linux" or len(environments.seen) == 2
    assert all(f"HF_HOME={tmp_path}" in environment for environment in environments.seen.values())

    for arguments, variables in (
        (["push", package, "loopback/foreign"], {}),
        (["--debug", "push", package, "loopback/foreign"], {}),
        (["push", package, "acme/other"], {}),
        (["push", package, "loopback/new"], {"HF_TOKEN": f"{CANARY}Reader"}),
        (["push", package, "loopback/new"], {"HF_TOKEN": f"{CANARY}Invented"}),
        (["push", "loopback/nowhere", "loopback/new", *FROZEN], {}),
        (["package", "loopback/nowhere", tmp_path / "out", *FROZEN], {"HF_DEBUG": "1"}),
        (["verify", "loopback/foreign"], {}),
    ):
        results.append(run(*arguments, **variables))
        assert results[-1].returncode == 1, results[-1]
    # A rate limit without a waiting time, so that all retries run at once.
    hub.fail(lambda request: "/commit/" in request.path, status=429, retry_after=0, times=1000)
    for debug in ((), ("--debug",)):
        results.append(run(*debug, "push", package, "loopback/new"))
        assert results[-1].returncode == 1, results[-1]

    texts = [result.stdout + result.stderr for result in results]
    texts += environments.seen.values()
    texts += [f"{request.path}?{request.query}" for request in hub.requests]
    assert not [text for text in texts if CANARY in text]
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) > 30
    written |= {path: content for repo_id in hub.repos for path, content in hub.files(repo_id).items()}
    assert not [path for path, content in written.items() if CANARY.encode() in content]


def test_everything_up_to_the_push_works_offline(hub: LoopbackHub, run: Any, tmp_path: Path, photos: Any) -> None:
    """A base in the cache is enough; publishing then says what it needs."""
    assert run("package", BASE, tmp_path / "online", *FROZEN).returncode == 0
    offline = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}
    asked = len(hub.requests)
    write_questions(tmp_path / "photos", {"cat": photos["chelsea"]}, ["what is in this picture ?"])
    for arguments in (
        ("score", BASE, "--data", tmp_path / "photos", "--num-samples", 1, "--output", tmp_path / "scores.json"),
        ("package", BASE, tmp_path / "scored", "--scores", tmp_path / "scores.json", "--num-frozen", 2),
        ("package", BASE, tmp_path / "offline", *FROZEN),
        ("verify", tmp_path / "offline"),
    ):
        result = run(*arguments, **offline)
        assert result.returncode == 0, result.stderr
    for path in (tmp_path / "online").iterdir():
        assert (tmp_path / "offline" / path.name).read_bytes() == path.read_bytes()
    assert "HF_HUB_OFFLINE is set" in one_line(run("push", tmp_path / "offline", REPO, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE" in one_line(run("package", "loopback/other", tmp_path / "other", *FROZEN, **offline))
    assert len(hub.requests) == asked


def test_verify_a_repository(hub: LoopbackHub, run: Any, package: Path) -> None:
    """The main branch or --revision; the exit status and the first failed check say what is wrong."""
    push = json.loads(run("push", package, REPO, "--tag", "v1", "--json").stdout)
    hub.commit(REPO, {"extra.py": b"evil = True\n"})
    result = run("verify", REPO, "--revision", push["tag"])
    assert result.returncode == 3, result.stderr  # the base was a folder, which nobody can look up
    assert all(word in result.stdout for word in ("definition", "verified except base"))
    assert "the comparison needs" in result.stderr
    result = run("verify", REPO, "--revision", "v1", "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["verdict"], result.stderr) == (3, "verified except", "")
    assert all(check["passed"] is not False for check in report["checks"])

    result = run("verify", REPO, "--json")
    report = json.loads(result.stdout)
    assert report["verdict"] == "failed"
    assert [check["name"] for check in report["checks"] if not check["passed"]] == ["files"]
    assert one_line(result).endswith("failed verification: files: not of the package: extra.py.")
    assert one_line(run("verify", REPO)).endswith("not of the package: extra.py.")
    assert "no such revision" in one_line(run("verify", REPO, "--revision", "v9"))
    assert "is not on the Hub" in one_line(run("verify", "loopback/none"))


def test_a_push_shows_its_progress_and_how_to_load(hub: LoopbackHub, run: Any, package: Path) -> None:
    result = run("push", package, REPO, TQDM_POSITION="-1")
    assert result.returncode == 0, result.stderr
    size = (package / "model.safetensors").stat().st_size
    assert "model.safetensors: 100%" in result.stderr  # the upload, in bytes
    assert f"/{size / 1e3:.0f}k" in result.stderr
    tag = next(ref for ref in hub.repos[REPO].refs if "tags" in ref).removeprefix("refs/tags/")
    snippet = result.stdout.split("load it with")[1]
    assert f'model_id, revision = "{REPO}", "{tag}"' in snippet
    compile(snippet.strip(), "snippet", "exec")

    for command, status in ((("push", package, "loopback/other"), 0), (("verify", REPO), 3)):
        result = run(*command, "--json", TQDM_POSITION="-1")
        assert result.returncode == status
        assert result.stderr == ""
        json.loads(result.stdout)


def test_a_dry_run_from_a_base_measures_and_changes_nothing(hub: LoopbackHub, run: Any, tmp_path: Path) -> None:
    repos, refs = set(hub.repos), dict(hub.repos[BASE].refs)
    result = run("push", BASE, REPO, "--dry-run")
    assert result.returncode == 0, result.stderr
    size = len(hub.files(BASE)["model.safetensors"])
    assert ", a new public repository," in result.stdout
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"copied on the Hub model.safetensors {size:,} bytes" in lines
    assert "made here shortv.json" in lines
    assert "after measuring which layers to freeze" in result.stdout
    assert f"1 files of the base copied on the Hub ({size:,} bytes)" in result.stdout
    forecast = json.loads(run("push", BASE, REPO, "--dry-run", *FROZEN, "--json").stdout)
    assert forecast["frozen_layers"] == [1, 3]
    assert (forecast["dry_run"], forecast["copied"], forecast["copied_bytes"]) == (True, ["model.safetensors"], size)
    assert "is empty" in one_line(run("push", BASE, REPO, "--dry-run", "--frozen-layers", ""), 2)
    assert "has a tag" not in one_line(run("push", BASE, REPO, "--dry-run", "--tag", "a b"))
    assert (set(hub.repos), hub.repos[BASE].refs) == (repos, refs)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not [request for request in hub.requests if request.method in ("PUT", "DELETE")]
    assert sorted(path.name for path in tmp_path.iterdir()) == PLACES


def test_a_dry_run_of_a_package_shows_what_it_would_do(
    hub: LoopbackHub, run: Any, package: Path, tiny_base: Any, tmp_path: Path
) -> None:
    scores = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2)
    other = make_package(resolve_base(tiny_base()), tmp_path / "other", Selection((3,), 4, "lc"), scores=scores)
    assert run("push", other, REPO, "--private").returncode == 0
    refs, sent = dict(hub.repos[REPO].refs), len(hub.requests)
    result = run("push", package, REPO, "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"would push to {hub.url}/{REPO}, a private repository, in one commit" in lines[0]
    assert lines[0].endswith("this replaces the model that is there: a local base with 1 of 4 layers frozen")
    for name in ("config.json", "shortv.json"):
        assert f"uploaded {name} {(package / name).stat().st_size:,} bytes" in lines
    assert "deleted layer_contribution.png" in lines
    assert not any("model.safetensors" in line for line in lines), "it is there already"
    plan = json.loads(run("push", package, REPO, "--dry-run", "--json").stdout)
    assert (plan["exists"], plan["private"], plan["deleted"]) == (True, True, ["layer_contribution.png"])
    assert {line.split()[1] for line in lines if line.startswith("uploaded ")} == {*plan["sizes"]} == {*plan["added"]}
    assert hub.repos[REPO].refs == refs
    assert {request.method for request in hub.requests[sent:]} <= {"GET", "HEAD", "POST"}
    assert not [request for request in hub.requests[sent:] if "/commit/" in request.path]


def test_push_runs_every_step_from_a_base_on_the_hub(
    hub: LoopbackHub, run: Any, tiny_base: Any, photos: Any, tmp_path: Path
) -> None:
    data = write_questions(tmp_path / "photos", photos, ["what is in this picture ?"])
    options = ["--data", data, "--num-samples", 2, "--num-frozen", 3, "--until-stable", "--max-samples", 3, "--json"]
    result = run("push", BASE, REPO, *options)
    assert result.returncode == 0, result.stderr
    push = json.loads(result.stdout)
    rounds = Scores.load(tmp_path / "faster.scores.json").until_stable
    assert rounds == {"num_frozen": 3, "rounds": [2, 3], "stable": False}

    published = hub.files(REPO, push["tag"])
    config = json.loads(published["config.json"])
    assert config["model_type"] == "shortv_llava"
    assert len(config["frozen_layers"]) == 3
    assert published["model.safetensors"] == (tiny_base() / "model.safetensors").read_bytes()
    assert hub.commits(REPO)[0].sha == push["commit"]

    # Pushing the finished package finds nothing to do.
    again = run("push", "faster", REPO, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["changed"] is False
    assert hub.token not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-frozen", 9], "cannot freeze 9 of 4 layers"),
        (["--max-kl", -1], "nats"),
        (["--until-stable", "--max-samples", 2], "fewer than the first 40"),
    ],
)
def test_push_checks_its_options_before_it_scores(
    run: Any, tiny_base: Any, tmp_path: Path, options: list[Any], words: str
) -> None:
    result = run("push", tiny_base(), REPO, *options)
    assert words in one_line(result)
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == PLACES


@pytest.mark.parametrize(("token", "words"), [("", "no token"), ("hf_reader", "write")])
def test_a_push_that_cannot_succeed_fails_before_any_work(
    hub: LoopbackHub, run: Any, tmp_path: Path, token: str, words: str
) -> None:
    hub.add_token("hf_reader", "loopback", role="read")
    result = run("push", "loopback/missing", REPO, HF_TOKEN=token)
    assert words in one_line(result)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not token or token not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == PLACES
