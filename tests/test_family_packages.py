"""Every family through the tool: processor, samples, scores, package, verification, publication, a stranger's load.

A family whose processor needs a package that is not installed is skipped. What takes a process of its own takes
seconds for each family, so that a few stand for all unless ``SHORTV_ALL_FAMILIES=1`` is set. This prints the table of
what was found, beside what `test_families` finds::

    SHORTV_ALL_FAMILIES=1 pytest tests/test_families.py tests/test_family_packages.py
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
from tiny_families import tiny_model
from tiny_processors import PROCESSORS, build_tiny_base, missing, older_layout, tiny_tokenizer

from shortv_export.base_model import load_base, load_processor, resolve_base
from shortv_export.calibration import Calibration, Sample, encode
from shortv_export.errors import ShortVError
from shortv_export.families import FAMILIES
from shortv_export.hub import push_package
from shortv_export.loopback import LoopbackHub
from shortv_export.oracle import frozen_by_definition, text_decoder, visual_tokens
from shortv_export.package import build_package
from shortv_export.recipe import RECIPE_NAME, Recipe, Selection
from shortv_export.scoring import Scorer
from shortv_export.verify import verify

FROZEN = (0, 3)  # where layers differ, one of each kind
# One with other names of its layers, one whose masks know images, one with experts.
ISOLATED = tuple(FAMILIES) if os.environ.get("SHORTV_ALL_FAMILIES") == "1" else ("idefics3", "gemma3", "aria")

# Visual tokens of a square picture, or of a tile of it, times the tiles of the paper's cost model.
COST = {
    **dict.fromkeys(("llava", "vipllava", "video_llava", "llava_next_video", "llava_onevision", "paligemma"), 16),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"), 4),
    **dict.fromkeys(("internvl", "gemma3", "mistral3", "cohere2_vision", "aya_vision", "idefics2", "aria"), 4),
    **dict.fromkeys(("smolvlm", "idefics3"), 4 + 4 * 4),
    "llava_next": 5 * 16,
}


def parameters(names: Any) -> list[Any]:
    """The families, those skipped that lack a package."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(lacks), reason=f"its processor needs {', '.join(lacks)}"))
        for name in names
        for lacks in [missing(name)]
    ]


every_family = pytest.mark.parametrize("name", parameters(FAMILIES))
isolated = pytest.mark.parametrize("name", parameters(ISOLATED))


@cache
def isolated_lacks(name: str) -> bool:
    """Whether a process that sees installed packages only, as `verify` starts, lacks one that the processor needs."""
    needs = PROCESSORS[name].needs
    imports = subprocess.run([sys.executable, "-I", "-c", f"import {', '.join(needs)}"], capture_output=True)
    return bool(needs) and imports.returncode != 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``base(name)``: a resolved base, made once."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            made[name] = resolve_base(build_tiny_base(tmp_path_factory.mktemp(name) / "base", name))
        return made[name]

    return make


@pytest.fixture(scope="module")
def package(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``package(name)``: the folder of a package, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp(name) / "package"
            made[name] = build_package(base(name), out, Selection(FROZEN, 4, "given"))
        return made[name]

    return make


def samples(photos: dict[str, Any]) -> list[Sample]:
    astronaut, coffee, _, rocket = photos.values()
    return [
        Sample((astronaut, coffee), "what is in this picture ?", None, "two"),
        Sample((rocket,), "is there a cat ?", None, "one"),
    ]


@every_family
def test_samples_become_inputs(base: Any, photos: dict[str, Any], name: str) -> None:
    """As the chat template's own call makes them; the stock model puts features into the rows that count as visual."""
    model, processor = load_base(base(name))
    batch = encode(processor, samples(photos))
    visual = visual_tokens(model.config, batch["input_ids"])
    seen = []
    hook = text_decoder(model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with hook, torch.no_grad():
        logits = model(**batch).logits[:, -1]
        embedded = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal((seen[0] != embedded).any(-1), visual)
    assert (visual.sum(1) > 0).all()
    for row, sample in enumerate(samples(photos)):
        single = encode(processor, [sample])
        ids = single["input_ids"][0]
        assert torch.equal(batch["input_ids"][row, -len(ids) :], ids)
        with torch.no_grad():
            alone = model(**single).logits[0, -1]
        assert (logits[row] - alone).abs().max() <= 1e-4 * alone.abs().max()
        if processor.chat_template:
            images = [{"type": "image", "image": image} for image in sample.images]
            conversation = [{"role": "user", "content": [*images, {"type": "text", "text": sample.question}]}]
            options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            expected = processor.apply_chat_template(conversation, add_generation_prompt=True, **options)
            assert single.keys() == expected.keys()
            assert all(torch.equal(single[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", parameters(["paligemma"]))
def test_prompt_of_a_family_without_chat_template(base: Any, photos: dict[str, Any], name: str) -> None:
    """Pictures, the first token, the question, an end of line: what the model was trained on."""
    processor = load_processor(base(name))
    inputs = encode(processor, samples(photos)[:1])
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens == ["<image>"] * 32 + ["<s>", "what", "is", "in", "this", "picture", "?"]
    assert "labels" not in inputs


@every_family
def test_scores_from_memory_and_from_disk(base: Any, photos: dict[str, Any], matrix: Any, name: str) -> None:
    calibration = Calibration(tuple(samples(photos)), {})
    whole = Scorer(base(name))(calibration)
    assert min(whole.visual[:-1]) > 0  # nothing reads the visual tokens after the last layer
    equal = Scorer(base(name), stream=True)(calibration) == whole
    matrix(name, "stream equal", equal)
    assert equal


@every_family
def test_recipe_and_card(base: Any, package: Any, name: str) -> None:
    recipe, family = Recipe.load(package(name) / RECIPE_NAME), FAMILIES[name]
    assert recipe.cost["visual_tokens"] == COST[name]
    model, processor = load_base(base(name))
    for layer, shape in zip(text_decoder(model).layers, base(name).layer_shapes, strict=True):
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        assert shape.hidden_size == query.in_features
        assert (shape.query_size, shape.key_value_size) == (query.out_features, key.out_features)
    assert recipe.code.keys() == set(family.code)
    text = (package(name) / "README.md").read_text(encoding="utf-8")
    assert f"a local {family.title} checkpoint" in text
    assert family.note in text
    plain = family.prompt.replace("<image>", "{processor.image_token}").replace("\n", "\\n")
    assert ("apply_chat_template(" if processor.chat_template else f'f"{plain}"') in text


@pytest.mark.parametrize("name", parameters(["llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "smolvlm"]))
def test_older_layout_of_the_files(base: Any, photos: dict[str, Any], tmp_path: Path, name: str) -> None:
    """A package of it loads as that of the newer layout, and its processor makes the same inputs."""
    from transformers import AutoModel, AutoProcessor

    newer = base(name)
    older_layout(build_tiny_base(tmp_path / "base", name))
    older = resolve_base(tmp_path / "base")
    assert (older.num_layers, older.layer_shapes) == (newer.num_layers, newer.layer_shapes)
    package = build_package(older, tmp_path / "package", Selection(FROZEN, 4, "given"))
    processor = AutoProcessor.from_pretrained(package, trust_remote_code=True)
    inputs, expected = (encode(each, samples(photos)) for each in (processor, load_processor(newer)))
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)
    model, found = AutoModel.from_pretrained(package, trust_remote_code=True, output_loading_info=True)
    assert not any(found.values())
    stock = load_base(newer)[0]
    visual = visual_tokens(stock.config, inputs["input_ids"]) | (inputs["attention_mask"] == 0)
    with torch.no_grad(), frozen_by_definition(text_decoder(stock).layers, FROZEN, visual):
        wanted = stock(**inputs).logits[:, -1]
        logits = model.eval()(**inputs).logits[:, -1]
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@isolated
def test_verify(package: Any, matrix: Any, name: str) -> None:
    """In an isolated process: logits, keys and values are those of the definition."""
    if isolated_lacks(name):
        pytest.skip("its processor needs a package that an isolated process does not find")
    result = verify(package(name))
    matrix(name, "verify", result.passed)
    result.raise_if_failed()
    assert [check.name for check in result.checks][-5:] == [
        *("self-contained", "loads", "frozen", "generates", "definition"),
    ]


# What the card tells a stranger to do, who has no shortv_export.
STRANGER = """
import json, sys
sys.modules["shortv_export"] = None
from PIL import Image
from transformers import AutoModel, AutoProcessor
repo_id, revision, prompt, photo = sys.argv[1:]
processor = AutoProcessor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
inputs = processor(images=Image.open(photo), text=prompt, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
print(json.dumps({"class": type(model).__name__, "answer": answer[0].tolist(), "report": model.shortv_report()}))
"""


@isolated
def test_published_and_loaded_by_a_stranger(
    base: Any, package: Any, photos: dict[str, Any], matrix: Any, tmp_path: Path, name: str
) -> None:
    """Its answer is the one of the stock model under the definition."""
    model, processor = load_base(base(name))
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
        expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()

    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        pushed = push_package(package(name), f"loopback/{name}", token=hub.token)
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
    """A processor that cannot be made says what to install, before the weights are read."""
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
    scorer = Scorer(resolve_base(folder), stream=stream, output=tmp_path / "scores.json")
    with pytest.raises(ShortVError) as caught:
        scorer(Calibration(tuple(samples(photos)), {}))
    wanted = f"{folder}: its processor needs torchvision, which is not installed: pip install torchvision."
    assert str(caught.value) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("name", parameters(["gemma3"]))
def test_verify_without_a_chat_template(tmp_path: Path, name: str) -> None:
    """The plain prompt has the processor's own placeholder."""
    folder = build_tiny_base(tmp_path / "base", name)
    (folder / "chat_template.jinja").unlink()
    made = build_package(resolve_base(folder), tmp_path / "out", Selection(FROZEN, 4, "given"))
    assert "{processor.image_token}" in (made / "README.md").read_text(encoding="utf-8")
    verify(made).raise_if_failed()


def test_every_family_has_a_processor() -> None:
    assert set(PROCESSORS) == set(FAMILIES) == set(COST)
