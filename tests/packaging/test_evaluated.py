"""An evaluation in its package: the card shows it, the recipe pins it, the Hub gets it, a rebuild makes it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortv_export import cli, pipeline
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.files import exchange
from shortv_export.options import Budget, Conversion, Samples, Target
from shortv_export.packaging import build, update
from shortv_export.packaging.evaluation_files import check_task, evaluation_files
from shortv_export.packaging.figures import draw_sweep
from shortv_export.packaging.package import Package
from shortv_export.packaging.seal import UNNAMED
from shortv_export.packaging.update import add_evaluation, require_updatable
from shortv_export.records.evaluation import Accuracy, Estimate, Evaluation, Fidelity, Pair, Row, Speed
from shortv_export.records.recipe import Recipe
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from tests.support.packages import inspected, make_package, publish

LAYERS = 4
FROZEN = (1, 3)
SCORES = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2, calibration={"data": "x"})
REPO = "loopback/model"
BENCHMARK = {
    "data": "acme/bench",
    "sources": [{"repo_id": "acme/bench", "revision": "b" * 40, "config": None, "split": "test"}],
    "seed": 8,
    "overlap": 0,
    "group_by": "task",
    "task_id": "reading",
}


def estimate(mean: float, width: float = 0.03) -> Estimate:
    return Estimate(mean, mean - width, mean + 2 * width)


def speed(text: int, visual: int, times: tuple[float, float], at: str = "given") -> Speed:
    ratio, limit = times[0] / times[1], 1.9
    return Speed(
        at=at,
        text_tokens=text,
        visual_tokens=visual,
        repeats=7,
        first_token_seconds=Pair(0.0317, 0.0213) if at == "data" else None,
        prefill_seconds=Pair(*times),
        tokens_per_second=Pair((text + visual) / times[0], (text + visual) / times[1]),
        peak_memory=Pair(14.123e9, 13.456e9),
        flops=Pair(3.8e12, 2.0e12),
        expected_flops=Pair(3.8e12, 2.0e12),
        flops_difference=0.00123,
        ratios=(*(ratio - 0.07,) * 3, ratio, *(ratio + 0.05,) * 3),
        control_ratios=(0.943, *(0.967,) * 2, 1.011, *(1.027,) * 2, 1.084),
        speed_up=ratio,
        control=1.011,
        limit=limit,
        share_of_limit=ratio / limit,
    )


def row(frozen: tuple[int, ...] | None, shift: float, **fields: Any) -> Row:
    """Numbers that all differ, and by `shift` from those of other rows."""
    accuracy = Accuracy(48, estimate(0.711), estimate(0.711 - shift), estimate(-shift), 7, 5, 0.774)
    values: dict[str, Any] = {
        "name": f"{len(frozen or ())} of 4",
        "frozen_layers": frozen,
        "chosen": False,
        "baseline": False,
        "flops_ratio": None,
        "fidelity": Fidelity(
            64,
            estimate(0.00456 + shift, 0.001),
            estimate(0.953 - shift),
            estimate(0.0123 + shift, 0.002),
            estimate(0.891 - shift),
        ),
        "accuracy": accuracy,
        "groups": {},
        "speed": (speed(35, 576, (0.125, 0.0731 + shift / 9), "data"), speed(64, 2880, (0.611, 0.322 + shift / 3))),
    }
    return Row(**(values | fields))


def evaluation_of(recipe: Recipe, **fields: Any) -> Evaluation:
    groups = {
        "text | in *images*": Accuracy(30, estimate(0.8), estimate(0.6), estimate(-0.2), 6, 0, 0.03125),
        "colour": Accuracy(32, estimate(0.7), estimate(0.71), estimate(0.01), 2, 3, 1.0),
        "few": Accuracy(
            19, Estimate(0.9, None, None), Estimate(0.4, None, None), Estimate(-0.5, None, None), 9, 0, None
        ),
    }
    values: dict[str, Any] = {
        "package": {"repo_id": None, "revision": None},
        "recipe_sha256": recipe.sha256,
        "base": {"repo_id": recipe.base.repo_id, "revision": recipe.base.revision},
        "num_layers": LAYERS,
        "data": {key: value for key, value in BENCHMARK.items() if key != "task_id"},
        "max_new_tokens": 32,
        "dtype": "bfloat16",
        "device": "An Accelerator (80 GB)",
        "statistics": {"level": 0.95, "seed": 0},
        "versions": {"shortv-export": "0.1.0", "torch": "2.13.0"},
        "notes": ("Something that a reader must know.",),
        "rows": (row((), 0.0), row(FROZEN, 0.0417, chosen=True, groups=groups), row((0, 1, 3), 0.0733)),
    }
    return Evaluation(**(values | fields))


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., Path]) -> Path:
    return tiny_base(num_shards=2)


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "package"
    return make_package(resolve_base(base), out, Selection(FROZEN, LAYERS, "lc", {"num_frozen": 2}), scores=SCORES)


@pytest.fixture
def package(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "package")


def evaluate(package: Path, **fields: Any) -> Evaluation:
    """Puts made-up numbers into a package, of one benchmark unless others are given."""
    opened = Package.open(package)
    require_updatable(opened, sweep=True)
    evaluation = evaluation_of(replace(opened.recipe, measured={}), **({"data": BENCHMARK} | fields))
    add_evaluation(opened, evaluation)
    return evaluation


def content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def failures(package: Path) -> list[str]:
    return [check.detail for check in inspected(package) if not check.passed]


def section(card: str, title: str) -> str:
    """From a heading to the next one of any level; code is not looked into."""
    text = re.sub(r"^```.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)
    (found,) = re.findall(rf"^#+ {re.escape(title)}$(.*?)(?=^#)", text, re.DOTALL | re.MULTILINE)
    return found


def table(card: str, title: str) -> dict[str, list[list[str]]]:
    """The rows of a section's only table: the first cell, and the numbers of each other cell."""
    lines = [line for line in section(card, title).splitlines() if line.startswith("|")]
    assert re.fullmatch(r"\|(:?-+:?\|)+", lines[1])
    assert len({line.count("|") for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {first: [re.findall(r"[-+]?\d+(?:\.\d+)?", cell) for cell in rest] for first, *rest in cells}


def same(found: list[list[str]], *expected: tuple[float, ...]) -> bool:
    """Whether a table's row has these values, cell by cell, rounded to the digits that it shows and nothing else."""
    pairs = [pair for cell, values in zip(found, expected, strict=True) for pair in zip(cell, values, strict=True)]
    return all(abs(float(text) - value) <= 0.5001 * 10 ** -len(text.partition(".")[2]) for text, value in pairs)


def ends(estimate: Estimate, factor: float = 1) -> tuple[float, ...]:
    assert estimate.low is not None
    assert estimate.high is not None
    return factor * estimate.low, factor * estimate.high


def test_the_card_shows_the_files_numbers(package: Path) -> None:
    before = (package / "README.md").read_text(encoding="utf-8")
    assert "Measured" not in before
    evaluate(package, rows=(*evaluation_of(Recipe.load(package / "shortv.json")).rows, row(None, 0.2, baseline=True)))
    card = (package / "README.md").read_text(encoding="utf-8")
    stored = Evaluation.load(package / "evaluation.json")
    chosen = stored.chosen

    fidelity = table(card, "Fidelity to the base")
    for name, value, factor in (
        ("same most likely first token", chosen.fidelity.top1_agreement, 100),
        ("same answer, token for token", chosen.fidelity.exact_match, 100),
        ("KL(base ‖ this model) of the first token, nats", chosen.fidelity.first_token_kl, 1),
        ("KL(base ‖ this model) per token of the base's answer, nats", chosen.fidelity.answer_kl, 1),
    ):
        assert same(fidelity[name], (factor * value.mean,), ends(value, factor))
    assert len(fidelity) == 4

    accuracy = table(card, "Accuracy")
    assert list(accuracy) == ["all", "`few`", "`text / in *images*`", "`colour`"]  # the worst group first
    for name, value in (("all", chosen.accuracy), ("`colour`", chosen.groups["colour"])):
        assert value is not None
        percent = [(100 * each.mean,) for each in (value.base, value.changed, value.difference)]
        tested = ((value.lost,), (value.gained,), (value.p_value,))
        assert same(accuracy[name], (value.num_samples,), *percent, ends(value.difference, 100), *tested)
    assert accuracy["`few`"][4:] == [[], ["9"], ["0"], []]
    worse = section(card, "What gets worse")
    assert "fell in `text / in *images*` (-20.0 points)." in worse
    assert "Too few samples for a verdict: `few`." in worse
    assert "colour" not in worse
    lead = card.split("## Use")[0]
    assert (
        "on 48 samples: **accuracy goes from 71.1 % to 66.9 %, which chance may explain; the most is lost in "
        "`text / in *images*`, from 80.0 % to 60.0 %**. 84.9 % of answers are the same"
    ) in lead
    assert "a prompt **1.61 times as fast** (1.54 to 1.66 in 7 rounds) on `An Accelerator (80 GB)`." in lead

    timed = table(card, "Prefill speed")
    for name, value in zip(("35 + 576, the median sample", "64 + 2880"), chosen.speed, strict=True):
        first, prefill, memory = (
            tuple(scale * x for x in (pair.base, pair.changed)) if pair else ()
            for pair, scale in (
                (value.first_token_seconds, 1e3),
                (value.prefill_seconds, 1e3),
                (value.peak_memory, 1e-9),
            )
        )
        speed_up, control = (
            (median, min(ratios), max(ratios))
            for median, ratios in ((value.speed_up, value.ratios), (value.control, value.control_ratios))
        )
        numbers = (first, prefill, speed_up, control, (value.limit,), (100 * value.share_of_limit,), memory)
        assert same(timed[name], *numbers)
    speed_section = section(card, "Prefill speed")
    assert "`An Accelerator (80 GB)`" in speed_section
    assert "medians of 7 rounds" in speed_section
    assert "0.12 %" in speed_section

    swept = table(card, "Other numbers of frozen layers")
    assert list(swept) == ["0", "**2**", "3"]
    for numbers, value in zip(swept.values(), stored.sweep, strict=True):
        assert value.accuracy is not None
        shares = [(100 * each.mean,) for each in (value.fidelity.exact_match, value.accuracy.changed)]
        kl = (value.fidelity.first_token_kl.mean,)
        assert same(numbers, kl, *shares, (value.speed[0].speed_up,), (value.speed[0].limit,))
    assert len(table(card, "Other methods")) == 2
    how = section(card, "Measured")
    for words in (
        "64 samples",
        "`acme/bench`",
        "not used to choose the layers",
        "at most 32 tokens",
        "`bfloat16`",
        "95 %",
    ):
        assert words in how
    for words in ("torch `2.13.0`", "- Something that a reader must know."):
        assert words in card
    (command,) = re.findall(r"^shortv-export evaluate (.*?)\n```", card, re.DOTALL | re.MULTILINE)
    assert " ".join(command.replace("\\\n", " ").split()) == (
        f"{UNNAMED} --data acme/bench --num-samples 64 --seed 7 --group-by task --task reading "
        "--max-new-tokens 32 --dtype bfloat16 --sweep 0,3 --at 64+2880 --baselines"
    )


def test_only_what_was_measured(package: Path) -> None:
    """A single sample without answers, speed or a sweep: no section, no interval and no number for them."""
    alone = Estimate(0.5, None, None)
    bare = row(FROZEN, 0.0, chosen=True, fidelity=Fidelity(1, *[alone] * 4), accuracy=None, speed=())
    evaluate(package, rows=(bare,), data={"sources": [{"format": "imagefolder"}], "data": "local files"})
    card = (package / "README.md").read_text(encoding="utf-8")
    for title in (
        "### Accuracy",
        "### Speed",
        "### Other numbers",
        "### Other methods",
        "accuracy fell",
        ".png)\n\nThe l",
    ):
        assert title not in card
    assert "| same answer, token for token | 50.0 % | - |" in card
    assert "1 sample of the publisher's own data. Both" in card
    lead = card.split("## Use")[0]
    assert "on 1 sample only: **too few to say how often its answers are worse than the base's**." in lead
    assert "50.0 %" not in lead
    assert "times as fast" not in lead
    assert "--data DATA --num-samples 1" in card
    assert "--no-speed" in card
    assert not (package / "frozen_layers_sweep.png").exists()
    assert failures(package) == []


@pytest.mark.parametrize(
    ("fields", "says", "never"),
    [
        (
            {"accuracy": Accuracy(48, estimate(0.9), estimate(0.6), estimate(-0.3), 15, 1, 0.0005)},
            ["**accuracy falls from 90.0 % to 60.0 %**.", "accuracy fell over all samples (-30.0 points)."],
            ["most is lost"],
        ),
        (
            {"accuracy": Accuracy(48, estimate(0.9), estimate(0.9), estimate(0), 2, 2, 1.0)},
            ["**accuracy stays at 90.0 %**.", "fell nowhere by more than chance explains"],
            ["from 90.0 %"],
        ),
        (
            {"accuracy": None},
            ["**10.9 % of answers differ from the base's**; whether"],
            ["accuracy fell", "ccuracy g"],
        ),
        (
            {"accuracy": Accuracy(19, *[Estimate(0.5, None, None)] * 3, 9, 0, None)},
            ["**10.9 % of answers differ from the base's**; whether"],
            ["accuracy fell", "ccuracy goes"],
        ),
        (
            {"fidelity": Fidelity(19, *[Estimate(0.5, None, None)] * 4), "accuracy": None},
            ["on 19 samples only: **too few"],
            ["50.0 % of answers"],
        ),
    ],
    ids=["fell", "same", "no answers", "few answers", "few samples"],
)
def test_the_lead_names_the_loss(package: Path, fields: dict[str, Any], says: list[str], never: list[str]) -> None:
    evaluate(package, rows=(row(FROZEN, 0.0, chosen=True, **fields),), data={"sources": []})
    card = (package / "README.md").read_text(encoding="utf-8")
    for words in says:
        assert words in card
    for words in never:
        assert words not in card


def test_a_noisy_machine_voids_the_speed(package: Path) -> None:
    """A control off by 14 %: the card shows that, and nowhere the speed-up that was measured beside it."""
    quiet = speed(35, 576, (0.125, 0.0862), "data")
    noisy = replace(quiet, control_ratios=(1.0, 1.0, 1.1, 1.14, 1.2, 1.2, 1.2), control=1.14)
    assert (quiet.too_noisy, noisy.too_noisy) == (False, True)
    # The median is 1 and the rounds are not.
    assert replace(quiet, control_ratios=(0.5, 0.6, 0.94, 1.0, 1.06, 1.6, 1.7), control=1.0).too_noisy
    assert not replace(quiet, control_ratios=(0.5, 0.96, 0.97, 1.0, 1.04, 1.6, 1.7), control=1.0).too_noisy
    rows = (row((), 0.0, speed=(quiet,)), row(FROZEN, 0.05, chosen=True, speed=(noisy,)))
    evaluate(package, rows=rows)
    card = (package / "README.md").read_text(encoding="utf-8")
    lead = card.split("## Use")[0]
    assert "could not be measured](#prefill-speed): the machine was too noisy." in lead
    assert "times as fast" not in card
    assert not re.search(r"1\.45|1\.38|1\.50", section(card, "Prefill speed"))
    line = next(line for line in card.splitlines() if line.startswith("| 35 + 576, the median sample"))
    assert "| too noisy | 1.14 (1.00 to 1.20) | 1.90 | - |" in line
    assert table(card, "Other numbers of frozen layers")["**2**"][-2:] == [[], ["1.90"]]
    assert draw_sweep(rows) != draw_sweep((rows[0], replace(rows[1], speed=(quiet,))))


def test_hostile_text_stays_text(package: Path) -> None:
    hostile = "x\n# Evil <script>alert(1)</script> [a](javascript:b) | ` ```"
    data = {
        "data": hostile,
        "sources": [{"repo_id": hostile}],
        "seed": hostile,
        "overlap": hostile,
        "group_by": hostile,
    }
    named = row((), 0.1, name=hostile, baseline=True)
    chosen = row(
        FROZEN, 0.1, chosen=True, groups={hostile: Accuracy(30, *[Estimate(-0.5, -0.6, -0.4)] * 3, 9, 0, 0.004)}
    )
    evaluate(
        package,
        rows=(chosen, named),
        data=data,
        notes=(hostile,),
        device=hostile,
        dtype=hostile,
        versions={hostile: hostile},
    )
    body = (package / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]
    assert "\n# Evil" not in body
    outside = re.sub(r"```.*?\n```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert "Evil" in outside
    for markup in (r"(?<!\\)<script", r"(?<!\\)\]\(javascript", r"(?<!\\)\| `"):
        assert not re.search(markup, outside.split("### Other methods")[1])
    assert "<script" not in outside.replace(r"\<script", "")


def test_the_recipe_pins_the_evaluation(package: Path, base: Path, tmp_path: Path) -> None:
    """Evaluated in place is what a rebuild makes, byte for byte; and the other way round nothing is lost."""
    before, tag = content(package), Package.open(package).tag
    (package / ".git").mkdir()
    (package / ".git" / "config").write_text("mine")
    inode = (package / "model-00001-of-00002.safetensors").stat().st_ino
    evaluate(package)
    assert (package / "model-00001-of-00002.safetensors").stat().st_ino == inode  # not copied
    assert (package / ".git" / "config").read_text() == "mine"
    shutil.rmtree(package / ".git")
    # Nobody else can write to it, neither through the base nor through what is left of the old folder.
    assert all(path.stat().st_nlink == 1 for path in package.rglob("*") if path.is_file())
    after = content(package)
    added = {"evaluation.json", "frozen_layers_sweep.png", ".eval_results/acme--bench.yaml"}
    assert after.keys() - before.keys() == added
    assert {name for name in before if before[name] != after[name]} == {"README.md", "shortv.json"}
    assert Package.open(package).tag != tag
    assert f'revision = "{Package.open(package).tag}"' in after["README.md"].decode()
    assert failures(package) == []
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    pipeline.rebuild(package / "shortv.json", tmp_path / "again", base=str(base))
    assert content(tmp_path / "again") == after
    # Evaluated again, with less: what is no longer measured goes.
    evaluate(package, data={"sources": []}, rows=evaluation_of(Recipe.load(package / "shortv.json")).rows[1:2])
    assert content(package).keys() - before.keys() == {"evaluation.json"}
    assert failures(package) == []


def test_a_rebuild_needs_the_evaluation(package: Path, base: Path, tmp_path: Path) -> None:
    evaluate(package)
    alone = tmp_path / "alone" / "shortv.json"
    alone.parent.mkdir()
    shutil.copy(package / "shortv.json", alone)
    message = f"the recipe's package was evaluated; put its evaluation.json beside {alone}."
    for text in (None, b"{}", (package / "evaluation.json").read_bytes() + b"\n"):
        if text is not None:
            (alone.parent / "evaluation.json").write_bytes(text)
        with pytest.raises(ShortVError) as refused:
            pipeline.rebuild(alone, tmp_path / "out", base=str(base))
        assert str(refused.value) == message
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"base": {"repo_id": "acme/other", "revision": None}}, "another base"),
        ({"num_layers": 5}, "another base"),
        ({"rows": (row((0,), 0.1, chosen=True),)}, "other frozen layers"),
        ({"recipe_sha256": "0" * 64}, "another recipe"),
    ],
)
def test_an_evaluation_of_another_package(package: Path, change: dict[str, Any], reason: str) -> None:
    before = content(package)
    message = f"of another package ({reason}); measure this one with `shortv-export evaluate`."
    with pytest.raises(ShortVError, match=re.escape(message)) as refused:
        evaluate(package, **change)
    assert "\n" not in str(refused.value)
    assert content(package) == before
    assert [path.name for path in package.parent.iterdir()] == ["package"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: (p / "README.md").write_text((p / "README.md").read_text() + "Mine.\n"), "README.md was changed"),
        (
            lambda p: (p / "config.json").unlink(),
            "is not a complete package: files: missing from the package: config.json",
        ),
        (
            lambda p: (p / ".eval_results").mkdir() or (p / ".eval_results" / "x.yaml").touch(),
            "not of the package: .eval",
        ),
    ],
)
def test_packages_that_take_no_evaluation(package: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(package)
    before = content(package)
    with pytest.raises(ShortVError, match=words) as refused:
        require_updatable(Package.open(package))
    assert "\n" not in str(refused.value)
    assert content(package) == before


def test_a_repository_takes_no_evaluation() -> None:
    with pytest.raises(ShortVError, match="which is no folder, and only a folder's card can be updated"):
        pipeline.evaluate("acme/model", update_card=True)


def test_other_drawing_libraries(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "library_versions", lambda *names: dict.fromkeys(names, "0"))
    with pytest.raises(ShortVError, match=r"were drawn with matplotlib \d[\d.]+; install that version\.$"):
        require_updatable(Package.open(package), sweep=True)
    require_updatable(Package.open(package))


@pytest.mark.parametrize("fails", [1, 2])
def test_a_failed_replacement_leaves_the_package(package: Path, fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two renames fails, on a system that cannot swap two names."""
    before, calls, rename = content(package), [], os.rename

    def failing(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == fails:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(exchange, "_swap", lambda *_: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ShortVError, match=r"cannot replace .*: No space left on device"):
        evaluate(package)
    assert content(package) == before
    assert [path.name for path in package.parent.iterdir()] == ["package"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_kill_leaves_the_whole_old_or_the_whole_new_package(
    package: Path, swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child process updates the package and is killed before each of its changes to the disk in turn."""
    opened = Package.open(package)
    evaluation = evaluation_of(opened.recipe, data=BENCHMARK)
    files = evaluation_files(evaluation)
    monkeypatch.setattr(build, "evaluation_files", lambda _: files)  # drawing takes longest, and is the same each time
    if not swaps:
        monkeypatch.setattr(exchange, "_swap", lambda *_: False)
    spare = shutil.copytree(package, tmp_path / "spare" / "package")
    updated = shutil.copytree(package, tmp_path / "updated" / "package")
    add_evaluation(Package.open(updated), evaluation)
    old, new, seen, status = content(package), content(updated), [], -1
    place = tmp_path / "place" / "package"
    for step in range(1, 1000):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(spare, place)
        (place / ".git").mkdir()
        child = os.fork()
        if child == 0:
            kill_at(step, place.parent)
            add_evaluation(replace(opened, name=str(place), folder=place), evaluation)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if swaps:
            assert content(place) in (old, new), step
        Package.open(place)  # finishes what was left, or puts it back
        assert (place / ".git").is_dir(), step
        assert [path.name for path in place.parent.iterdir()] == ["package"], step
        seen.append(["old", "new"][[old, new].index(content(place))])
        if status == 0:
            break
    assert seen == sorted(seen, reverse=True), "first the old one, then the new one"
    assert seen.count("old") > 3
    assert seen.count("new") > 1, "no kill came after the replacement"


def kill_at(step: int, folder: Path) -> None:
    """Kills this process before its so manieth change of the folder. The hook cannot be taken off again."""
    changes = ("os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree")
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        inside = event in changes and folder in Path(os.fsdecode(arguments[0])).parents
        if inside or event == "ctypes.dlsym":  # just before the swap
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: (p / "evaluation.json").unlink(), "missing from the package: evaluation.json"),
        (lambda p: (p / "evaluation.json").write_text("{}"), "evaluation.json was changed after the package was eval"),
        (lambda p: (p / "frozen_layers_sweep.png").write_bytes(b""), "frozen_layers_sweep.png was changed"),
        (lambda p: (p / ".eval_results" / "acme--bench.yaml").write_text("x"), "acme--bench.yaml was changed"),
        (
            lambda p: (p / ".eval_results" / "acme--bench.yaml").unlink(),
            "missing from the package: .eval_results/acme",
        ),
        (lambda p: (p / ".eval_results" / "more.yaml").touch(), "not of the package: .eval_results/more.yaml"),
    ],
)
def test_damage_is_found(package: Path, damage: Callable[[Path], object], words: str) -> None:
    evaluate(package)
    damage(package)
    (found,) = failures(package)
    assert words in found


def test_a_package_of_an_older_release(package: Path) -> None:
    """Evaluating it again would not help: its card is another one. So that is what is said, not that a file is old."""
    evaluate(package)
    old = json.loads((package / "evaluation.json").read_text("utf-8")) | {"format": 1}
    (package / "evaluation.json").write_text(json.dumps(old), encoding="utf-8")
    recipe = json.loads((package / "shortv.json").read_text("utf-8"))
    recipe["measured"]["evaluation.json"] = hashlib.sha256((package / "evaluation.json").read_bytes()).hexdigest()
    for template, words in (
        (
            recipe["card"]["template"],
            r"not an evaluation of format 2; evaluate again with `shortv-export evaluate`\.$",
        ),
        ("0" * 64, r"the recipe's card would be different with this release; install "),
    ):
        recipe["card"]["template"] = template
        (package / "shortv.json").write_text(json.dumps(recipe), encoding="utf-8")
        (found,) = failures(package)
        assert re.search(words, found)


@pytest.mark.parametrize("name", ["../evil.json", "evil.py", ".eval_results/../evil.yaml", "model.safetensors"])
def test_recipes_name_no_other_files(package: Path, name: str) -> None:
    data = json.loads((package / "shortv.json").read_text(encoding="utf-8"))
    (package / "shortv.json").write_text(json.dumps(data | {"measured": {name: "0" * 64}}), encoding="utf-8")
    with pytest.raises(ShortVError, match="its measured is missing, or not what belongs there"):
        Recipe.load(package / "shortv.json")


def test_hub_format(package: Path) -> None:
    """What the Hub's own client reads back."""
    from huggingface_hub import EvalResultEntry
    from huggingface_hub._eval_results import parse_eval_result_entries

    recipe = Recipe.load(package / "shortv.json")
    files = evaluation_files(evaluation_of(recipe, data=BENCHMARK))
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/acme--bench.yaml"]))
    assert isinstance(entry, EvalResultEntry)
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("acme/bench", "reading", "b" * 40)
    assert entry.value == pytest.approx(66.93)  # percent: 0.711 - 0.0417
    assert entry.notes is not None
    assert entry.notes.startswith("48 samples, drawn at random; greedy answers of at most 32 tokens")
    assert list(evaluation_files(evaluation_of(recipe))) == ["evaluation.json", "frozen_layers_sweep.png"]
    for data in ({"task_id": "x"}, BENCHMARK | {"sources": [{"repo_id": "../../x", "revision": "b"}]}):
        with pytest.raises(ShortVError, match="has no accuracy on one data set of the Hub"):
            evaluation_files(evaluation_of(recipe, data=data))


def test_figure(package: Path) -> None:
    from PIL import Image

    rows = evaluation_of(Recipe.load(package / "shortv.json")).rows
    png = draw_sweep(rows)
    assert png == draw_sweep(rows)
    chosen_moved = (*(replace(each, chosen=False) for each in rows[:2]), replace(rows[2], chosen=True))
    assert len({png, draw_sweep(chosen_moved), draw_sweep(tuple(replace(each, speed=()) for each in rows))}) == 3
    image = Image.open(io.BytesIO(png))
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0))[3] == 0  # no background: it lies on light and dark pages
    assert not image.info.keys() & {"Software", "Creation Time", "date"}
    evaluate(package)
    card = (package / "README.md").read_text(encoding="utf-8")
    alt = re.search(r"!\[(.+)\]\(frozen_layers_sweep\.png\)", card)
    assert alt is not None
    assert "85% of answers are the same at the chosen 2, and 82% at 3." in alt[1]
    assert "1.61 times as fast" in alt[1]


def test_push(hub: Any, package: Path) -> None:
    """Everything in one commit; what was tagged before the evaluation stays what it was."""
    first = publish(package, REPO)
    evaluate(package)
    second = publish(package, REPO)
    assert len(hub.commits(REPO)) == 3  # with the repository's first
    assert set(second.added) == {
        "README.md",
        "shortv.json",
        "evaluation.json",
        "frozen_layers_sweep.png",
        ".eval_results/acme--bench.yaml",
    }
    assert set(hub.files(REPO, "main")) - {".gitattributes"} == set(content(package))
    assert set(hub.files(REPO, first.tag)) & set(second.added) == {"README.md", "shortv.json"}
    assert not publish(package, REPO).changed
    evaluate(package, data={"sources": []})
    third = publish(package, REPO)
    assert third.deleted == (".eval_results/acme--bench.yaml",)
    assert hub.errors == []


EVAL_YAML = (
    b"name: Bench\ntasks:\n  - id: reading\n    config: default\n    split: test\n  - id: hard\n    config: hard\n"
)


@pytest.mark.parametrize(
    ("files", "task", "source", "words"),
    [
        ({"eval.yaml": EVAL_YAML}, "reading", {}, None),
        ({"eval.yaml": EVAL_YAML}, "hard", {"config": "hard", "split": "anything"}, None),
        ({"eval.yaml": EVAL_YAML}, "reading", {"split": "train"}, "is `data` acme/bench:config=default,split=test"),
        ({"eval.yaml": EVAL_YAML}, "hard", {}, "is `data` acme/bench:config=hard,split=test"),
        ({"eval.yaml": EVAL_YAML}, "none", {}, r"has no task 'none'; there are: reading, hard\."),
        ({"eval.yaml": b"tasks: 3"}, "reading", {}, "cannot be read"),
        ({"eval.yaml": b"tasks: [{"}, "reading", {}, "cannot be read"),
        ({"data.txt": b"x"}, "reading", {}, "is not a benchmark: it has no eval.yaml"),
        ({"eval.yaml": EVAL_YAML}, "reading", {"repo_id": None}, "not from a single data set there"),
    ],
)
def test_tasks(hub: Any, files: dict[str, bytes], task: str, source: dict[str, Any], words: str | None) -> None:
    commit = hub.create_repo("datasets/acme/bench", files=files)
    known = {"repo_id": "acme/bench", "revision": commit, "config": None, "split": "test"} | source
    data = {"sources": [{key: value for key, value in known.items() if key != "repo_id" or value}]}
    if words is None:
        return check_task(task, data)
    with pytest.raises(ShortVError, match=words) as refused:
        check_task(task, data)
    assert "\n" not in str(refused.value)


@pytest.fixture
def questions(tmp_path: Path, photos: dict[str, Any]) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    lines = []
    for name, image in photos.items():
        image.resize((96, 64)).save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "question": "is there a cat ?", "answer": "yes"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_push_from_a_base(hub: Any, base: Path, questions: Path, tmp_path: Path) -> None:
    """Scored on two photographs, evaluated on the two others, published in one commit that a stranger can verify."""
    conversion = Conversion(
        out=tmp_path / "made", evaluate=2, samples=Samples(str(questions), 2), budget=Budget(num_frozen=2)
    )
    forecast = pipeline.push(str(base), REPO, target=Target(dry_run=True), conversion=conversion)
    assert "evaluation.json" in forecast.summary
    pipeline.push(str(base), REPO, conversion=conversion)
    made = content(tmp_path / "made")
    assert set(hub.files(REPO, "main")) - {".gitattributes"} == set(made)
    assert len(hub.commits(REPO)) == 2  # with the repository's first
    evaluation = Evaluation.load(tmp_path / "made" / "evaluation.json")
    assert evaluation.chosen.fidelity.num_samples == 2
    assert evaluation.data["overlap"] == 0
    # A number of layers needs no scores of single operators.
    assert Scores.load(tmp_path / "made.scores.json").positions is None
    assert "--no-operators" in made["README.md"].decode()
    assert made["evaluation.json"] == (tmp_path / "made.evaluation.json").read_bytes()
    assert "## Measured" in made["README.md"].decode()
    assert failures(tmp_path / "made") == []
    with pytest.raises(ShortVError, match="is a package; evaluate it first: shortv-export evaluate"):
        pipeline.push(str(tmp_path / "made"), REPO, conversion=Conversion(evaluate=2))


def test_command(package: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--data", questions, "--num-samples", 2, "--force-overlap", "--no-speed", "--update-card"]
    command = ["evaluate", package, *options, "--output", tmp_path / "out.json", "--max-new-tokens", 2]
    monkeypatch.setattr(sys, "argv", ["shortv-export", *map(str, command)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (package / "evaluation.json").read_bytes() == (tmp_path / "out.json").read_bytes()
    assert failures(package) == []
    # An edited card is refused before anything is measured.
    (package / "README.md").write_text("mine", encoding="utf-8")
    (tmp_path / "out.json").unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert not (tmp_path / "out.json").exists()
    assert (package / "README.md").read_text(encoding="utf-8") == "mine"
