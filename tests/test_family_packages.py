"""Every family through the tool: processor, samples, scores, package, verification, publishing and loading.

Families whose processor needs a package that is not installed are skipped. Tests that start processes are slow and
run for a few families only. This runs them for all and prints a table of the results::

    SHORTV_ALL_FAMILIES=1 pytest tests/modeling/test_families.py tests/test_family_packages.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export import pipeline
from shortv_export.base.definition import frozen_by_definition, placed, text_decoder, visual_tokens
from shortv_export.base.families import FAMILIES
from shortv_export.base.model import load_base
from shortv_export.base.processor import load_processor
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.measure.scorer import Scorer
from shortv_export.options import Comparison, Questions, Samples, Scoring
from shortv_export.pipeline import verify
from shortv_export.records.file_names import RECIPE_NAME
from shortv_export.records.recipe import Recipe
from shortv_export.records.selection import Selection
from shortv_export.samples.decode import Sample
from shortv_export.samples.draw import DrawnSamples, draw_samples
from shortv_export.samples.encode import Encoder, encode_samples
from shortv_export.samples.video import Clip
from tests.support.definition import TOLERANCE, frozen_kl, relative_error, rows_with_features
from tests.support.packages import make_package, publish
from tests.support.tiny_families import TINY, tiny_model
from tests.support.tiny_processors import PROCESSORS, build_tiny_base, missing, older_layout, tiny_tokenizer

FROZEN = (0, 3)  # one of each kind, in families with two kinds of layers
# One with other layer names, one whose attention masks depend on images, one with experts.
ISOLATED = tuple(FAMILIES) if os.environ.get("SHORTV_ALL_FAMILIES") == "1" else ("idefics3", "gemma3", "aria")

# Visual tokens of a square picture: those of a tile times the tiles of the paper's cost model.
COST = {
    **dict.fromkeys(("llava", "vipllava", "video_llava", "llava_next_video", "llava_onevision", "paligemma"), 16),
    **dict.fromkeys(("deepseek_vl", "janus"), 16),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "glm46v"), 4),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "ernie4_5_vl_moe", "llama4"), 4),
    **{"gemma4": 64, "molmo2": 8, "lfm2_vl": 4 + 2 * 4, "video_llama_3": 25},
    **dict.fromkeys(("internvl", "gemma3", "mistral3", "cohere2_vision", "aya_vision", "idefics2", "aria"), 4),
    **dict.fromkeys(("lighton_ocr", "paddleocr_vl", "exaone4_5"), 4),
    **dict.fromkeys(("smolvlm", "idefics3"), 4 + 4 * 4),
    "llava_next": 5 * 16,
}


def parameters(names: Any) -> list[Any]:
    """The families as parameters; skipped if a package is missing."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(lacks), reason=f"its processor needs {', '.join(lacks)}"))
        for name in names
        for lacks in [missing(name)]
    ]


VIDEO = [name for name in FAMILIES if PROCESSORS[name].video]
# Their processors write the time of each frame into the prompt.
TIMED = (
    *("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "gemma4", "glm4v", "glm4v_moe", "glm46v"),
    *("molmo2", "smolvlm", "video_llama_3"),
)

every_family = pytest.mark.parametrize("name", parameters(FAMILIES))
every_video_family = pytest.mark.parametrize("name", parameters(VIDEO))
isolated = pytest.mark.parametrize("name", parameters(ISOLATED))


@cache
def isolated_lacks(name: str) -> bool:
    """Whether the isolated process of `verify` lacks a package that the processor needs."""
    needs = PROCESSORS[name].needs
    imports = subprocess.run([sys.executable, "-I", "-c", f"import {', '.join(needs)}"], capture_output=True)
    return bool(needs) and imports.returncode != 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``base(name)``: a resolved base, made once."""

    @cache
    def make(name: str) -> Any:
        return resolve_base(build_tiny_base(tmp_path_factory.mktemp(name) / "base", name))

    return make


@pytest.fixture(scope="module")
def package(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``package(name)``: the folder of a package, made once."""

    @cache
    def make(name: str) -> Path:
        return make_package(base(name), tmp_path_factory.mktemp(name) / "package", Selection(FROZEN, 4, "given"))

    return make


def samples(photos: dict[str, Any]) -> list[Sample]:
    astronaut, coffee, _, rocket = photos.values()
    return [
        Sample((astronaut, coffee), "what is in this picture ?", None, "two"),
        Sample((rocket,), "is there a cat ?", None, "one"),
    ]


def clip(photo: Any, number: int, fps: float | None = None) -> Clip:
    """Frames that move over a photograph."""
    return Clip(tuple(photo.crop((20 * step, 0, 20 * step + 200, 160)) for step in range(number)), fps)


def video_samples(photos: dict[str, Any], name: str) -> list[Sample]:
    """One sample with as many clips as the family takes in a prompt, and one with one clip."""
    astronaut, coffee, *_ = photos.values()
    clips = (clip(coffee, 4), clip(astronaut, 4))[-PROCESSORS[name].videos :]
    return [
        Sample((), "what is in this picture ?", None, "two", videos=clips),
        Sample((), "is there a cat ?", None, "one", videos=(clip(astronaut, 4),)),
    ]


@every_family
def test_samples_become_inputs(base: Any, photos: dict[str, Any], name: str) -> None:
    """Inputs are those of the chat template; the stock model puts features into exactly the visual rows."""
    model, processor = load_base(base(name)), load_processor(base(name).path)
    batch = encode_samples(processor, samples(photos))
    visual = visual_tokens(model.config, batch["input_ids"])
    rows, logits = rows_with_features(model, placed(model, batch))
    assert torch.equal(rows, visual)
    assert (visual.sum(1) > 0).all()
    for row, sample in enumerate(samples(photos)):
        single = encode_samples(processor, [sample])
        ids = single["input_ids"][0]
        assert torch.equal(batch["input_ids"][row, -len(ids) :], ids)
        with torch.no_grad():
            alone = model(**placed(model, single)).logits[0, -1]
        if name != "llama4":  # scales queries by positions that count padding
            assert relative_error(logits[row, -1], alone) <= 1e-4
        if processor.chat_template:
            assert_same(single, chat_inputs(processor, sample))


@every_video_family
def test_videos_become_inputs(base: Any, photos: dict[str, Any], name: str) -> None:
    """The same for clips: two in one sample, one in another."""
    model, processor = load_base(base(name)), load_processor(base(name).path)
    every = video_samples(photos, name)
    batch = encode_samples(processor, every)
    visual = visual_tokens(model.config, batch["input_ids"])
    rows, logits = rows_with_features(model, batch)
    assert torch.equal(rows, visual)
    assert visual[0].sum() == PROCESSORS[name].videos * visual[1].sum() > 0
    for row, sample in enumerate(every):
        single = encode_samples(processor, [sample])
        with torch.no_grad():
            alone = model(**single).logits[0, -1]
        assert relative_error(logits[row, -1], alone) <= 1e-4
        assert_same(single, chat_inputs(processor, sample))


def chat_inputs(processor: Any, sample: Sample, **options: Any) -> Any:
    """A sample's inputs by `apply_chat_template` of the processor."""
    images = [{"type": "image", "image": image} for image in sample.images]
    videos = [{"type": "video", "video": list(video.frames)} for video in sample.videos]
    conversation = [{"role": "user", "content": [*images, *videos, {"type": "text", "text": sample.question}]}]
    return processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"do_sample_frames": False, **options},
    )


def assert_same(inputs: Any, expected: Any) -> None:
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)


@every_video_family
def test_frame_rates(base: Any, photos: dict[str, Any], name: str) -> None:
    """Families whose prompts contain the time get it. An odd number of frames works where frames form pairs."""
    number = 3
    model, processor = load_base(base(name)), load_processor(base(name).path)
    slow, fast, unknown = (
        Sample((), "yes ?", None, "", videos=(clip(photos["coffee"], number, fps),)) for fps in (0.2, 2.0, None)
    )
    given = [encode_samples(processor, [sample]) for sample in (slow, fast, unknown)]
    for inputs, fps in zip(given, (0.2, 2.0), strict=False):
        timing = {"total_num_frames": number, "fps": fps, "frames_indices": [*range(number)]}
        expected = chat_inputs(processor, slow, video_metadata=[timing | {"duration": number / fps}])
        assert_same(inputs, expected)
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()
    told = not all(torch.equal(given[0]["input_ids"], inputs["input_ids"]) for inputs in given[1:])
    assert told == (name in TIMED)


@pytest.mark.parametrize("name", parameters(["qwen2_5_vl"]))
def test_images_and_videos_of_a_sample(base: Any, photos: dict[str, Any], name: str) -> None:
    model, processor = load_base(base(name)), load_processor(base(name).path)
    both = Sample((photos["rocket"],), "yes ?", None, "", videos=(clip(photos["coffee"], 4),))
    inputs = encode_samples(processor, [both])
    assert_same(inputs, chat_inputs(processor, both))
    assert torch.equal(rows_with_features(model, inputs)[0], visual_tokens(model.config, inputs["input_ids"]))


@pytest.mark.parametrize("name", parameters(["qwen3_vl"]))
def test_a_video_that_the_processor_refuses(base: Any, photos: dict[str, Any], name: str) -> None:
    single = Sample((), "yes ?", None, "", videos=(clip(photos["coffee"], 1),))
    with Encoder(base(name)) as encoder:
        assert "the base's processor fails: t:1 must be larger" in str(encoder.refusal(single))
        with pytest.raises(ShortVError, match=r"t:1 must be larger .*\(on a video of 1 frame of "):
            encoder(single)


@pytest.mark.parametrize("name", parameters(["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]))
def test_a_picture_that_the_processor_refuses(base: Any, photos: dict[str, Any], name: str) -> None:
    strip = Sample((photos["coffee"].resize((900, 3)),), "yes ?", None, "strip")
    with Encoder(base(name)) as encoder:
        assert "aspect ratio must be smaller than 200" in str(encoder.refusal(strip))
        assert "(on a picture of 900 x 3 pixels)" in str(encoder.refusal(strip))
        assert encoder.refusal(samples(photos)[0]) is None


@pytest.mark.parametrize("name", parameters(["llava", "idefics3", "gemma3"]))
def test_videos_for_a_base_that_takes_none(base: Any, photos: dict[str, Any], name: str) -> None:
    processor = load_processor(base(name).path)
    with pytest.raises(ShortVError, match=r"takes no videos .*; give images, or a list of frames as image=COLUMN"):
        encode_samples(processor, video_samples(photos, name))


@pytest.mark.parametrize("name", parameters(["llava_next_video"]))
def test_videos_without_a_chat_template(base: Any, photos: dict[str, Any], name: str) -> None:
    """Without a template, the plain prompt is used. A template that leaves videos out is an error."""
    processor = load_processor(base(name).path)
    processor.chat_template = None
    tokens = processor.tokenizer.convert_ids_to_tokens(
        encode_samples(processor, video_samples(photos, name))["input_ids"][1]
    )
    assert [token for token in tokens if token not in ("<pad>", "<video>")] == [
        *("<s>", "USER", ":", "is", "there", "a", "cat", "?", "ASSISTANT", ":")
    ]
    assert tokens.count("<video>") == 4 * 4  # frames of 4 x 4 patches, pooled
    processor.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(ShortVError, match="puts 0 of 1 videos into a prompt"):
        encode_samples(processor, video_samples(photos, name)[1:])


@every_video_family
def test_scores_of_videos(base: Any, photos: dict[str, Any], name: str) -> None:
    """Scores equal those of whole forward passes of the definition with one frozen layer."""
    sample = video_samples(photos, name)[1]
    found = Scorer(base(name))(DrawnSamples((sample,), {}))
    model, processor = load_base(base(name)), load_processor(base(name).path)
    inputs = encode_samples(processor, [sample])
    visual = visual_tokens(model.config, inputs["input_ids"])
    for layer, value in enumerate(found.visual):
        assert value == pytest.approx(frozen_kl(model, inputs, [layer], visual).item(), rel=1e-3, abs=1e-9)
    assert min(found.visual[:-1]) > 0


@pytest.mark.parametrize("name", parameters(["qwen3_vl"]))
def test_from_a_folder_of_clips_to_a_card(base: Any, photos: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Scores, package and evaluation from videos: the divergence is the definition's, and the card names videos."""
    data = tmp_path / "clips"
    data.mkdir()
    rows = []
    for number, photo in enumerate(photos.values()):
        names = [f"{number}-{step}.png" for step in range(5)]
        for file_name, frame in zip(names, clip(photo, 5).frames, strict=True):
            frame.save(data / file_name)
        rows.append({"video_file_names": names, "question": "what is in this picture ?", "answer": "a cat"})
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text = f"{data}:frames=2,fps=1"
    folder = base(name).path
    scores = pipeline.score(str(folder), output=tmp_path / "scores.json", samples=Samples(text, num_samples=2))
    assert (scores.calibration["num_images"], scores.calibration["num_videos"]) == (0, 2)
    (source,) = scores.calibration["sources"]
    assert (source["video"], source["frames"], source["fps"]) == ("video", 2, 1.0)
    package = make_package(base(name), tmp_path / "package", Selection(FROZEN, 4, "lc"), scores=scores)
    result = pipeline.evaluate(
        str(package),
        output=tmp_path / "evaluation.json",
        samples=Samples(text, num_samples=2),
        questions=Questions(max_new_tokens=3),
        comparison=Comparison(speed=False),
        update_card=True,
    )

    model, processor = load_base(base(name)), load_processor(base(name).path)
    expected = []
    for sample in draw_samples(Samples(text, num_samples=4)).samples:
        if sample.digest not in result.data["sample_digests"]:
            continue
        assert [len(each.frames) for each in sample.videos] == [2]
        inputs = encode_samples(processor, [sample])
        expected.append(frozen_kl(model, inputs, FROZEN, visual_tokens(model.config, inputs["input_ids"])).item())
    assert len(expected) == 2
    assert result.chosen.fidelity.first_token_kl.mean == pytest.approx(sum(expected) / 2, rel=1e-3)
    card = (package / "README.md").read_text(encoding="utf-8")
    assert "for prompts with images and videos: visual tokens are frozen" in card
    assert "mean over 2 samples (2 videos of at most 2 frames); shaded" in card
    assert (
        "2 samples of the publisher's own data (2 videos of at most 2 frames), not used to choose the layers" in card
    )


@pytest.mark.parametrize("name", parameters(["paligemma"]))
def test_prompt_of_a_family_without_chat_template(base: Any, photos: dict[str, Any], name: str) -> None:
    """Pictures, the first token, the question, a newline, as in training."""
    processor = load_processor(base(name).path)
    inputs = encode_samples(processor, samples(photos)[:1])
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens == ["<image>"] * 32 + ["<s>", "what", "is", "in", "this", "picture", "?"]
    assert "labels" not in inputs


@every_family
def test_scores_from_memory_and_from_disk(base: Any, photos: dict[str, Any], matrix: Any, name: str) -> None:
    calibration = DrawnSamples(tuple(samples(photos)), {})
    whole = Scorer(base(name))(calibration)
    assert min(whole.visual[:-1]) > 0  # nothing reads the visual tokens after the last layer
    equal = Scorer(base(name), Scoring(stream=True))(calibration) == whole
    matrix(name, "stream equal", equal)
    assert equal


@every_family
def test_recipe_and_card(base: Any, package: Any, name: str) -> None:
    recipe, family = Recipe.load(package(name) / RECIPE_NAME), FAMILIES[name]
    assert recipe.cost["visual_tokens"] == COST[name]
    model, processor = load_base(base(name)), load_processor(base(name).path)
    for layer, shape in zip(text_decoder(model).layers, base(name).layer_shapes, strict=True):
        if not hasattr(layer, "self_attn"):
            assert (shape.query_size, shape.key_value_size) == (0, 0)
            continue
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        assert shape.hidden_size == query.in_features
        assert (shape.query_size + shape.gate_size, shape.key_value_size) == (query.out_features, key.out_features)
    assert recipe.code.keys() == set(family.code)
    text = (package(name) / "README.md").read_text(encoding="utf-8")
    assert f"a local {family.title} checkpoint" in text
    assert family.note in text
    plain = family.prompt.replace("<image>", "{processor.image_token}").replace("\n", "\\n")
    assert ("apply_chat_template(" if processor.chat_template else f'f"{plain}"') in text


@pytest.mark.parametrize("name", parameters(["llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "smolvlm"]))
def test_older_layout_of_the_files(base: Any, photos: dict[str, Any], tmp_path: Path, name: str) -> None:
    """The package loads like one of the newer layout, and its processor makes the same inputs."""
    from transformers import AutoModel, AutoProcessor

    newer = base(name)
    older_layout(build_tiny_base(tmp_path / "base", name))
    older = resolve_base(tmp_path / "base")
    assert (older.num_layers, older.layer_shapes) == (newer.num_layers, newer.layer_shapes)
    package = make_package(older, tmp_path / "package", Selection(FROZEN, 4, "given"))
    processor = AutoProcessor.from_pretrained(package, trust_remote_code=True)
    inputs, expected = (encode_samples(each, samples(photos)) for each in (processor, load_processor(newer.path)))
    assert_same(inputs, expected)
    model, found = AutoModel.from_pretrained(package, trust_remote_code=True, output_loading_info=True)
    assert not any(found.values())
    stock = load_base(newer)
    visual = visual_tokens(stock.config, inputs["input_ids"]) | (inputs["attention_mask"] == 0)
    with torch.no_grad(), frozen_by_definition(text_decoder(stock).layers, FROZEN, visual):
        wanted = stock(**inputs).logits[:, -1]
        logits = model.eval()(**inputs).logits[:, -1]
    assert relative_error(logits, wanted) <= TOLERANCE


@isolated
def test_verify(package: Any, matrix: Any, name: str) -> None:
    """In an isolated process, logits, keys and values equal the definition's."""
    if isolated_lacks(name):
        pytest.skip("its processor needs a package that an isolated process does not find")
    result = verify(package(name))
    matrix(name, "verify", result.verdict != "failed")
    result.raise_if_failed()
    assert [check.name for check in result.checks][-6:] == [
        *("self-contained", "loads", "inputs", "frozen", "generates", "definition"),
    ]


# The loading code of the card, without shortv_export.
STRANGER = """
import json, sys
sys.modules["shortv_export"] = None
from PIL import Image
from transformers import AutoModel, AutoProcessor
repo_id, revision, prompt, photo = sys.argv[1:]
processor = AutoProcessor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
inputs = processor(images=Image.open(photo), text=prompt, return_tensors="pt").to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
print(json.dumps({"class": type(model).__name__, "answer": answer[0].tolist(), "report": model.shortv_report()}))
"""


@isolated
def test_published_and_loaded_without_the_tool(
    base: Any, package: Any, photos: dict[str, Any], matrix: Any, tmp_path: Path, name: str
) -> None:
    """The answer is the definition's."""
    model, processor = load_base(base(name)), load_processor(base(name).path)
    question = "what is in this picture ?"
    if processor.chat_template:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        prompt = FAMILIES[name].prompt.format(question=question)
    photos["coffee"].save(tmp_path / "photo.png")
    inputs = processor(images=photos["coffee"], text=prompt, return_tensors="pt")
    visual = visual_tokens(model.config, inputs["input_ids"])
    with frozen_by_definition(text_decoder(model).layers, FROZEN, visual):
        expected = model.generate(**placed(model, inputs), max_new_tokens=6, do_sample=False)[0].tolist()

    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        pushed = publish(package(name), f"loopback/{name}", token=hub.token)
        environment = os.environ | {"HF_HOME": str(tmp_path / "hf-home")} | hub.env()
        environment.pop("HF_MODULES_CACHE")
        result = subprocess.run(
            [sys.executable, "-c", STRANGER, pushed.repo_id, pushed.commit, prompt, str(tmp_path / "photo.png")],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert hub.errors == []
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    equal = seen["class"] == FAMILIES[name].model_class and seen["answer"] == expected
    matrix(name, "push and load", equal)
    assert equal, seen
    assert seen["report"]["frozen_layers"] == list(FROZEN)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("stream", [False, True])
def test_without_torchvision(photos: dict[str, Any], tmp_path: Path, stream: bool) -> None:
    """The error says what to install, before weights are read."""
    name = "qwen2_vl"
    folder = tmp_path / "base"
    tiny_model(name).save_pretrained(folder)
    tiny_tokenizer(PROCESSORS[name]).save_pretrained(folder)
    parts = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor": {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    (folder / "processor_config.json").write_text(json.dumps(parts), encoding="utf-8")
    scorer = Scorer(resolve_base(folder), Scoring(stream=stream), output=tmp_path / "scores.json")
    with pytest.raises(ShortVError) as caught:
        scorer(DrawnSamples(tuple(samples(photos)), {}))
    wanted = f"{folder}: its processor needs torchvision, which is not installed: pip install torchvision."
    assert str(caught.value) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("name", parameters(["gemma3"]))
def test_verify_without_a_chat_template(tmp_path: Path, name: str) -> None:
    """The plain prompt on the card uses the processor's own placeholder."""
    folder = build_tiny_base(tmp_path / "base", name)
    (folder / "chat_template.jinja").unlink()
    made = make_package(resolve_base(folder), tmp_path / "out", Selection(FROZEN, 4, "given"))
    assert "{processor.image_token}" in (made / "README.md").read_text(encoding="utf-8")
    verify(made).raise_if_failed()


def test_every_family_has_a_processor() -> None:
    assert set(PROCESSORS) == set(FAMILIES) == set(COST)
    # InternVL and SmolVLM turn clips into pictures, so they have no placeholder for videos.
    assert set(VIDEO) == {name for name, tiny in TINY.items() if tiny.videos} | {"internvl", "smolvlm"}
