"""Evaluation against its definition: the stock model with visual rows put back, run token by token."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

from shortv_export import pipeline
from shortv_export.base import flops_ratio
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.evaluation import evaluate as evaluation
from shortv_export.evaluation.changes import frozen_lists, shortv
from shortv_export.evaluation.evaluate import load_package, require_evaluable
from shortv_export.evaluation.fidelity import Answers, measure_fidelity
from shortv_export.evaluation.report import notes_on, tables
from shortv_export.evaluation.summary import accuracy_of, fidelity_of, mean_interval, normalised
from shortv_export.options import Comparison, Questions, Samples, parse_sweep
from shortv_export.packaging.package import Package
from shortv_export.records.evaluation import FEW_SAMPLES, TOO_NOISY, Estimate, Evaluation
from shortv_export.records.frozen import Frozen
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from shortv_export.samples import Sample
from shortv_export.samples.draw import DrawnSamples, draw_samples
from shortv_export.samples.encode import Encoder, encode_samples
from tests.support import packages
from tests.support.definition import oracle
from tests.support.interrupted import interrupted_after

LAYERS = 4
FROZEN = (0, 2)
VISUAL = (0.2, 0.3, 0.1, 0.4)  # the scores: the order is 2, 0, 1, 3
NEW_TOKENS = 5


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Any]) -> Path:
    """Eight samples: four photographs with two questions each; those about cats have an answer."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for name, image in photos.items():
        image.resize((96, 64)).save(folder / f"{name}.png")
        about = {"file_name": f"{name}.png", "task": "cats", "question": "is there a cat ?", "answer": "the  cat."}
        lines += [about, about | {"task": "pictures", "question": "what is in this picture ?", "answer": None}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture
def make_package(tiny_base: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """``make_package(frozen_layers, calibration={...} or None, **tiny_base's arguments)``: a package's folder."""

    def make(
        frozen_layers: tuple[int, ...] = FROZEN, calibration: dict[str, Any] | None = None, **arguments: Any
    ) -> str:
        scores = None
        if calibration is not None:
            scores = Scores(VISUAL, VISUAL, (0.0,) * LAYERS, 1, calibration=calibration)
        selection = Selection(frozen_layers, LAYERS, "given" if scores is None else "lc")
        base = resolve_base(tiny_base(**arguments))
        return str(packages.make_package(base, tmp_path / "package", selection, scores=scores))

    return make


def checked(package: str) -> Package:
    opened = Package.open(package)
    require_evaluable(opened)
    return opened


def digests(data: Path) -> list[str]:
    return [sample.digest for sample in draw_samples(Samples(str(data), num_samples=8)).samples]


def greedy(model: Any, inputs: Any, answer: list[int] | None = None) -> tuple[list[int], torch.Tensor]:
    """An answer token by token without a cache (or `answer` itself), and the log-probabilities before each token."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    tokens: list[int] = []
    steps = []
    while len(tokens) < (NEW_TOKENS if answer is None else len(answer)):
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": ids, "attention_mask": mask}, use_cache=False).logits[0, -1]
        steps.append(logits.double().log_softmax(-1))
        tokens.append(int(logits.argmax()) if answer is None else answer[len(tokens)])
        ids = torch.cat([ids, torch.tensor([tokens[-1:]])], 1)
        mask = torch.cat([mask, torch.ones(1, 1, dtype=mask.dtype)], 1)
        if tokens[-1] == model.generation_config.eos_token_id:
            break
    return tokens, torch.stack(steps)


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_fidelity_is_that_of_the_definition(
    make_package: Callable[..., str], tiny_base: Callable[..., Path], questions: Path, model_type: str
) -> None:
    base = tiny_base(model_type=model_type)
    stock, processor = AutoModelForImageTextToText.from_pretrained(base), AutoProcessor.from_pretrained(base)
    samples = draw_samples(Samples(str(questions), num_samples=4)).samples
    expected = []
    for sample in samples:
        inputs = encode_samples(processor, [sample])
        answer, plain = greedy(stock, inputs)
        with oracle(stock, {"frozen_layers": FROZEN}):
            own, _ = greedy(stock, inputs)
            _, changed = greedy(stock, inputs, answer)
        kl = functional.kl_div(changed, plain, reduction="none", log_target=True).sum(-1)
        same_first = bool(plain[0].argmax() == changed[0].argmax())
        texts = [processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in (answer, own)]
        expected.append((kl[0].item(), kl.mean().item(), same_first, answer == own, *texts))

    package = checked(make_package(model_type=model_type))
    model, encoder = load_package(package), Encoder(package.base, remote_code=True)
    changes = [shortv(Frozen(FROZEN), LAYERS), shortv(Frozen(), LAYERS)]
    found, unchanged = measure_fidelity(model, encoder, samples, changes, max_new_tokens=NEW_TOKENS)
    for answers, (first_kl, kl_mean, same_first, same, text, own_text) in zip(found, expected, strict=True):
        assert answers.first_token_kl == pytest.approx(first_kl, rel=1e-3)
        assert answers.answer_kl == pytest.approx(kl_mean, rel=1e-3)
        assert (answers.top1_agreement, answers.exact_match) == (same_first, same)
        assert (answers.base, answers.changed) == (text, own_text)
    assert max(answers.answer_kl for answers in found) > 0.01, "the comparison needs differences"
    # With nothing frozen the model is its base, bit for bit.
    for answers in unchanged:
        assert (answers.first_token_kl, answers.answer_kl) == (0.0, 0.0)
        assert answers.top1_agreement
        assert answers.exact_match
    assert model.config.frozen_layers == []


def test_means_and_paired_differences(questions: Path) -> None:
    samples = draw_samples(Samples(str(questions), num_samples=8)).samples
    samples = tuple(sorted(samples, key=lambda sample: sample.answer is None))
    answers = [
        Answers(kl, 2 * kl, kl < 2, kl < 1, base, changed)
        for kl, base, changed in (
            (0.0, "Cat", "cat"),
            (1.0, "a cat", "dog"),
            (2.0, "cat!", "the cat"),
            (3.0, "dog", "rocket"),
            *((0.0, "cat", "cat"),) * 4,
        )
    ]
    fidelity = fidelity_of(answers)
    assert fidelity.num_samples == 8
    assert (fidelity.first_token_kl.mean, fidelity.answer_kl.mean) == (0.75, 1.5)
    assert (fidelity.top1_agreement.mean, fidelity.exact_match.mean) == (0.75, 0.625)
    accuracy = accuracy_of(answers, samples)
    assert accuracy is not None
    assert (accuracy.num_samples, accuracy.base.mean, accuracy.changed.mean) == (4, 0.75, 0.5)
    assert accuracy.difference.mean == -0.25
    assert (accuracy.lost, accuracy.gained) == (1, 0)
    assert accuracy_of(answers[4:], samples[4:]) is None
    # Below 20 samples, no interval and no verdict.
    estimates = (*vars(fidelity).values(), accuracy.base, accuracy.changed, accuracy.difference)
    assert {(each.low, each.high) for each in estimates if isinstance(each, Estimate)} == {(None, None)}
    assert (accuracy.p_value, accuracy.fell) == (None, False)


def right_and_wrong(lost: int, gained: int, both: int) -> tuple[list[Answers], list[Sample]]:
    """Samples that only the base answers right, only the changed model, and both."""
    pairs = [("cat", "dog")] * lost + [("dog", "cat")] * gained + [("cat", "cat")] * both
    answers = [
        Answers(0.1 * n, 0.2, base == changed, base == changed, base, changed)
        for n, (base, changed) in enumerate(pairs)
    ]
    return answers, [SimpleNamespace(answer="cat", group=None)] * len(pairs)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("lost", "gained", "both", "p_value", "fell"),
    [
        # Two-sided: twice the tail of a binomial with 1/2, by hand.
        (6, 0, 14, 2 / 2**6, True),
        (5, 0, 15, 2 / 2**5, False),
        (0, 6, 14, 2 / 2**6, False),  # it rose
        (9, 1, 30, 2 * (1 + 10) / 2**10, True),
        (3, 3, 20, 1.0, False),
        (0, 0, 20, 1.0, False),
        (19, 0, 0, None, False),  # too few samples
    ],
)
def test_the_verdict_on_accuracy(lost: int, gained: int, both: int, p_value: float | None, fell: bool) -> None:
    found = accuracy_of(*right_and_wrong(lost, gained, both))
    assert found is not None
    assert (found.num_samples, found.lost, found.gained) == (lost + gained + both, lost, gained)
    assert found.p_value == (None if p_value is None else pytest.approx(p_value))
    assert found.fell == fell


def test_intervals_are_scipys() -> None:
    """Shares by Clopper and Pearson, from quantiles of the beta distribution; other means by scipy's BCa bootstrap."""
    answers, samples = right_and_wrong(9, 1, 30)
    found = accuracy_of(answers, samples)
    assert found is not None
    for estimate, right in ((found.base, 39), (found.changed, 31), (fidelity_of(answers).exact_match, 30)):
        expected = stats.beta.ppf([0.025, 0.975], [right, right + 1], [41 - right, 40 - right])
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected))
    everything = fidelity_of(right_and_wrong(0, 0, 20)[0]).exact_match
    assert (everything.low, everything.high) == pytest.approx((0.025 ** (1 / 20), 1))
    for estimate, values in (
        (found.difference, [-1.0] * 9 + [1.0] + [0.0] * 30),
        (fidelity_of(answers).first_token_kl, [0.1 * n for n in range(40)]),
    ):
        result = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(5))
        assert (estimate.low, estimate.high) == pytest.approx(tuple(result.confidence_interval), abs=0.04)
    assert found == accuracy_of(answers, samples)  # seeded


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Cat.", "cat"),
        ("an  orange suit", "Orange suit!"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("don't", "dont"),
        ("black/white", "black white"),
        ("3.5 m", "3.5 m."),
    ],
)
def test_same_answers(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("cat", "cats"), ("3.5", "35"), ("yes", "no"), ("another", "other")])
def test_different_answers(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_interval_of_a_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    interval = mean_interval(values.tolist())
    assert interval is not None
    # For many samples, close to the normal approximation.
    half = 1.96 * values.std().item() / 20
    assert interval == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.03)
    assert mean_interval([1.0, 2.0] * 9 + [1.0]) is None  # 19
    assert mean_interval([1.0, 2.0] * 10) is not None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[0.0] * 20, [2.5] * 300, [0.0] * 19 + [1.0], [0.0] * 299 + [1e-12]])
def test_values_that_are_almost_all_equal(values: list[float]) -> None:
    interval = mean_interval(values)
    assert (interval is None) == (len({*values}) == 1)
    assert interval is None or (0 <= interval[0] <= sum(values) / len(values) <= interval[1])


def run_evaluation(package: str, data: Path, output: Path | None = None, **options: Any) -> Evaluation:
    """`options` are fields of `Samples`, `Questions` and `Comparison`."""
    options = {"data": str(data), "num_samples": 3, "max_new_tokens": NEW_TOKENS, "speed": False, **options}
    samples, questions, comparison = (
        kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
        for kind in (Samples, Questions, Comparison)
    )
    assert not options
    with TemporaryDirectory() as folder:
        output = output or Path(folder) / "evaluation.json"
        return pipeline.evaluate(package, output=output, samples=samples, questions=questions, comparison=comparison)


def test_an_interrupted_run_goes_on(make_package: Callable[..., str], questions: Path, tmp_path: Path) -> None:
    package, output = make_package(), tmp_path / "evaluation.json"
    whole = run_evaluation(package, questions, output=tmp_path / "whole.json")

    with interrupted_after(2):
        run_evaluation(package, questions, output=output)
    partial = tmp_path / "evaluation.json.partial.jsonl"
    assert not output.exists()
    kept = partial.read_text(encoding="utf-8")
    partial.write_text(f'{kept}\n{{"settings": "half a li', encoding="utf-8")
    assert run_evaluation(package, questions, output=output) == whole
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not partial.exists()

    # Finished samples are read and not measured again, unless the settings differ.
    first = json.loads(kept.split("\n")[1])
    first["values"]["first_token_kl"] = 1000.0
    del first["sha256"]
    first["sha256"] = hashlib.sha256(json.dumps(first).encode()).hexdigest()
    for new_tokens, is_read in ((NEW_TOKENS + 1, False), (NEW_TOKENS, True)):
        partial.write_text(json.dumps(first), encoding="utf-8")
        found = run_evaluation(package, questions, output=output, max_new_tokens=new_tokens)
        assert (found.chosen.fidelity.first_token_kl.mean > 300) == is_read


def test_held_out_samples(make_package: Callable[..., str], questions: Path) -> None:
    used = digests(questions)[:5]
    package = make_package(calibration={"data": "local files", "sample_digests": used})
    result = run_evaluation(package, questions)
    assert not {*used} & {*result.data["sample_digests"]}
    assert (result.data["overlap"], result.data["num_samples"]) == (0, 3)
    with pytest.raises(ShortVError, match="3 usable samples besides the 5 that are set apart"):
        run_evaluation(package, questions, num_samples=4)
    forced = run_evaluation(package, questions, num_samples=8, force_overlap=True)
    assert forced.data["overlap"] == 5
    assert "The layers were chosen by 5 of these 8 samples." in forced.notes
    with pytest.raises(ShortVError, match="were chosen by local files; name data with `data`"):
        pipeline.evaluate(package)


def test_unknown_calibration_samples(make_package: Callable[..., str], questions: Path) -> None:
    package = make_package(calibration={"data": "local files"})
    with pytest.raises(ShortVError, match="does not say which samples its layers were chosen by") as refused:
        run_evaluation(package, questions)
    assert "\n" not in str(refused.value)
    result = run_evaluation(package, questions, force_overlap=True)
    assert result.data["overlap"] is None
    assert any(note.startswith("It is not known which samples") for note in result.notes)


@pytest.mark.parametrize("method", ["preset", "given"])
def test_a_list_does_not_say_which_samples(tiny_base: Any, questions: Path, tmp_path: Path, method: str) -> None:
    selection = Selection(FROZEN, LAYERS, method)
    package = packages.make_package(resolve_base(tiny_base()), tmp_path / "package", selection)
    result = run_evaluation(str(package), questions)
    assert result.data["overlap"] is None
    assert any(note.startswith("It is not known which samples") for note in result.notes)


def test_samples_of_a_bound_are_held_out_too(tiny_base: Any, questions: Path, tmp_path: Path) -> None:
    bounded = digests(questions)[:5]
    evidence = {"held_out": {"data": "local files", "sample_digests": bounded}}
    selection = Selection(FROZEN, LAYERS, "random", evidence=evidence)
    package = packages.make_package(resolve_base(tiny_base()), tmp_path / "package", selection)
    assert not {*bounded} & {*run_evaluation(str(package), questions).data["sample_digests"]}


def test_an_output_in_the_package_is_refused(make_package: Callable[..., str], questions: Path) -> None:
    package = make_package()
    before = sorted(path.name for path in Path(package).iterdir())
    with pytest.raises(ShortVError, match="lies in the package"):
        run_evaluation(package, questions, output=Path(package) / "evaluation.json")
    assert sorted(path.name for path in Path(package).iterdir()) == before


def test_a_single_sample(make_package: Callable[..., str], questions: Path) -> None:
    result = run_evaluation(make_package(), questions, num_samples=1)
    fidelity = result.chosen.fidelity
    assert (fidelity.num_samples, fidelity.answer_kl.low, fidelity.answer_kl.high) == (1, None, None)
    assert result.notes[0] == FEW_SAMPLES


def test_answers_and_groups(make_package: Callable[..., str], questions: Path, tmp_path: Path) -> None:
    package = make_package()
    before = sorted(tmp_path.iterdir())
    result = run_evaluation(package, questions, num_samples=8, group_by="task", accuracy=True)
    assert {*result.chosen.groups} == {"cats"}
    assert result.chosen.accuracy is not None
    assert result.chosen.accuracy.num_samples == 4
    assert "Accuracy is over the 4 of 8 samples that have an answer." in result.notes
    with pytest.raises(ShortVError, match=r"has no column 'kind' to group by; there are: .*question"):
        run_evaluation(package, questions, group_by="kind")
    unanswered = tmp_path / "unanswered"
    shutil.copytree(questions, unanswered)
    rows = [json.loads(line) for line in (questions / "metadata.jsonl").read_text("utf-8").splitlines()]
    rows = [{name: row[name] for name in ("file_name", "question")} for row in rows]
    (unanswered / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ShortVError, match=r"^accuracy needs answers, but no sample has one; [^\n]+\.$"):
        run_evaluation(package, unanswered, accuracy=True, output=tmp_path / "none.json")
    assert sorted(tmp_path.iterdir()) == [*before, unanswered]
    assert run_evaluation(package, unanswered).chosen.accuracy is None


def test_sweep(make_package: Callable[..., str], questions: Path) -> None:
    package = make_package(frozen_layers=(1, 2), calibration={"data": "local files", "sample_digests": ["0" * 64]})
    result = run_evaluation(package, questions, sweep=[4, 0, 2, 1])
    # The two lowest scores are those of layers 0 and 2. The package's own list is measured too.
    assert [row.frozen_layers for row in result.rows] == [(), (2,), (0, 2), (1, 2), (0, 1, 2, 3)]
    assert [row.chosen for row in result.rows] == [False, False, False, True, False]
    alone = run_evaluation(package, questions)
    assert result.chosen.fidelity == alone.chosen.fidelity == alone.rows[0].fidelity
    assert result.rows[0].fidelity.answer_kl.mean == 0
    assert FEW_SAMPLES in result.notes
    for counts, words in (([5], "`sweep` has 5; give numbers from 0 to 4."), ([-1], "`sweep` has -1; ")):
        with pytest.raises(ShortVError, match=words):
            run_evaluation(package, questions, sweep=counts)
    with pytest.raises(ShortVError, match=r"`flops_ratio` 0.01 is out of reach"):
        run_evaluation(package, questions, sweep=[0.01])


def test_sweep_by_flops_ratio(make_package: Callable[..., str], questions: Path) -> None:
    """The fewest layers that reach a ratio are found by counting FLOPs of every number of layers."""
    package = Package.open(make_package(frozen_layers=(1,), calibration={"data": "local files"}))
    base = package.base
    ratios = [
        flops_ratio(base.layer_shapes, layers, 64, base.prompt_visual_tokens) for layers in ((2,), (0, 2), (0, 1, 2))
    ]
    for given, expected in ((ratios[0], (2,)), (ratios[0] - 1e-6, (0, 2)), (ratios[2], (0, 1, 2)), (1.0, (2,))):
        assert frozen_lists(package, [given]) == [Frozen((1,)), Frozen(expected)], given
    assert parse_sweep("0, 3,0.75,.5,1.0") == (0, 3, 0.75, 0.5, 1.0)
    for typed in ("1.5", "0.", "1e-1", "-0.5", "nan", ""):
        with pytest.raises(ValueError, match=r"is not understood; write it as in 0,4,8 or 0\.8,0\.6\."):
            parse_sweep(typed)


def test_sweep_without_scores(make_package: Callable[..., str], questions: Path) -> None:
    with pytest.raises(ShortVError, match="holds no scores, which `sweep` chooses layers by"):
        run_evaluation(make_package(), questions, sweep=[1])


def drop_the_list(package: Path) -> None:
    config = json.loads((package / "config.json").read_text("utf-8"))
    (package / "config.json").write_text(json.dumps(config | {"frozen_layers": []}), encoding="utf-8")


def change_the_code(package: Path) -> None:
    with (package / "shortv_layers.py").open("a", encoding="utf-8") as file:
        file.write("\nraise SystemExit('this code ran')\n")


def change_the_weights(package: Path) -> None:
    data = bytearray((package / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (package / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("frozen_layers", "damage", "words"),
    [
        ((), lambda package: None, "freezes no layer, so it is its base"),
        (FROZEN, drop_the_list, "made again: config.json was changed"),
        (FROZEN, change_the_code, "remote code: shortv_layers.py was changed after the package was made"),
        (FROZEN, change_the_weights, "weights: model.safetensors differs from the base's file"),
        (FROZEN, lambda package: (package / "shortv.json").unlink(), "recipe: .*shortv.json does not exist"),
    ],
)
def test_packages_that_are_refused(
    make_package: Callable[..., str],
    questions: Path,
    tmp_path: Path,
    frozen_layers: tuple[int, ...],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    package = make_package(frozen_layers)
    damage(Path(package))
    with pytest.raises(ShortVError, match=words) as refused:
        run_evaluation(package, questions, output=tmp_path / "out.json")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_base_is_no_package(tiny_base: Callable[..., Path], questions: Path) -> None:
    with pytest.raises(ShortVError, match=r"recipe: .* does not exist"):
        run_evaluation(str(tiny_base()), questions)


def test_out_of_memory_names_the_lever(
    make_package: Callable[..., str], questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: Any, **__: Any) -> Any:
        return torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(evaluation, "measure_fidelity", hungry)
    package = checked(make_package())
    samples = draw_samples(Samples(str(questions), num_samples=1))
    with pytest.raises(ShortVError, match=r"^out of memory; .*`dtype` bfloat16 .*`max_new_tokens`") as refused:
        evaluation.evaluate_package(package, Encoder(package.base, remote_code=True), samples)
    assert "\n" not in str(refused.value)


def test_result_files(make_package: Callable[..., str], questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation.json"
    result = run_evaluation(make_package(), questions, output=output, speed=True, at=[(8, 32)])
    assert Evaluation.load(output) == result
    speeds = result.chosen.speed
    assert [(speed.at, speed.visual_tokens) for speed in speeds] == [("data", 16), ("given", 32)]
    assert "2 of 4" in str(tables(result))
    assert all(cell.isprintable() for _, lines in tables(result) for line in lines for cell in line)
    # What a noisy machine measured is not shown, and a note says why.
    quiet, noisy = (
        replace(
            result.chosen,
            speed=(replace(speeds[0], speed_up=1.75, control_ratios=(control,) * speeds[0].repeats),),
        )
        for control in (0.96, 0.94)
    )
    drawn = draw_samples(Samples(str(questions), num_samples=3))
    for row, is_shown in ((quiet, True), (noisy, False)):
        ((_, lines),) = [found for found in tables(replace(result, rows=(row,))) if found[0] == "Prefill speed"]
        assert ("too noisy" in lines[1], "1.75x" in str(lines)) == (not is_shown, is_shown)
        assert (TOO_NOISY in notes_on(drawn, (row,), 8, 16, on_cpu=True)) == (not is_shown)
    good = json.loads(output.read_text("utf-8"))
    row = good["rows"][0]
    for bad in (
        [],
        good | {"format": 1},
        good | {"rows": []},
        good | {"more": 1},
        good | {"rows": [row | {"chosen": "yes"}]},
        good | {"rows": [row | {"speed": {}}]},
        good | {"rows": [row | {"fidelity": row["fidelity"] | {"answer_kl": None}}]},
    ):
        with pytest.raises(ShortVError, match="is not an evaluation") as refused:
            Evaluation.from_dict(bad, "file")
        assert "\n" not in str(refused.value)


def test_repository(make_package: Callable[..., str], questions: Path, hub: Any) -> None:
    package = make_package()
    packages.publish(Path(package), "loopback/model")
    result = run_evaluation("loopback/model", questions)
    commit = hub.commits("loopback/model")[0]
    assert result.package == {"repo_id": "loopback/model", "revision": commit.sha}
    assert result.rows == run_evaluation(package, questions).rows
    with pytest.raises(ShortVError, match="is not on the Hub"):
        run_evaluation("acme/none", questions)


def test_command(run: Any, make_package: Callable[..., str], questions: Path, tmp_path: Path) -> None:
    package = make_package(calibration={"data": "local files", "sample_digests": digests(questions)[:2]})
    common = ["evaluate", package, "--data", questions, "--num-samples", 4, "--max-new-tokens", 3]
    common += ["--output", tmp_path / "evaluation.json"]
    status, out, err = run(*common, "--sweep", "0,3", "--at", "8+32", "--group-by", "task")
    assert status == 0, err
    for words in ("2 of 4 *", "Accuracy", "cats", "8+32", "Fidelity to the base", "Peak memory is not measured"):
        assert words in out
    assert [len(row.frozen_layers or ()) for row in Evaluation.load(tmp_path / "evaluation.json").rows] == [0, 2, 3]
    status, out, err = run(*common, "--no-speed", "--json")
    assert status == 0, err
    assert json.loads(out) == json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert json.loads(out)["rows"][0]["speed"] == []
    # A refused run leaves the earlier result.
    status, out, err = run(*common, "--num-samples", 7)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert len(json.loads((tmp_path / "evaluation.json").read_text("utf-8"))["rows"]) == 1


@pytest.mark.parametrize(
    "options", [["--sweep", "4,x"], ["--at", "64"], ["--at", "0+16"], ["--at", "1+1", "--no-speed"]]
)
def test_wrong_usage(run: Any, options: list[str]) -> None:
    status, out, err = run("evaluate", "package", *options)
    assert (status, out) == (2, "")
    assert options[0] in err


def test_the_drawn_samples_are_what_is_evaluated_on(make_package: Callable[..., str], questions: Path) -> None:
    samples = draw_samples(Samples(str(questions), num_samples=2))
    samples = DrawnSamples(samples.samples, samples.record)
    package = checked(make_package())
    encoder = Encoder(package.base, remote_code=True)
    result = evaluation.evaluate_package(package, encoder, samples, comparison=Comparison(speed=False))
    assert result.data == samples.record
    assert result.recipe_sha256
    assert (result.dtype, result.num_layers) == ("float32", LAYERS)
