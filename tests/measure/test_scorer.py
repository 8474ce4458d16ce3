"""Scores of a base: whole, streamed, placed, interrupted, divided among processes; all give the same."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shortv_export.base.model import BaseModel, load_base
from shortv_export.base.processor import load_processor
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.measure import memory
from shortv_export.measure import scorer as scorer_module
from shortv_export.measure.scorer import Scorer
from shortv_export.measure.streaming import StreamedLayers
from shortv_export.options import Placement, Samples, Scoring
from shortv_export.records.scores import REVERSE, Scores
from shortv_export.samples.decode import Sample
from shortv_export.samples.draw import DrawnSamples, draw_samples
from shortv_export.samples.encode import encode_samples
from tests.support.interrupted import interrupted_after
from tests.support.large_base import write_checkpoint, write_samples
from tests.support.tiny_llava import build_tiny_llava

LAYERS = 4


def photo(seed: int, width: int = 80, height: int = 56) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


STREAMED = Scoring(stream=True)


def score(
    base: BaseModel,
    samples: DrawnSamples,
    scoring: Scoring = Scoring(),
    placement: Placement = Placement(),
    *,
    output: Path | None = None,
) -> Scores:
    """Measures and, where there is an output, saves."""
    scorer = Scorer(base, scoring, placement, output=output)
    scores = scorer(samples)
    if output is not None:
        scorer.save(scores)
    return scores


def calibration(count: int = 5) -> DrawnSamples:
    samples = tuple(
        Sample(
            images=(photo(seed),),
            question=f"how many {'cups ' * seed}?",
            answer=None,
            digest=f"digest-{seed}",
        )
        for seed in range(count)
    )
    return DrawnSamples(samples=samples, record={"data": "random pixels", "num_samples": count})


def input_ids(base: BaseModel, samples: DrawnSamples) -> list[Any]:
    processor = load_processor(base.path)
    return [encode_samples(processor, [sample])["input_ids"][0] for sample in samples.samples]


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is shown, one after the other: samples done, samples in all."""
    shown: list[tuple[int, int]] = []
    show = scorer_module.progress

    @contextmanager
    def shows(description: str, total: int, unit: str, *, done: int, hidden: bool) -> Iterator[Any]:
        assert (description, unit, hidden) == ("Scoring", "sample", False)
        shown.append((done, total))
        with show(description, total, unit, done=done) as advance:

            def advances(count: int) -> None:
                shown.append((shown[-1][0] + count, total))
                advance(count)

            yield advances

    monkeypatch.setattr(scorer_module, "progress", shows)
    return shown


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_streaming_from_disk_gives_the_same(
    tiny_base: Callable[..., Path], model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = resolve_base(tiny_base(model_type, text_model="qwen2", num_key_value_heads=2, num_shards=3))
    whole = score(base, calibration())
    assert score(base, calibration(), STREAMED) == whole
    # Groups of one sample instead of one group for all.
    monkeypatch.setattr(scorer_module, "STREAM_STATE_BYTES", 0)
    assert score(base, calibration(), STREAMED) == whole


def test_streaming_a_damaged_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_tiny_llava(tmp_path / "base", num_layers=2)
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ShortVError, match=r"decoder layer 1 .*up_proj") as caught:
        score(resolve_base(folder), calibration(1), STREAMED, output=tmp_path / "scores.json")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_streaming_excludes_a_device_map(tiny_base: Callable[..., Path]) -> None:
    with pytest.raises(ShortVError, match="exclude each other"):
        score(resolve_base(tiny_base()), calibration(1), STREAMED, Placement(device_map="auto"))


def test_scores(tiny_base: Callable[..., Path], tmp_path: Path, progress: list[tuple[int, int]]) -> None:
    base = resolve_base(tiny_base())
    scores = score(base, calibration(), output=tmp_path / "scores.json")
    assert Scores.load(tmp_path / "scores.json") == scores
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert progress == [(done, 5) for done in range(6)]
    assert scores.num_samples == 5
    assert scores.visual[-1] == scores.visual_standard_error[-1] == 0.0
    assert scores.calibration == calibration().record
    assert scores.base == {"repo_id": None, "revision": None}

    single = [score(base, DrawnSamples(samples=(sample,), record={})) for sample in calibration().samples]
    assert single[0].visual_standard_error == (0.0,) * LAYERS
    visual = np.array([one.visual for one in single])
    np.testing.assert_array_equal(scores.visual_samples, visual)
    cosines = np.mean([one.visual_cosine_distance for one in single], axis=0)
    np.testing.assert_allclose(scores.visual_cosine_distance, cosines, rtol=1e-12)
    np.testing.assert_allclose(scores.visual, visual.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scores.visual_standard_error, visual.std(0, ddof=1) / 5**0.5, rtol=1e-9)


@pytest.mark.parametrize("left_by", ["scores.json.partial.jsonl", "scores.json.partial-7.jsonl"])
def test_interrupted_run_resumes(
    tiny_base: Callable[..., Path], tmp_path: Path, left_by: str, progress: list[tuple[int, int]]
) -> None:
    base = resolve_base(tiny_base())
    expected = score(base, calibration())
    output = tmp_path / "out" / "scores.json"
    partial = tmp_path / "out" / "scores.json.partial.jsonl"
    with interrupted_after(3):
        score(base, calibration(), output=output)
    assert [path.name for path in output.parent.iterdir()] == [partial.name]
    with partial.open("a") as file:
        file.write('\n{"settings": "')  # killed while writing
    partial.rename(output.parent / left_by)  # the run may have had more processes

    progress.clear()
    assert score(base, calibration(), output=output) == expected
    assert progress == [(3, 5), (4, 5), (5, 5)]
    assert [path.name for path in output.parent.iterdir()] == ["scores.json"]


def test_samples_are_added_to_a_measurement(
    tiny_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    progress: list[tuple[int, int]],
) -> None:
    base = resolve_base(tiny_base())
    output = tmp_path / "scores.json"
    three, five = score(base, calibration(3)), score(base, calibration(5))
    progress.clear()
    loaded: list[str] = []
    note_loading(monkeypatch, lambda: loaded.append("load"))
    scorer = Scorer(base, output=output)
    assert scorer(calibration(3)) == three
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json.partial.jsonl"]
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    more = scorer(calibration(5))
    assert progress[4:] == [(3, 5), (4, 5), (5, 5)]
    assert len(loaded) == 1, "one model for both rounds"
    assert more == five
    scorer.save(more)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert Scores.load(output) == more


def test_partial_results_of_other_settings_are_not_used(
    tiny_base: Callable[..., Path], tmp_path: Path, progress: list[tuple[int, int]]
) -> None:
    base = resolve_base(tiny_base())
    output = tmp_path / "scores.json"
    with interrupted_after(3):
        score(base, calibration(), output=output)
    progress.clear()
    reverse = score(base, calibration(), Scoring(divergence="reverse"), output=output)
    assert progress == [(done, 5) for done in range(6)]
    assert reverse == score(base, calibration(), Scoring(divergence="reverse"))
    assert reverse.divergence == REVERSE


def note_loading(monkeypatch: pytest.MonkeyPatch, note: Callable[[], None]) -> None:
    """Calls a function each time before the model is loaded."""
    load = scorer_module.load_base

    def noted(*args: Any, **kwargs: Any) -> Any:
        note()
        return load(*args, **kwargs)

    monkeypatch.setattr(scorer_module, "load_base", noted)


def weights_of(base: BaseModel) -> int:
    return sum((base.path / name).stat().st_size for name in base.files if name.endswith(".safetensors"))


@pytest.mark.parametrize("limit", [0, 300_000])
def test_layers_on_disk_give_the_same(tiny_base: Callable[..., Path], limit: int) -> None:
    base = resolve_base(tiny_base())
    assert limit < weights_of(base)
    placed = Scorer(base, placement=Placement(max_memory={"cpu": limit}))
    scores = placed(calibration(2))
    assert "disk" in placed.model.hf_device_map.values()
    np.testing.assert_allclose(scores.visual, score(base, calibration(2)).visual, rtol=1e-4, atol=1e-9)


def test_memory_is_told_before_the_model_is_loaded(
    tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shortv_export")
    note_loading(monkeypatch, lambda: logging.getLogger("shortv_export").info("load"))
    Scorer(resolve_base(tiny_base()))(calibration(2))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("shortv_export")]
    assert len(lines) == 2
    assert lines[0].startswith("memory: ")
    assert lines[1] == "load"


def test_a_limit_that_is_no_size_is_refused_at_once(
    tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = resolve_base(tiny_base())
    for scoring in (Scoring(), STREAMED):
        with pytest.raises(ShortVError, match="not an amount of memory"):
            Scorer(base, scoring, Placement(max_memory={"cpu": "lots"}))


@pytest.mark.parametrize(
    ("scoring", "placement", "levers"),
    [
        (STREAMED, Placement(max_memory={"cpu": "400KB"}), "`max_batch_tokens`, `dtype` bfloat16."),
        (Scoring(), Placement(), "`stream`, `device_map` auto, `max_batch_tokens`, `dtype` bfloat16."),
        (Scoring(), Placement(device_map="cpu"), "`stream`, `device_map` auto, `max_batch_tokens`, `dtype` bfloat16."),
    ],
    ids=["streaming", "whole", "placed"],
)
def test_too_little_memory_names_the_levers(
    tiny_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scoring: Scoring,
    placement: Placement,
    levers: str,
) -> None:
    if placement.max_memory is None:  # nobody can take a machine's memory away for a test
        monkeypatch.setattr(scorer_module, "free_bytes", lambda *_: 10_000)
    with pytest.raises(ShortVError, match=r"too little memory: it takes .* GB are free") as caught:
        score(resolve_base(tiny_base()), calibration(1), scoring, placement, output=tmp_path / "scores.json")
    assert str(caught.value).endswith(levers)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_groups_fit_the_memory_that_there_is(tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for the states of two samples, two pass each layer together."""
    base = resolve_base(tiny_base())
    samples = calibration(4)
    first = Scoring(stream=True, positions="first", max_batch_tokens=8192)
    scorer = Scorer(base, first)
    expected = scorer(samples)
    assert scorer.max_state_bytes == scorer_module.STREAM_STATE_BYTES
    reads: list[int] = []
    iterate = StreamedLayers.__iter__

    def read(self: StreamedLayers) -> Any:
        reads.append(1)
        return iterate(self)

    monkeypatch.setattr(StreamedLayers, "__iter__", read)
    tokens = max(len(row) for row in input_ids(base, samples))
    files = [base.path / name for name in base.files if name.endswith(".safetensors")]
    weights = memory.weight_bytes(files, 4, stream=True)
    need = memory.estimate(weights, base.layer_shapes, tokens, 4, first)
    monkeypatch.setattr(scorer_module, "free_bytes", lambda *_: need.total + need.states)
    assert Scorer(base, first)(samples) == expected
    assert len(reads) == 2


def test_output_that_cannot_be_written(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ShortVError, match="cannot write") as caught:
        score(resolve_base(tiny_base()), calibration(1), output=tmp_path / "file" / "scores.json")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_processes_equal_one(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = resolve_base(tiny_base())
    script = tmp_path / "run.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import logging\n"
        "from shortv_export import progress\n"
        "from tests.measure.test_scorer import calibration, resolve_base, score\n"
        "logging.basicConfig(level='INFO', format='%(message)s')\n"
        "progress.INTERVAL = -1\n"
        "score(resolve_base(sys.argv[2]), calibration(), output=Path(sys.argv[3]))\n"
    )
    output = tmp_path / "out" / "scores.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(script), str(Path(__file__).parents[2]), str(base.path), str(output)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    # The first process, which has three of the five samples, speaks for both.
    shown = re.findall(r"^Scoring: (\d) of (\d) samples$", result.stderr, re.MULTILINE)
    assert shown == [("2", "5"), ("4", "5"), ("5", "5")]
    assert [path.name for path in output.parent.iterdir()] == ["scores.json"]
    one, two = score(base, calibration()), Scores.load(output)
    np.testing.assert_allclose(two.visual, one.visual, rtol=1e-6)
    assert one.ablations.keys() == two.ablations.keys()
    for name, rows in one.ablations.items():
        np.testing.assert_allclose(two.ablations[name], rows, rtol=1e-6, atol=1e-12)
    assert two.tokens == one.tokens
    np.testing.assert_allclose(two.visual_standard_error, one.visual_standard_error, rtol=1e-6)
    assert two.num_samples == 5


def test_the_benchmarks_large_base_is_a_base(tmp_path: Path) -> None:
    """Written layer by layer in bfloat16, it loads whole and scores streamed."""
    shape = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 2}
    size = write_checkpoint(tmp_path / "base", shape, 3)
    base = resolve_base(tmp_path / "base")
    assert len(list(base.path.glob("*.safetensors"))) == 4
    model: Any = load_base(base)  # refuses missing and unexpected tensors
    assert sum(parameter.nbytes for parameter in model.parameters()) == size
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert (base.num_layers, base.layer_shapes[0].intermediate_size, base.visual_tokens) == (3, 384, 16)
    data = draw_samples(Samples(str(write_samples(tmp_path / "data", 1, 56, 100)), num_samples=1))
    assert len(input_ids(base, data)[0]) == 100
    assert min(score(base, data, Scoring(stream=True, text_contribution=True)).text) > 0
