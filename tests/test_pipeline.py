"""The verbs of the pipeline make each check once and pass its result on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from shortv_export import pipeline
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Budget, Choice, Contents, Conversion, Placement, Samples, Scoring, Target
from shortv_export.records.scores import Scores
from tests.support.packages import write_questions

# The checks, and the rooms that call them.
CHECKS = (
    ("base", "resolve_base"),
    ("base", "fetch_weights"),
    ("selection", "preview_selection"),
    ("packaging.build", "inherited_metadata"),
    ("packaging", "inherited_metadata"),
    ("packaging.build", "_check_empty"),
    ("packaging.build", "_check_room"),
    ("publish", "inspect_repository"),
)
# A package is compared with its recipe when it is verified and when it is published, not again to evaluate it.
INSPECTIONS = (("verification.checks", "inspect_package"), ("publish.push", "inspect_package"))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of calls of each check, by name."""
    counts: Counter[str] = Counter()

    def counted(name: str, check: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return check(*arguments, **options)

        return counting

    for room, name in (*CHECKS, *INSPECTIONS):
        module = import_module(f"shortv_export.{room}")
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counts


@pytest.fixture
def base(hub: LoopbackHub, tiny_base: Callable[..., Path]) -> str:
    hub.create_repo("acme/base", files={path.name: path for path in tiny_base().iterdir()})
    return "acme/base"


@pytest.fixture
def photo_folder(photos: dict[str, Any], tmp_path: Path) -> str:
    questions = ("is there a cat ?", "what is in this picture ?")
    return str(write_questions(tmp_path / "photos", photos, questions, (96, 64)))


def test_push_makes_each_check_once(
    hub: LoopbackHub, base: str, photo_folder: str, tmp_path: Path, checks: Counter[str]
) -> None:
    conversion = Conversion(
        out=tmp_path / "made", evaluate=2, samples=Samples(photo_folder, 2), budget=Budget(max_kl=1e6)
    )
    pipeline.push(base, "loopback/model", conversion=conversion)
    assert Scores.load(tmp_path / "made.scores.json").positions == "answer"
    assert checks == {**dict.fromkeys({name for _, name in CHECKS}, 1), "inspect_package": 2}
    # The Hub is asked once for the user and once for the base's commit.
    assert sum(request.path == "/api/whoami-v2" for request in hub.requests) == 1
    assert sum(request.path == "/api/models/acme/base/revision/main" for request in hub.requests) == 1


def test_what_could_not_be_compared_is_not_published(
    hub: LoopbackHub, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortv_export.verification.checks.available_memory", lambda: 0)
    conversion = Conversion(out=tmp_path / "made", choice=Choice(frozen_layers=(1,)))
    with pytest.raises(ShortVError, match=r"made is verified except memory .*; to publish it all the same, push that"):
        pipeline.push(base, "loopback/model", conversion=conversion)
    assert "loopback/model" not in hub.repos
    pipeline.push(str(tmp_path / "made"), "loopback/model")
    assert "shortv.json" in hub.files("loopback/model")


@pytest.mark.parametrize(
    ("command", "seen"),
    [
        (
            lambda base, folder, out: pipeline.score(base, output=out, samples=Samples(folder, 1)),
            {"resolve_base", "fetch_weights", "preview_selection"},
        ),
        (
            lambda base, folder, out: pipeline.package(base, out, choice=Choice(frozen_layers=(1,))),
            {
                "resolve_base",
                "fetch_weights",
                "preview_selection",
                "inherited_metadata",
                "_check_empty",
                "_check_room",
            },
        ),
        (
            lambda base, folder, out: pipeline.push(
                base,
                "loopback/model",
                target=Target(dry_run=True),
                conversion=Conversion(out=out, choice=Choice(frozen_layers=(1,))),
            ),
            {"resolve_base", "preview_selection", "inherited_metadata", "inspect_repository"},
        ),
    ],
    ids=["score", "package", "push --dry-run"],
)
def test_other_commands_make_each_check_once(
    base: str, photo_folder: str, tmp_path: Path, checks: Counter[str], command: Any, seen: set[str]
) -> None:
    command(base, photo_folder, tmp_path / "out")
    assert checks == dict.fromkeys(seen, 1)


@pytest.mark.parametrize(
    ("conversion", "words"),
    [
        (Conversion(budget=Budget(num_frozen=9)), "cannot freeze 9 of 4 layers"),
        (Conversion(budget=Budget(max_kl=-1)), "nats"),
        (Conversion(scoring=Scoring(stream=True), evaluate=2), "`evaluate` does not apply with `stream`"),
        (Conversion(scoring=Scoring(until_stable=True, max_samples=2)), "fewer than the first 40"),
        (Conversion(contents=Contents(recipe=Path("shortv.json"))), "`recipe` does not apply to a base; make"),
        (Conversion(choice=Choice(scores=Path("missing.json"))), "does not exist"),
    ],
)
def test_a_push_that_cannot_succeed_fetches_no_weights(
    hub: LoopbackHub, base: str, tmp_path: Path, conversion: Conversion, words: str
) -> None:
    with pytest.raises(pipeline.ShortVError, match=words):
        pipeline.push(base, "loopback/model", conversion=conversion)
    assert not any("safetensors" in request.path for request in hub.requests)
    assert "loopback/model" not in hub.repos


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda base, out: pipeline.package(base, out), "say which layers to freeze"),
        (
            lambda base, out: pipeline.score(
                base, output=out, scoring=Scoring(stream=True), placement=Placement(device_map="auto")
            ),
            "`device_map` does not apply with `stream`",
        ),
    ],
    ids=["package", "score"],
)
def test_other_commands_that_cannot_succeed_fetch_no_weights(
    hub: LoopbackHub, base: str, tmp_path: Path, call: Any, words: str
) -> None:
    with pytest.raises(pipeline.ShortVError, match=words):
        call(base, tmp_path / "out")
    assert not any("safetensors" in request.path for request in hub.requests)
