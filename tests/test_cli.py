"""The command line in this process: files, exit status, messages."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from shortv_export import pipeline
from shortv_export.base.cost import flops_ratio
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError, without_secrets
from shortv_export.measure.partial_results import PartialResults
from shortv_export.measure.scorer import Scorer
from shortv_export.options import Budget, Samples, Scoring
from shortv_export.records.evaluation import Evaluation
from shortv_export.records.scores import Scores
from shortv_export.selection.operators import select_operators
from tests.support.definition import edit_config, frozen_kl
from tests.support.packages import write_questions
from tests.support.typed import one_line, parse


@pytest.fixture
def question_folder(tmp_path: Path, photos: dict[str, Any]) -> Path:
    """Eight samples: two questions about each of four photographs."""
    questions = ("what is in this picture ?", "is there a cat in this picture ?")
    return write_questions(tmp_path / "photos", photos, questions)


def test_each_step_reads_the_file_of_the_step_before(
    run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path
) -> None:
    base = tiny_base()
    scores = tmp_path / "scores.json"
    assert run("score", base, "--data", question_folder, "--num-samples", 4, "--output", scores)[0] == 0
    visual = Scores.load(scores).visual
    lowest = sorted(sorted(range(4), key=visual.__getitem__)[:2])

    status, out, _ = run("package", base, tmp_path / "package", "--scores", scores, "--num-frozen", 2, "--json")
    assert status == 0
    assert json.loads(out)["frozen_layers"] == lowest
    assert json.loads((tmp_path / "package" / "config.json").read_text())["frozen_layers"] == lowest

    status, out, _ = run("verify", tmp_path / "package", "--json")
    assert status == 3, "the base was a folder, which is not named"
    assert json.loads(out)["verdict"] == "verified except"
    assert all(check["passed"] is not False for check in json.loads(out)["checks"])


def kl_of_the_lowest(base: Path, order: list[int], folder: Path, digests: list[str]) -> list[float]:
    """Mean KL(base || frozen) of held-out samples, by the definition, for the first 1, 2, ... layers of `order`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from shortv_export.samples.draw import draw_samples
    from shortv_export.samples.encode import encode_samples

    model = AutoModelForImageTextToText.from_pretrained(base).eval()
    processor = AutoProcessor.from_pretrained(base)
    every = draw_samples(Samples(str(folder), num_samples=1000), allow_fewer=True).samples
    inputs = [encode_samples(processor, [sample]) for digest in digests for sample in every if sample.digest == digest]
    image = model.config.image_token_id
    return [
        fmean(frozen_kl(model, one, order[:count], one["input_ids"] == image).item() for one in inputs)
        for count in range(1, len(order) + 1)
    ]


def test_package_within_a_divergence(run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path) -> None:
    base = tiny_base(num_layers=6)
    scores = tmp_path / "scores.json"
    assert run("score", base, "--data", question_folder, "--num-samples", 3, "--output", scores)[0] == 0
    loaded = Scores.load(scores)
    order = sorted(range(6), key=lambda layer: (loaded.visual[layer], -layer))
    held_out, means = [], []
    for number in range(6):
        # A bound that `number` layers keep and one more does not.
        bound = (means[number - 1] + means[number]) / 2 if number else 1e-12
        out = tmp_path / f"package-{number}"
        options = ["--data", question_folder, "--num-samples", 4, "--max-kl", bound]
        options += ["--granularity", "layer", "--json"]
        status, output, error = run("package", base, out, "--scores", scores, *options)
        assert status == 0, error
        made = json.loads(output)
        record = made["selection"]["evidence"]["held_out"]
        if not number:
            held_out = record["sample_digests"]
            means = kl_of_the_lowest(base, order, question_folder, held_out)
            assert means == sorted(means), "the comparison needs divergences that grow"
        # Freezing the last layer changes nothing, because nothing reads its visual tokens.
        assert made["frozen_layers"] == sorted(order[: max(1, number)])
        assert made["selection"]["budget"] == {"max_kl": bound, "seed": 0}
        for probe in made["selection"]["evidence"]["probes"]:
            assert probe["kl"] == pytest.approx(means[probe["num_frozen"] - 1], rel=1e-4, abs=1e-9)
            assert probe["standard_error"] > 0 or probe["num_frozen"] == 1
        assert record["sample_digests"] == held_out
        assert not {*held_out} & {*loaded.calibration["sample_digests"]}
        assert (record["seed"], record["num_samples"]) == (1, 4)
    # Without --json, each measurement is printed. Rebuilding measures nothing.
    status, _, told = run("package", base, tmp_path / "told", "--scores", scores, *options[:-1])
    assert status == 0
    assert told.count(" frozen together: KL ") == len(made["selection"]["evidence"]["probes"])
    status, _, error = run("package", base, tmp_path / "again", "--recipe", tmp_path / "told" / "shortv.json")
    assert status == 0, error
    assert (tmp_path / "again" / "README.md").read_bytes() == (tmp_path / "told" / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-kl", -1, "--data", "{data}"], "nats"),
        (["--max-kl", 0.1, "--num-frozen", 2, "--data", "{data}"], "give one of them"),
        (["--max-kl", 0.1], "local files; name them with --data"),
        (["--max-kl", 0.1, "--data", "{data}", "--num-samples", 8], "besides the 3 that are set apart"),
    ],
)
def test_unusable_choice_is_one_line_and_leaves_nothing(
    run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path, options: list[Any], words: str
) -> None:
    scores = tmp_path / "scores.json"
    assert run("score", tiny_base(), "--data", question_folder, "--num-samples", 3, "--output", scores)[0] == 0
    before = sorted(tmp_path.iterdir())
    arguments = [str(option).format(data=question_folder) for option in options]
    status, out, err = run("package", tiny_base(), tmp_path / "out", "--scores", scores, *arguments)
    assert (status, out) == (1, "")
    assert words in one_line(err)
    assert sorted(tmp_path.iterdir()) == before


def test_selection_methods(run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    assert run("score", tiny_base(), "--data", question_folder, "--num-samples", 2, "--output", scores)[0] == 0
    distances = Scores.load(scores).visual_cosine_distance
    options = ["--num-frozen", 2, "--json"]
    status, out, _ = run(
        "package", tiny_base(), tmp_path / "cosine", "--scores", scores, "--method", "cosine", *options
    )
    assert status == 0
    assert json.loads(out)["frozen_layers"] == sorted(sorted(range(4), key=distances.__getitem__)[:2])
    assert "--method cosine" in (tmp_path / "cosine" / "README.md").read_text()

    drawn = set()
    for seed in range(6):
        folder = tmp_path / f"random-{seed}"
        status, out, _ = run("package", tiny_base(), folder, "--method", "random", "--seed", seed, *options)
        assert status == 0
        made = json.loads(out)
        assert made["selection"]["budget"] == {"num_frozen": 2, "seed": seed}
        assert made["scores"] is None
        drawn.add(tuple(made["frozen_layers"]))
    assert len(drawn) > 1
    assert "--method random --num-frozen 2 --seed 5" in (folder / "README.md").read_text()


def test_stability_of_a_selection(run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    arguments = ["score", tiny_base(), "--data", question_folder, "--output", scores]
    status, out, _ = run(*arguments, "--num-samples", 4, "--num-frozen", 3, "--json")
    assert status == 0
    found = json.loads(out)["boundary"]
    assert (found["num_frozen"], found["num_samples"], len(found["selection_frequency"])) == (3, 4, 4)
    status, _, err = run("package", tiny_base(), tmp_path / "package", "--scores", scores, "--num-frozen", 3)
    assert status == 0
    line = f"stability: layer {found['inside']} (frozen) ranks before layer {found['outside']} (not frozen) in"
    assert f"{line} {found['order_kept']:.0%} of bootstrap resamples" in err
    recipe = json.loads((tmp_path / "package" / "shortv.json").read_text())
    assert recipe["selection"]["evidence"]["boundary"] == found

    status, out, _ = run(*arguments, "--num-samples", 1)
    assert status == 0
    assert "with 2 frozen layers, stability: unknown from a single sample" in out


def test_samples_are_added_until_the_selection_is_stable(
    run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path
) -> None:
    base = tiny_base()
    scores = tmp_path / "scores.json"
    arguments = ["score", base, "--data", question_folder, "--output", scores, "--until-stable"]

    # All four layers are selected in every round.
    status, _, err = run(*arguments, "--num-samples", 2, "--num-frozen", 4)
    assert status == 0
    loaded = Scores.load(scores)
    assert loaded.until_stable == {"num_frozen": 4, "rounds": [2, 3, 4], "stable": True}
    assert loaded.num_samples == 4
    assert "round 3: 4 samples; 0 of the 4 selected layers were not selected in the round before" in err
    assert "the selection is stable" in err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("scores")] == ["scores.json"]
    # The scores are those of one measurement of all samples.
    assert run(*arguments[:-1], "--num-samples", 4)[0] == 0
    assert replace(loaded, until_stable=None) == Scores.load(scores)

    # Two rounds are too few.
    assert run(*arguments, "--num-samples", 2, "--max-samples", 3)[0] == 0
    assert Scores.load(scores).until_stable == {"num_frozen": 2, "rounds": [2, 3], "stable": False}
    # So are all eight samples.
    status, _, err = run(*arguments, "--num-samples", 7)
    assert status == 0
    assert Scores.load(scores).until_stable == {"num_frozen": 2, "rounds": [7, 8], "stable": False}
    assert "may still change after 8 samples: it stayed the same for " in err


def test_rounds_select_by_the_budget(tiny_base: Any, question_folder: Path, tmp_path: Path) -> None:
    samples, scoring = Samples(str(question_folder), 2), Scoring(until_stable=True, max_samples=3)
    base, output = str(tiny_base()), tmp_path / "scores.json"
    ratio = flops_ratio(resolve_base(base).layer_shapes, (0, 1, 2), 64, 16)
    budget = Budget(flops_ratio=ratio)
    scores = pipeline.score(base, output=output, samples=samples, scoring=scoring, budget=budget)
    # Single operators are counted: at least as many as three layers have.
    assert scores.until_stable is not None
    assert (scores.until_stable["rounds"], scores.until_stable["stable"]) == ([2, 3], False)
    frozen = select_operators(scores, budget, resolve_base(base).layer_shapes, 16).frozen
    assert scores.until_stable["num_frozen"] == len(frozen.parts) >= 6
    with pytest.raises(ShortVError, match="out of reach"):
        pipeline.score(base, output=output, samples=samples, scoring=scoring, budget=Budget(flops_ratio=0.01))


@pytest.mark.parametrize(
    ("command", "option", "typed", "words"),
    [
        ("score", "--dtype", "bf16", "'bf16' is not one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ("score", "--divergence", "sideways", "'forward', 'reverse'"),
        ("score", "--positions", "sideways", "'answer', 'first'"),
        ("score", "--max-memory", "lots", "is no limit of memory"),
        ("evaluate", "--max-memory", "cpu=lots", "is not an amount of memory"),
        ("push", "--weights", "none", "'copy', 'reference'"),
        ("push", "--card", "both", "'package', 'hub'"),
        ("package", "--weights", "none", "'copy', 'reference'"),
        ("package", "--method", "greedy", "'lc', 'cosine', 'random'"),
        ("package", "--granularity", "head", "'operator', 'layer'"),
        ("package", "--preset", "mine", "paper"),
        ("package", "--frozen-layers", "", "the list of frozen layers is empty"),
        ("package", "--frozen-layers", "one,two", "'one' is not a whole number"),
        ("package", "--frozen-attention", "1.5", "'1.5' is not a whole number"),
        ("package", "--frozen-ffn", "5-2", "'5-2' is no range of layers"),
    ],
)
def test_choices_are_checked_when_they_are_parsed(
    run: Any, tmp_path: Path, command: str, option: str, typed: str, words: str
) -> None:
    status, out, err = run(command, tmp_path / "nowhere", *["a/b"] * (command in ("package", "push")), option, typed)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: Invalid value for '{option}': ")
    assert words in err
    assert err.endswith(f"; see shortv-export {command} --help.\n")
    assert err.count("\n") == 1


def test_ranges_of_layers(run: Any, tiny_base: Any, tmp_path: Path) -> None:
    options = ("--frozen-layers", "0", "--frozen-attention", "1-2", "--frozen-ffn", "3", "--json")
    status, out, err = run("package", tiny_base(), tmp_path / "out", *options)
    assert status == 0, err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["frozen_layers"], config["frozen_attention"], config["frozen_ffn"]) == ([0], [1, 2], [3])
    assert json.loads(out)["frozen_attention"] == [1, 2]


def test_rounds_measure_no_sample_twice(
    run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    add = PartialResults.add

    def count(self: Any, digest: str, *measurement: Any) -> None:
        measured.append(digest)
        add(self, digest, *measurement)

    monkeypatch.setattr(PartialResults, "add", count)
    arguments = ["--data", question_folder, "--num-samples", 2, "--max-samples", 8, "--until-stable"]
    assert run("score", tiny_base(), *arguments, "--output", tmp_path / "scores.json")[0] == 0
    digests = Scores.load(tmp_path / "scores.json").calibration["sample_digests"]
    assert sorted(measured) == sorted(digests)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--until-stable", "--num-samples", 5, "--max-samples", 4], "fewer than the first 5"),
        (["--until-stable", "--num-frozen", 9], "cannot freeze 9 of 4 layers"),
        (["--stream", "--num-samples", 2, "--max-memory", "cpu=400KB"], "too little memory"),
    ],
)
def test_unusable_measurement_is_one_line_and_leaves_nothing(
    run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path, options: list[Any], words: str
) -> None:
    output = tmp_path / "scores.json"
    status, _, err = run("score", tiny_base(), "--data", question_folder, "--output", output, *options)
    assert status == 1
    assert words in one_line(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_divergence_and_batch_size(run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path) -> None:
    def score(name: str, *options: Any) -> Scores:
        output = tmp_path / name
        assert run("score", tiny_base(), "--data", question_folder, "--output", output, *options)[0] == 0
        return Scores.load(output)

    forward = score("forward.json", "--num-samples", 2)
    small = score("small.json", "--num-samples", 2, "--max-batch-tokens", 1)
    reverse = score("reverse.json", "--num-samples", 2, "--divergence", "reverse")
    assert small.visual == pytest.approx(forward.visual, rel=1e-4)
    assert (forward.divergence, reverse.divergence) == ("kl(original||ablated)", "kl(ablated||original)")
    assert reverse.visual != pytest.approx(forward.visual, rel=1e-4)


def break_nothing(base: Path) -> None:
    pass


def only_pickles(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def truncate_shard(base: Path) -> None:
    shard = base / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def remove_shard(base: Path) -> None:
    (base / "model.safetensors").unlink()


def change_config(**fields: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        edit_config(base, **fields)

    change.__name__ = "config_" + "_".join(fields)
    return change


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (break_nothing, ["--frozen-layers", "0,4"], ["4", "0"]),
        (break_nothing, ["--frozen-layers", "1,1"], ["1"]),
        (break_nothing, ["--preset", "paper"], ["llava-hf/llava-1.5-7b-hf"]),
        (break_nothing, [], ["--scores", "--preset", "--frozen-layers"]),
        (break_nothing, ["--scores", "{other_scores}"], ["3", "4"]),
        (break_nothing, ["--scores", "{missing}"], ["does not exist"]),
        (only_pickles, ["--frozen-layers", "1"], ["safetensors"]),
        (truncate_shard, ["--frozen-layers", "1"], ["model.safetensors"]),
        (remove_shard, ["--frozen-layers", "1"], ["safetensors"]),
        (change_config(model_type="bert"), ["--frozen-layers", "1"], ["bert", "llava, llava_next"]),
        (change_config(image_token_index=..., image_token_id=...), ["--frozen-layers", "1"], ["image"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Any,
    tiny_base: Any,
    tmp_path: Path,
    damage: Callable[[Path], None],
    options: list[str],
    words: list[str],
) -> None:
    base = shutil.copytree(tiny_base(), tmp_path / "base")
    damage(base)
    Scores((0.1, 0.2, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 1).save(tmp_path / "other.json")
    before = sorted(tmp_path.iterdir())

    places = {"other_scores": tmp_path / "other.json", "missing": tmp_path / "missing.json"}
    status, out, err = run("package", base, tmp_path / "out", *(option.format(**places) for option in options))

    assert (status, out) == (1, "")
    assert all(word in one_line(err) for word in words), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["package", "{tmp}/nowhere", "{tmp}/out", "--frozen-layers", "1"], "nowhere"),
        (["score", "{base}", "--data", "{tmp}/empty", "--output", "{tmp}/scores.json"], "image"),
        (["score", "{base}", "--data", "{tmp}/nowhere", "--output", "{tmp}/scores.json"], "nowhere"),
        (["verify", "{tmp}/empty"], "shortv.json"),
        (["package", "{base}", "{tmp}/full", "--frozen-layers", "1"], "not empty"),
        (["demo", "--output", "{tmp}/full"], "demo"),
    ],
)
def test_bad_places_are_one_line(
    run: Any,
    tiny_base: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    if arguments[0] == "demo":
        monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    status, _, err = run(*(argument.format(tmp=tmp_path, base=tiny_base()) for argument in arguments))
    assert status == 1
    assert words in one_line(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
    assert (tmp_path / "full" / "precious").exists()


def test_wrong_usage_is_status_2(run: Any) -> None:
    assert run("package")[0] == 2
    assert run("score", "base", "--num-samples", "many")[0] == 2
    assert run("nothing")[0] == 2


def test_a_traceback_needs_debug(run: Any, tmp_path: Path) -> None:
    arguments = ("package", tmp_path / "nowhere", tmp_path / "out", "--frozen-layers", "1")
    assert "Traceback" not in run(*arguments)[2]
    with pytest.raises(ShortVError):
        run("--debug", *arguments)


COMMANDS = ("score", "package", "verify", "evaluate", "compare", "push", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run: Any, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both names, with an example that can be typed, and each option in a panel."""
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = run(command, "-h")
    assert (status, err) == (0, "")
    assert out == run(command, "--help")[1]
    (example,) = re.findall(r"^ Example: shortv-export (.*?) *$", out, re.MULTILINE)
    parse(shlex.split(example))
    assert example.startswith(f"{command} ")
    for flag in ("--json", "-q", "--quiet"):
        assert re.search(rf"{flag}\b", out.partition("What is printed")[2])
    assert ("--token" in out) == (command != "demo")
    assert re.search(r"--out(put)?\b +-o ", out) or command in ("package", "verify", "compare")


def test_quiet_is_one_line(run: Any, hub: Any, tiny_base: Any, question_folder: Path, tmp_path: Path) -> None:
    base, scores, package = tiny_base(), tmp_path / "scores.json", tmp_path / "package"
    assert run("score", base, "--data", question_folder, "--num-samples", 2, "-o", scores, "-q") == (
        0,
        f"{scores}\n",
        "",
    )
    assert Scores.load(scores).num_samples == 2
    assert run("package", base, package, "--scores", scores, "--quiet") == (0, f"{package}\n", "")
    assert run("push", package, "loopback/x", "-q") == (0, f"{hub.url}/loopback/x\n", "")
    status, out, err = run("verify", package, "-q")
    assert (status, out, err) == (3, "verified except\n", "")
    result = tmp_path / "evaluation.json"
    options = ("--data", question_folder, "--num-samples", 2, "--no-speed", "--max-new-tokens", 2, "-o", result)
    assert run("evaluate", package, *options, "-q") == (0, f"{result}\n", "")
    assert Evaluation.load(result).max_new_tokens == 2
    assert run("verify", package, "-q", "--json")[::2] == (
        2,
        "error: --quiet does not apply with --json; leave it out.\n",
    )


def test_completion(tmp_path: Path) -> None:
    """As a shell asks for it, and as it is installed."""

    def shell(*arguments: str, **variables: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "shortv_export", *arguments],
            env={**os.environ, "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def complete(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        return shell(**words, _SHORTV_EXPORT_COMPLETE="complete_bash").split()

    assert complete("shortv-export pac") == ["package"]
    assert complete("shortv-export push x y --card ") == ["package", "hub"]
    assert complete("shortv-export score x --num-sa") == ["--num-samples"]
    unknown = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # which looks at the parent process
    assert "_SHORTV_EXPORT_COMPLETE=complete_bash" in shell("--show-completion", "bash", **unknown)
    shell("--install-completion", "bash", **unknown)
    assert "shortv-export" in (tmp_path / ".bashrc").read_text()


def test_token(run: Any, hub: Any, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts more than all others, for this command alone, and is shown nowhere, whatever it looks like."""
    hub.create_repo("loopback/base", files={path.name: path for path in tiny_base().iterdir()}, private=True)
    good, bad = hub.token, "secret-of-nobody"
    monkeypatch.setenv("HF_TOKEN", bad)
    monkeypatch.setenv("HF_OIDC_RESOURCE", "loopback/other")
    package = ("package", "loopback/base", tmp_path / "out", "--frozen-layers", "1")
    status, out, err = run(*package, "--token", good)
    assert status == 0, err
    assert run("push", tmp_path / "out", "loopback/x", "--token", good)[0] == 0
    assert (os.environ["HF_TOKEN"], os.environ["HF_OIDC_RESOURCE"]) == (bad, "loopback/other")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert good.encode() not in path.read_bytes()
    monkeypatch.setenv("HF_TOKEN", good)
    status, out, err = run("push", tmp_path / "out", "loopback/x", "--token", bad)
    assert (status, out) == (1, "")
    assert "token is not valid" in one_line(err)
    for typed in ("", "short", f"{bad}\n", f"{bad}\u00e9"):
        status, out, err = run("push", tmp_path / "out", "loopback/x", "--token", typed)
        assert (status, out) == (2, "")
        assert "no token" in one_line(err)
        assert bad not in err
    # Also where a library tells afterwards what it sent.
    assert without_secrets(f"Bad header: {bad}") == "Bad header: hf_***"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom shortv_export import cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["score", "nowhere", "--output", "{tmp}/folder"], "is a folder"),
        (["score", "nowhere", "--output", "{tmp}/file/scores.json"], "Not a directory"),
        (["score", "nowhere", "--output", "/dev/null"], "is no regular file"),
        (["score", "nowhere", "--output", "/proc/scores.json"], "cannot write"),
        (["score", "nowhere", "--output", "{tmp}/{long}"], "File name too long"),
        (["evaluate", "nowhere", "--output", "{tmp}/folder"], "is a folder"),
        (["evaluate", "nowhere", "--output", "/sys/evaluation.json"], "cannot write"),
        (["package", "{base}", "{tmp}/{long}", "--frozen-layers", "1"], "File name too long"),
        (["package", "{base}", "/proc/package", "--frozen-layers", "1"], "cannot write"),
        (["package", "{base}", "{tmp}/file/package", "--frozen-layers", "1"], "Not a directory"),
        (["package", "{base}", "/", "--frozen-layers", "1"], "is a mount point"),
        (["demo", "--output", "/proc/demo"], "cannot write"),
    ],
)
def test_the_output_is_looked_at_first(
    run: Any, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    if arguments[0] == "demo":
        monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    places = {"tmp": tmp_path, "base": tiny_base(), "long": "x" * 300}
    status, out, err = run(*(argument.format(**places) for argument in arguments))
    assert (status, out) == (1, "")
    assert reason in one_line(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_push_looks_at_the_files_beside_its_package(
    run: Any, hub: Any, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_score", lambda *_: pytest.fail("it was measured"))
    for name in ("scores", "evaluation"):
        (tmp_path / f"out.{name}.json").mkdir()
        arguments = ["push", tiny_base(), "loopback/x", "--out", tmp_path / "out", "--license", "mit"]
        status, out, err = run(*arguments)
        assert (status, out) == (1, "")
        assert f"out.{name}.json is a folder" in one_line(err)
        (tmp_path / f"out.{name}.json").rmdir()
    assert list(hub.repos) == []


def test_what_was_measured_is_kept_if_it_cannot_be_written(
    run: Any, tiny_base: Any, question_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk becomes full after the last sample."""
    save, limit = Scores.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(scores: Scores, path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        try:
            save(scores, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    output = tmp_path / "scores.json"
    arguments = ["score", tiny_base(), "--data", question_folder, "--num-samples", 2, "--output", output]
    with monkeypatch.context() as patch:
        patch.setattr(Scores, "save", full)
        status, _, err = run(*arguments)
    assert status == 1
    kept = "2 samples are kept, run the same command to go on"
    assert one_line(err) == f"error: cannot write {output}: File too large; {kept}\n"
    monkeypatch.setattr(Scorer, "_measure", lambda *_: pytest.fail("it was measured again"))
    status, _, err = run(*arguments)
    assert status == 0
    assert Scores.load(output).num_samples == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "scores.json"]


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_measurement_goes_on(
    run: Any,
    tiny_base: Any,
    question_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
    word: str,
) -> None:
    output = tmp_path / "scores.json"
    arguments = ["score", tiny_base(), "--data", question_folder, "--num-samples", 3, "--output", output]
    add = PartialResults.add

    def stop(self: PartialResults, *result: Any) -> None:
        add(self, *result)
        if len(self.values) == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(PartialResults, "add", stop)
        found, _, err = run(*arguments)
    kept = "2 samples are kept, run the same command to go on"
    assert (found, err.splitlines()[-1]) == (status, f"{word}; {kept}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "scores.json.partial.jsonl"]
    partial = tmp_path / "scores.json.partial.jsonl"
    partial.write_bytes(partial.read_bytes().replace(b"0.", b"9.", 1) + b"[null]\n")
    found, _, err = run(*arguments)
    assert found == 0
    assert f"warning: {partial}: 2 damaged lines are left out; their samples are measured again\n" in err
    resumed = Scores.load(output)
    assert run(*arguments)[0] == 0
    assert Scores.load(output) == resumed


def test_demo(tmp_path: Path) -> None:
    """`make demo` shows it as text."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-m", "shortv_export", "demo", "--output", str(tmp_path / "demo"), "--json"],
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "untouched")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    names = ["base model", "score", "package", "verify", "evaluate", "publish", "load"]
    assert [step["step"] for step in made["steps"]] == names
    assert "ShortVLlavaForConditionalGeneration" in made["steps"][-1]["result"]
    assert made["push"]["tag"] in made["steps"][-2]["result"]
    assert made["package"] == str(tmp_path / "demo" / "package")
    assert made["card"] == str(tmp_path / "demo" / "package" / "README.md")
    assert made["evaluation"] == json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    assert not (tmp_path / "untouched").exists()
    config = json.loads((tmp_path / "demo" / "package" / "config.json").read_text())
    scores = Scores.load(tmp_path / "demo" / "scores.json")
    assert scores.positions == "answer"
    joint = json.loads((tmp_path / "demo" / "package" / "shortv.json").read_text())["selection"]["evidence"]["joint"]
    assert joint["operators"]["kl"] < joint["layers"]["kl"]
    assert config["frozen_ffn"]
    evaluation = Evaluation.load(tmp_path / "demo" / "evaluation.json")
    (shortv,) = (row for row in evaluation.rows if row.chosen)
    assert {name: list(layers) for name, layers in shortv.frozen.operators.items()}.items() <= config.items()
    assert sum(row.baseline for row in evaluation.rows) >= 4
    # Whole layers at the same FLOPs, by Layer Contribution.
    (layers,) = (row for row in evaluation.rows if row.name.startswith("layers "))
    order = sorted(range(12), key=scores.visual.__getitem__)
    assert layers.frozen_layers == tuple(sorted(order[: len(layers.frozen_layers)]))
    assert layers.flops_ratio <= shortv.flops_ratio
