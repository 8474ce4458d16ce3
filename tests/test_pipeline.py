"""The verbs: each thing that could stand in the way of a command is looked at once, and the result is handed on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export import pipeline
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Budget, Choice, Contents, Conversion, Samples, Scoring, Target

# What is looked at, and where it is called from.
LOOKS = (
    ("base", "resolve_base"),
    ("base", "fetch_weights"),
    ("selection", "foresee"),
    ("packaging.build", "inherited_metadata"),
    ("packaging", "inherited_metadata"),
    ("packaging.build", "_check_empty"),
    ("packaging.build", "_check_room"),
    ("publish", "look_at"),
)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each look was taken, by name."""
    counts: Counter[str] = Counter()
    for module, name in LOOKS:
        place = f"shortv_export.{module}.{name}"
        monkeypatch.setattr(place, counted(counts, name, pytest.importorskip(f"shortv_export.{module}")))
    return counts


def counted(counts: Counter[str], name: str, module: Any) -> Callable[..., Any]:
    look = getattr(module, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        counts[name] += 1
        return look(*arguments, **options)

    return counting


@pytest.fixture
def base(hub: LoopbackHub, tiny_base: Callable[..., Path]) -> str:
    hub.create_repo("acme/base", files={path.name: path for path in tiny_base().iterdir()})
    return "acme/base"


@pytest.fixture
def photo_folder(photos: dict[str, Any], tmp_path: Path) -> str:
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for name, image in photos.items():
        image.resize((96, 64)).save(folder / f"{name}.png")
        for question in ("is there a cat ?", "what is in this picture ?"):
            lines.append(json.dumps({"file_name": f"{name}.png", "question": question, "answer": "yes"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


def test_a_push_looks_once(
    hub: LoopbackHub, base: str, photo_folder: str, tmp_path: Path, looks: Counter[str]
) -> None:
    conversion = Conversion(
        out=tmp_path / "made", evaluate=2, samples=Samples(photo_folder, 2), budget=Budget(max_kl=1e6)
    )
    pipeline.push(base, "loopback/model", conversion=conversion)
    assert looks == dict.fromkeys({name for _, name in LOOKS}, 1)
    # The Hub's own count: who asks, and which commit the base's name stands for.
    assert sum(request.path == "/api/whoami-v2" for request in hub.requests) == 1
    assert sum(request.path == "/api/models/acme/base/revision/main" for request in hub.requests) == 1


@pytest.mark.parametrize(
    ("command", "seen"),
    [
        (
            lambda base, folder, out: pipeline.score(base, output=out, samples=Samples(folder, 1)),
            {"resolve_base", "fetch_weights", "foresee"},
        ),
        (
            lambda base, folder, out: pipeline.package(base, out, choice=Choice(frozen_layers=(1,))),
            {"resolve_base", "fetch_weights", "foresee", "inherited_metadata", "_check_empty", "_check_room"},
        ),
        (
            lambda base, folder, out: pipeline.push(
                base,
                "loopback/model",
                target=Target(dry_run=True),
                conversion=Conversion(out=out, choice=Choice(frozen_layers=(1,))),
            ),
            {"resolve_base", "foresee", "inherited_metadata", "look_at"},
        ),
    ],
    ids=["score", "package", "push --dry-run"],
)
def test_other_commands_look_once(
    base: str, photo_folder: str, tmp_path: Path, looks: Counter[str], command: Any, seen: set[str]
) -> None:
    command(base, photo_folder, tmp_path / "out")
    assert looks == dict.fromkeys(seen, 1)


@pytest.mark.parametrize(
    ("conversion", "words"),
    [
        (Conversion(budget=Budget(num_frozen=9)), "cannot freeze 9 of 4 layers"),
        (Conversion(budget=Budget(max_kl=-1)), "nats"),
        (Conversion(scoring=Scoring(stream=True), evaluate=2), "`evaluate` runs the whole model"),
        (Conversion(scoring=Scoring(until_stable=True, max_samples=2)), "fewer than the first 40"),
        (Conversion(contents=Contents(recipe=Path("shortv.json"))), "`recipe` makes a package again"),
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
