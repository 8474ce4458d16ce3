"""Cards: their metadata, what they say and what they must not, and the examples in `model_cards/`."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortv_export import demo
from shortv_export.base.cost import flops_ratio
from shortv_export.base.families import FAMILIES
from shortv_export.base.model import BaseModel
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.files.bundled import model_cards_dir
from shortv_export.loopback.card_metadata import front_matter
from shortv_export.options import parse_layers
from shortv_export.packaging import figures
from shortv_export.packaging.card import render_card
from shortv_export.packaging.card_metadata import Inherited, inherited_metadata
from shortv_export.packaging.figures import draw_scores
from shortv_export.packaging.seal import UNNAMED, rename_card
from shortv_export.records.evaluation import Evaluation
from shortv_export.records.frozen import Frozen
from shortv_export.records.recipe import BaseRecord, Recipe
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from shortv_export.samples import LOCAL_FILES
from shortv_export.selection.presets import PRESETS, given_selection, preset_selection
from tests.support.packages import make_package

TAG = "shortv-0123456789ab"
LAYERS = 8
SCORES = Scores(
    visual=(0.3, 0.05, 0.02, 0.008, 0.004, 0.002, 0.001, 0.0),
    text=(1.5, 2.0, 0.7, 0.4, 0.3, 0.3, 0.2, 0.1),
    visual_standard_error=(0.0,) * LAYERS,
    num_samples=40,
    calibration={
        "data": "paper",
        "seed": 3,
        "sources": [{"repo_id": "lmms-lab/GQA", "revision": "a" * 40}, {"repo_id": "lmms-lab/flickr30k"}],
    },
)


def llava(repo_id: str, path: Path, files: tuple[str, ...] = ("chat_template.json",)) -> BaseModel:
    """A published checkpoint as far as a card needs it: the configs leave out what is the default, 7B."""
    large = {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40, "num_hidden_layers": 40}
    text = {"model_type": "llama", "vocab_size": 32064, **(large if "13b" in repo_id else {})}
    model_type = "llava_next" if "v1.6" in repo_id else "llava"
    config = {"model_type": model_type, "text_config": text, "image_token_index": 32000, "image_seq_length": 576}
    return BaseModel(repo_id, repo_id, None, path, config, FAMILIES[model_type], files)


def recipe_of(base: BaseModel, selection: Selection, scores: Scores | None = None) -> Recipe:
    visual = 5 * base.visual_tokens if base.family.model_type == "llava_next" else base.visual_tokens
    ratio = flops_ratio(base.layer_shapes, selection.frozen_layers, 64, visual)
    return Recipe(
        base=BaseRecord(base.repo_id, base.revision, "", {}),
        family=base.family.model_type,
        num_layers=base.num_layers,
        frozen_layers=selection.frozen_layers,
        weights="copy",
        selection=asdict(selection),
        scores=asdict(scores) if scores else None,
        cost={"text_tokens": 64, "visual_tokens": visual, "flops_ratio": ratio},
        card={},
        figure=None,
        code=dict.fromkeys(base.family.code, ""),
        versions={"shortv-export": "0.1.0", "transformers": "5.23.0"},
    )


def rendered(base: BaseModel, recipe: Recipe, inherited: Inherited, **options: Any) -> str:
    """The card of a recipe that records this licence and these languages."""
    return render_card(base, replace(recipe, card=asdict(inherited)), **options)


def metadata_of(text: str) -> dict[str, Any]:
    """The YAML block, which the Hub must accept."""
    assert text.startswith("---\n")
    data, errors, warnings = front_matter(text)
    assert (errors, warnings) == ([], [])
    assert data == yaml.safe_load(text.split("---\n")[1])
    return data


@pytest.fixture
def base(tiny_base: Callable[..., Path]) -> BaseModel:
    return resolve_base(tiny_base(num_layers=LAYERS))


def with_card(base: BaseModel, folder: Path, text: str, **fields: Any) -> BaseModel:
    shutil.copytree(base.path, folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return replace(base, path=folder, **fields)


# Metadata


def test_metadata(base: BaseModel) -> None:
    base = replace(base, repo_id="acme/base", revision="a" * 40)
    lc = Selection((5, 6, 7), LAYERS, "lc", {"num_frozen": 3})
    text = rendered(base, recipe_of(base, lc, SCORES), inherited_metadata(base), tag=TAG, repo_id="me/model")
    assert metadata_of(text) == {
        "language": ["en"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": "acme/base",
        "base_model_relation": "finetune",
        "datasets": ["lmms-lab/GQA", "lmms-lab/flickr30k"],
        "tags": ["shortv", "custom_code", "llava", "arxiv:2504.00502"],
    }


def test_licence_of_the_base(base: BaseModel, tmp_path: Path) -> None:
    other = "---\nlicense: other\nlicense_name: acme-1\nlicense_link: LICENSE\nlanguage: en\n---\n"
    on_the_hub = with_card(base, tmp_path / "a", other, repo_id="acme/base", revision="a" * 40)
    link = "https://huggingface.co/acme/base/blob/" + "a" * 40 + "/LICENSE"
    assert inherited_metadata(on_the_hub) == Inherited("other", "acme-1", link, ("en",))
    carried = replace(on_the_hub, files=(*base.files, "LICENSE"))
    assert inherited_metadata(carried) == Inherited("other", "acme-1", "LICENSE", ("en",))
    assert inherited_metadata(carried, "mit") == Inherited("mit", None, None, ("en",), license_given=True)
    assert inherited_metadata(with_card(base, tmp_path / "b", "---\nlicense: [mit]\n---\n")).license == "mit"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# A model\n",
        "---\nlanguage: en\n---\n",
        "---\nlicense: unknown\n---\n",
        "---\nlicense: [mit, gpl]\n---\n",
        "---\nlicense: 3\n---\n",
        "---\n- a list\n---\n",
        "---\nlicense: {\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['false']\n---\n",
    ],
)
def test_unknown_licence(base: BaseModel, tmp_path: Path, text: str) -> None:
    unknown = with_card(base, tmp_path / "base", text)
    with pytest.raises(ShortVError, match=r"names no licence; say which one applies with `license`\.$"):
        inherited_metadata(unknown)
    assert inherited_metadata(unknown, "apache-2.0").license == "apache-2.0"
    (unknown.path / "README.md").unlink()
    with pytest.raises(ShortVError, match="names no licence"):
        inherited_metadata(unknown)


@pytest.mark.parametrize(
    ("license", "words"),
    [
        ("MIT", "no licence 'MIT'; the nearest `license` is mit."),
        ("agpl-3.0-or-later", "'agpl-3.0-or-later'; the nearest `license` is agpl-3.0."),
        ("Apache License 2.0", "the nearest `license` is apache-2.0."),
        ("all rights\nreserved", "`license` is one of https://huggingface.co/docs/hub/repositories-licenses."),
        ("", "no licence ''"),
    ],
)
def test_licences_that_the_hub_would_refuse(base: BaseModel, tmp_path: Path, license: str, words: str) -> None:
    with pytest.raises(ShortVError, match=re.escape(words)) as caught:
        inherited_metadata(base, license)
    assert "\n" not in str(caught.value)
    named = with_card(base, tmp_path / "base", f"---\nlicense: {json.dumps(license)}\n---\n", name="acme/base")
    with pytest.raises(ShortVError, match=r"the card of acme/base names the licence .* with `license`, such as "):
        inherited_metadata(named)
    assert inherited_metadata(named, "mit").license == "mit"


HOSTILE = "x\n---\nlicense: evil\n---\n# Evil\n<script>alert(1)</script> {{ 7 * 7 }} `rm -rf` | [a](javascript:b)"


def test_text_from_elsewhere_is_harmless(base: BaseModel, tmp_path: Path) -> None:
    """Nothing that a base's card or a scores file says becomes metadata, markup or a template."""
    front = {"license": "other", "license_name": HOSTILE, "license_link": HOSTILE, "language": [HOSTILE, "de"]}
    hostile = with_card(base, tmp_path / "base", f"---\n{json.dumps(front)}\n---\n", name=HOSTILE)
    calibration = {"data": HOSTILE, "seed": HOSTILE, "sources": [{"repo_id": HOSTILE}, {"repo_id": 3}, None]}
    scores = replace(SCORES, calibration=calibration)
    lc = Selection((5, 6, 7), LAYERS, "lc", {"fraction": 0.6})
    text = rendered(hostile, recipe_of(hostile, lc, scores), inherited_metadata(hostile), tag=TAG)
    data = metadata_of(text)
    assert (data["license"], data["language"]) == ("other", ["de"])
    assert "datasets" not in data
    assert "\n" not in data["license_name"]
    assert text.count("\n---\n") == 1
    body = text.split("\n---\n")[1]
    outside = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert "Evil" not in outside
    assert "<script>" not in outside
    assert "\n# Evil" not in body
    assert "49" not in body.rpartition("<!--")[0]  # what follows is a hash
    assert body.count("```") % 2 == 0


def test_odd_calibration_records(base: BaseModel) -> None:
    lc = Selection((7,), LAYERS, "lc", {"num_frozen": 1})
    for calibration in ({}, {"sources": 3}, {"sources": {"a": 1}, "data": None}):
        scores = replace(SCORES, calibration=calibration)
        text = rendered(base, recipe_of(base, lc, scores), inherited_metadata(base), tag=TAG)
        assert "datasets" not in metadata_of(text)
    for count in (0, -1, True, "9", [1], None):
        scores = replace(SCORES, calibration=SCORES.calibration | {"num_videos": count, "num_images": 40})
        assert "video" not in rendered(base, recipe_of(base, lc, scores), inherited_metadata(base), tag=TAG)


# What it says


def test_says_whether_it_was_calibrated_on_videos(base: BaseModel) -> None:
    lc = Selection((7,), LAYERS, "lc", {"num_frozen": 1})

    def says(**counts: Any) -> str:
        source = {"repo_id": "acme/clips", "frames": 8}
        calibration = {"data": "acme/clips:video=clip", "seed": 0, "sources": [source], **counts}
        recipe = recipe_of(base, lc, replace(SCORES, calibration=calibration))
        return rendered(base, recipe, inherited_metadata(base), tag=TAG)

    text = says(num_images=0, num_videos=40)
    assert "mean over 40 samples of `acme/clips` (40 videos of at most 8 frames); shaded" in text
    assert "for prompts with images and videos: visual tokens are frozen" in text
    assert "A prompt without an image or a video costs" in text
    assert "--data acme/clips:video=clip" in text
    assert "(1 video of at most 8 frames and 39 images); shaded" in says(num_images=39, num_videos=1)
    assert "mean over 40 samples of `acme/clips`; shaded" in says(num_images=40, num_videos=0)


def test_snippet_pins_the_revision_and_is_python(base: BaseModel) -> None:
    selection = given_selection([1, 3], LAYERS)
    for files in (base.files, tuple(name for name in base.files if not name.startswith("chat_template"))):
        text = rendered(
            replace(base, files=files),
            recipe_of(base, selection),
            inherited_metadata(base),
            tag=TAG,
            repo_id="me/model",
        )
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
        assert code is not None
        compile(code[1], "snippet", "exec")
        assert f'revision = "{TAG}"' in code[1]
        assert 'model_id = "me/model"' in code[1]
        assert ("apply_chat_template" in code[1]) == (files is base.files)
    unnamed = rendered(base, recipe_of(base, selection), inherited_metadata(base), tag=TAG)
    assert UNNAMED in unnamed
    assert rename_card(unnamed, "me/model") == rendered(
        base, recipe_of(base, selection), inherited_metadata(base), tag=TAG, repo_id="me/model"
    )


def test_says_that_the_prompts_are_made_up(base: BaseModel) -> None:
    lc = Selection((7,), LAYERS, "lc", {"num_frozen": 1})
    texts = [
        rendered(base, recipe_of(base, lc, replace(SCORES, calibration=each)), inherited_metadata(base), tag=TAG)
        for each in (SCORES.calibration, {**SCORES.calibration, "prompt": "plain"})
    ]
    said = "The base has no chat template. What is measured here was asked in the form `USER: <image>"
    assert [said in text for text in texts] == [False, True]


TEMPLATE = "{{ messages[0]['role'] }}: {{ messages[0]['content'] | length }}"
NAMED = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "RAG"}]
# File or folder -> the chat templates in it.
PLACES = [
    {},
    {"chat_template.jinja": TEMPLATE},
    {"chat_template.json": TEMPLATE},
    {"processor_config.json": TEMPLATE},
    {"processor_config.json": {"default": TEMPLATE, "rag": "RAG"}},
    {"processor_config.json": {"rag": "RAG"}, "tokenizer_config.json": TEMPLATE},
    {"processor_config.json": None, "chat_template.jinja": TEMPLATE},
    {"tokenizer_config.json": TEMPLATE},
    {"tokenizer_config.json": NAMED},
    {"tokenizer_config.json": NAMED[1:]},
    {"tokenizer_config.json": {"default": TEMPLATE, "rag": "RAG"}},
    {"tokenizer_config.json": None},
    {"additional_chat_templates": {"rag": "RAG"}},
    {"additional_chat_templates": {"default": TEMPLATE}},
    {"additional_chat_templates": {"rag": "RAG"}, "chat_template.jinja": TEMPLATE},
    {"additional_chat_templates": {"rag": "RAG"}, "tokenizer_config.json": TEMPLATE},
    {"additional_chat_templates": {"rag": "RAG"}, "processor_config.json": TEMPLATE},
    {"tokenizer_config.json": NAMED, "chat_template.json": TEMPLATE},
]


def put_templates(folder: Path, places: dict[str, Any]) -> None:
    """Puts chat templates into a base that has none."""
    for name, templates in places.items():
        path = folder / name
        if name.endswith("_config.json"):
            path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "chat_template": templates}), "utf-8")
        elif name.endswith(".json"):
            path.write_text(json.dumps({"chat_template": templates}), "utf-8")
        elif name.endswith(".jinja"):
            path.write_text(templates, "utf-8")
        else:
            path.mkdir()
            for each, text in templates.items():
                (path / f"{each}.jinja").write_text(text, "utf-8")


@pytest.mark.parametrize("places", PLACES, ids=lambda places: "+".join(places) or "none")
def test_snippet_takes_the_template_from_where_it_lies(
    tiny_base: Callable[..., Path], tmp_path: Path, places: dict[str, Any]
) -> None:
    """The snippet is run. Its prompt is that of transformers' own `apply_chat_template` of who has a template."""
    from transformers import AutoProcessor

    folder = shutil.copytree(tiny_base(), tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    put_templates(folder, places)
    base = resolve_base(folder)
    package = make_package(base, tmp_path / "package", given_selection([1], base.num_layers))
    processor: Any = AutoProcessor.from_pretrained(package, trust_remote_code=True)
    content = [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]
    expected = "USER: <image>\nWhat is in this picture? ASSISTANT:"
    for owner in (processor.tokenizer, processor):
        with suppress(ValueError):  # it has no template, or none by default
            expected = owner.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    code = re.search(r"question = .*?(?=image = )", (package / "README.md").read_text("utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"processor": processor}
    exec(code[0], names)
    assert names["prompt"] == expected


def test_a_local_base_keeps_its_path_to_itself(base: BaseModel) -> None:
    selection = given_selection([1, 3], LAYERS)
    text = rendered(base, recipe_of(base, selection), inherited_metadata(base), tag=TAG)
    assert str(base.path) not in text
    assert base.path.name not in text
    assert not {"base_model", "base_model_relation"} & metadata_of(text).keys()
    assert "shortv-export package BASE OUT --frozen-layers 1,3" in text


def test_paper_numbers_only_with_the_papers_list(tmp_path: Path) -> None:
    base = llava("llava-hf/llava-1.5-7b-hf", tmp_path)
    render = lambda selection: rendered(  # noqa: E731
        base, recipe_of(base, selection), Inherited("llama2"), tag=TAG
    )
    preset = render(preset_selection(base))
    assert "## Results in the paper" in preset
    assert "| FLOPs | 100 % | 55 % |\n| VQAv2 | 76.5 | 75.7 |" in preset
    assert "**55 % of the base's FLOPs**" in preset
    given = render(given_selection([31, 30, 29], 32))
    assert "## Results in the paper" not in given
    assert "75.7" not in given
    assert "measured on LLaVA-NeXT-7B and its ShortV version, not on this repository" in given


def test_paper_ratios_come_out_of_the_equation(tmp_path: Path) -> None:
    """The table that is quoted and the cost that is counted agree for all four checkpoints."""
    paper = json.loads((model_cards_dir() / "paper.json").read_text())
    for repo_id, layers in PRESETS.items():
        base = llava(repo_id, tmp_path)
        recipe = recipe_of(base, preset_selection(base))
        quoted = paper["models"][repo_id]
        assert quoted["num_frozen"] == len(layers)
        assert quoted["shortv"][0] == f"{100 * recipe.cost['flops_ratio']:.0f} %"
        assert len(quoted["base"]) == len(quoted["shortv"]) == len(paper["columns"])


def test_cost_of_layers_that_differ(tmp_path: Path) -> None:
    """Dense layers 0 and 3 of four, the others with experts: the formulas say so, and the table counts them."""
    text_config = {
        **{"model_type": "qwen3_vl_moe_text", "num_hidden_layers": 4, "mlp_only_layers": [0, 3]},
        **{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16},
        **{"intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    }
    config = {"model_type": "qwen3_vl_moe", "image_token_id": 9, "image_seq_length": 576, "text_config": text_config}
    base = BaseModel("acme/base", "acme/base", "a" * 40, tmp_path, config, FAMILIES["qwen3_vl_moe"], ())

    def render(layers: str) -> str:
        recipe = recipe_of(base, given_selection(parse_layers(layers), 4))
        return rendered(base, recipe, Inherited("apache-2.0", None, None, ()), tag=TAG)

    t, v, h = 64, 576, 64
    attention = 4 * (t + v) ** 2 * h
    dense = 2 * (t + v) * (4 * h + 3 * 512) * h + attention
    sparse = 2 * (t + v) * (4 * h + 3 * 96 + 8) * h + attention
    frozen = 2 * t * (4 * h + 3 * 512) * h + 4 * v * h**2 + 4 * t * (t + v) * h
    ratio = (frozen + dense + 2 * sparse) / (2 * dense + 2 * sparse)
    text = render("0")
    assert (
        f"| 576 | 64 | {2e-9 * (dense + sparse):.3g} | {2e-9 * (dense + sparse) * ratio:.3g} | {100 * ratio:.1f} %"
        in text
    )
    assert "m = 512 in 2 layers and 96 in 2 layers, L = 4 layers, N = 1 frozen." in text
    assert "ratio   (Σ base of the L−N layers + Σ frozen of the N) / (Σ base of all L)" in text
    assert f"{100 * ratio:.1f} %" not in render("1")
    code = re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert max(len(line) for block in code for line in block.splitlines()) <= 80
    text_config["mlp_only_layers"] = []
    base = replace(base)  # what it has read of its config is kept
    assert "m = 96, L = 4 layers" in render("0")
    assert "ratio   ((L−N)·base + N·frozen) / (L·base)" in render("0")


def test_commands(base: BaseModel) -> None:
    base = replace(base, repo_id="acme/base", revision="a" * 40)
    at = "--revision " + "a" * 40
    lc = Selection((7,), LAYERS, "lc", {"flops_ratio": 0.9, "text_tokens": 64, "visual_tokens": 16})
    text = rendered(base, recipe_of(base, lc, SCORES), inherited_metadata(base), tag=TAG)
    joined = text.replace(" \\\n  ", " ")
    options = "--data paper --num-samples 40 --seed 3 --no-operators --text-contribution"
    assert f"shortv-export score acme/base {at} {options}\n" in joined
    assert f"shortv-export package acme/base OUT {at} --scores scores.json --flops-ratio 0.9\n" in joined
    code = re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert max(len(line) for block in code for line in block.splitlines()) <= 80  # no scrolling


def test_measured_divergence(base: BaseModel) -> None:
    """The probe of the number that was chosen, not that of another."""
    probes = [
        {"num_frozen": 4, "kl": 0.91234, "standard_error": 0.2},
        {"num_frozen": 2, "kl": 0.01234567, "standard_error": 0.00456},
        {"num_frozen": 3, "kl": 0.25, "standard_error": 0.1},
    ]
    evidence = {"probes": probes, "held_out": {"data": "paper", "num_samples": 33}}
    lc = Selection((6, 7), LAYERS, "lc", {"max_kl": 0.05, "seed": 0}, evidence=evidence)
    text = rendered(base, recipe_of(base, lc, SCORES), inherited_metadata(base), tag=TAG)
    (paragraph,) = [line for line in text.splitlines() if "KL(base" in line]
    assert "by 0.0123 nats" in paragraph
    assert "over `33` samples" in paragraph
    assert "standard error 0.0046" in paragraph
    assert "at or below `0.05`" in paragraph
    assert "0.912" not in paragraph
    assert "0.25" not in paragraph
    without = replace(lc, budget={"num_frozen": 2}, evidence={})
    assert "KL(base" not in rendered(base, recipe_of(base, without), inherited_metadata(base), tag=TAG)


def test_weights_by_reference(base: BaseModel) -> None:
    base = replace(base, repo_id="acme/base", revision="a" * 40)
    copied = recipe_of(base, given_selection([1], LAYERS))
    referred = replace(copied, weights="reference")
    texts = [rendered(base, recipe, inherited_metadata(base), tag=TAG) for recipe in (copied, referred)]
    for words in ("no weights of its own", f"https://huggingface.co/acme/base/tree/{'a' * 40}", "--weights reference"):
        assert [words in text for text in texts] == [False, True]


# The figure


def test_figure(base: BaseModel) -> None:
    from PIL import Image

    png = draw_scores(SCORES, Frozen((5, 6, 7)))
    assert png == draw_scores(SCORES, Frozen((5, 6, 7)))
    assert png != draw_scores(SCORES, Frozen((4, 5, 6, 7)))
    image = Image.open(io.BytesIO(png))
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0))[3] == 0  # no background: it lies on light and dark pages
    assert not image.info.keys() & {"Software", "Creation Time", "date"}
    lc = Selection((5, 6, 7), LAYERS, "lc", {"num_frozen": 3})
    text = rendered(base, recipe_of(base, lc, SCORES), inherited_metadata(base), tag=TAG)
    alt = re.search(r"!\[(.+)\]\(layer_contribution\.png\)", text)
    assert alt is not None
    assert "between 0 and 0.3 nats, most in layer 0; the 3 frozen of 8 layers" in alt[1]


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2)."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", [figures.INK, figures.VISUAL, figures.TEXT, figures.SPEED])
@pytest.mark.parametrize("page", ["#ffffff", "#0b0f19"])  # the Hub's
def test_colours_on_light_and_dark_pages(color: str, page: str) -> None:
    low, high = sorted((luminance(color), luminance(page)))
    assert (high + 0.05) / (low + 0.05) > 3  # what WCAG asks of graphics and large text


# What colour-blind eyes see of linear RGB (Machado et al. 2009, severity 1).
SEEN = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}


@pytest.mark.parametrize("eyes", SEEN)
def test_the_sweeps_curves_differ_for_colour_blind_eyes(eyes: str) -> None:
    """A distance of 10 in CIELAB is seen at a glance. No two curves have the same line and marker, either."""
    import numpy as np
    from skimage.color import rgb2lab

    def seen(color: str) -> Any:
        srgb = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        linear = np.clip(np.array(SEEN[eyes]) @ linear, 0, 1)
        return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))

    colors = (figures.VISUAL, figures.TEXT, figures.SPEED, figures.INK)
    assert min(np.linalg.norm(seen(one) - seen(other)) for one, other in combinations(colors, 2)) > 10


def test_figure_of_zeros() -> None:
    zeros = Scores((0.0,), (0.0,), (0.0,), 1)
    assert draw_scores(zeros, Frozen()).startswith(b"\x89PNG")


# The examples


@pytest.mark.parametrize("repo_id", sorted(PRESETS))
def test_examples_are_in_step(repo_id: str, tmp_path: Path) -> None:
    """`model_cards/examples` shows what the tool writes for the paper's presets (SHORTV_WRITE_EXAMPLES=1 renews)."""
    base = llava(repo_id, tmp_path)
    name = repo_id.split("/")[1].removesuffix("-hf")
    text = rendered(
        base,
        recipe_of(base, preset_selection(base)),
        Inherited("llama2", language=("en",)),
        tag="shortv-" + "0" * 12,
        repo_id=f"your-name/{name}-shortv",
    )
    example = model_cards_dir() / "examples" / f"{name}.md"
    if os.environ.get("SHORTV_WRITE_EXAMPLES"):
        example.write_text(text, encoding="utf-8")
    assert example.read_text(encoding="utf-8") == text
    metadata_of(text)


def test_the_measured_example_is_in_step() -> None:
    """`model_cards/examples/scenes-llava` is the card of its ``evaluation.json`` (SHORTV_WRITE_EXAMPLES=1 renews)."""
    base = resolve_base(Path(demo.__file__).with_name("model"))
    folder = model_cards_dir() / "examples" / "scenes-llava"
    evaluation = Evaluation.load(folder / "evaluation.json")
    frozen = evaluation.chosen.frozen_layers or ()
    # Of the scores, the card shows the range in words.
    visual = (1.4, *(0.1,) * 10, 0.0)
    calibration = {"data": LOCAL_FILES, "seed": 0, "sources": [{"format": "imagefolder"}]}
    scores = Scores(visual, visual, (0.0,) * 12, 40, calibration=calibration)
    recipe = recipe_of(base, Selection(frozen, 12, "lc", {"fraction": 0.6}), scores)
    inherited = Inherited("apache-2.0", language=("en",))
    text = rendered(base, recipe, inherited, tag="shortv-14f70ccccccf", evaluation=evaluation)
    if os.environ.get("SHORTV_WRITE_EXAMPLES"):
        (folder / "README.md").write_text(text, encoding="utf-8")
    assert (folder / "README.md").read_text(encoding="utf-8") == text
