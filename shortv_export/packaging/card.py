"""The model card (``README.md``) of a package.

Every number on it was calculated, measured or cites its source. The base's own card is untrusted text: only its
licence and its languages are taken over, each in the form of the Hub's metadata.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import BaseModel, LayerShape, model_flops
from ..engines import VLLM_FAMILIES
from ..files import model_cards_dir, read_json
from ..records import (
    CONTROL_TOLERANCE,
    LEVEL,
    MIN_SAMPLES,
    TEMPLATES_FOLDER,
    TOKENIZER_CONFIG_NAME,
    Evaluation,
    Frozen,
    Recipe,
    Row,
)
from .card_metadata import Inherited, plain_line, recorded_metadata
from .commands import calibration_facts, evaluate_command, package_commands, sample_facts
from .seal import UNNAMED, rename_card, seal

if TYPE_CHECKING:
    import jinja2

_ARXIV = "2504.00502"


def template_sha256() -> str:
    """The joint hash of the templates and of the paper's numbers."""
    digest = hashlib.sha256()
    for name in ("model_card.md.jinja", "measured.md.jinja", "paper.json"):
        digest.update((model_cards_dir() / name).read_bytes())
    return digest.hexdigest()


def render_card(
    base: BaseModel, recipe: Recipe, *, tag: str, repo_id: str | None = None, evaluation: Evaluation | None = None
) -> str:
    """The text of ``README.md``.

    Args:
        base: of which its config, the names of its files and its templates are read.
        recipe: of the package.
        tag: the Hub tag that pins the package.
        repo_id: where it will be published; None for `UNNAMED`.
        evaluation: of the package; None leaves out the measured sections.
    """
    paper = read_json(model_cards_dir() / "paper.json")
    preset = paper["models"].get(base.repo_id) if recipe.selection["method"] == "preset" else None
    calibration = calibration_facts(recipe)
    measured = _measured(evaluation) if evaluation else None
    inherited = recorded_metadata(recipe.card)
    unit, cost = _cost_table(base.layer_shapes, recipe)
    text = (
        _environment()
        .get_template("model_card.md.jinja")
        .render(
            metadata=_metadata(base, recipe, inherited, calibration["datasets"]),
            title=f"{_title(base, inherited)} · {_variant(recipe)}",
            derived_from=inherited.base_model,
            repo_id=UNNAMED,
            base=base,
            recipe=recipe,
            tag=tag,
            commands=package_commands(base, recipe, inherited),
            calibration=calibration,
            videos=bool(calibration["videos"] or (measured and measured["calibration"]["videos"])),
            divergence=_divergence(recipe),
            joint=recipe.selection["evidence"].get("joint"),
            unit=unit,
            cost=cost,
            projections=_projection_sizes(base.layer_shapes),
            mixers=sum(shape.mixer_flops > 0 for shape in base.layer_shapes),
            ffn_sizes=_ffn_sizes(base.layer_shapes),
            figure_text=_figure_text(recipe) if recipe.scores else None,
            serving=base.family.model_type in VLLM_FAMILIES,
            template_owner=_template_owner(base),
            paper=paper,
            preset=preset,
            # Where nothing is known of this base: the model with the largest losses.
            elsewhere=preset or paper["models"]["llava-hf/llava-v1.6-vicuna-7b-hf"],
            evaluation=evaluation,
            measured=measured,
            level=LEVEL,
            control_tolerance=CONTROL_TOLERANCE,
            arxiv=_ARXIV,
        )
    )
    return rename_card(seal(text), repo_id or UNNAMED)


def _title(base: BaseModel, inherited: Inherited) -> str:
    """The name of the base, without its owner's; of a folder, what it was derived from, or else its model type."""
    if base.repo_id:
        return base.repo_id.split("/")[-1]
    if inherited.base_model:
        return f"{inherited.base_model.split('/')[-1]} (derived)"
    return base.family.model_type


def _variant(recipe: Recipe) -> str:
    """The model's name behind that of its base. With single operators, a number of layers says nothing."""
    if recipe.frozen.operators:
        return f"ShortV at {recipe.cost['flops_ratio']:.0%} of the FLOPs"
    return f"ShortV-{len(recipe.frozen_layers)}"


@cache
def _environment() -> jinja2.Environment:
    """Keeps the templates that it has compiled: a command may render the card three times."""
    import jinja2

    # Markdown, not HTML: nothing is escaped here. Text that is not ours goes through `code` or `prose`.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(model_cards_dir()),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(code=code_span, prose=prose)
    return environment


def code_span(text: Any) -> str:
    """Foreign text as a Markdown code span, in which nothing is interpreted; also inside a table."""
    return "`" + plain_line(text).replace("`", "'").replace("|", "/") + "`"


def prose(text: Any) -> str:
    """Foreign text as plain words within Markdown; also inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", plain_line(text))


def _metadata(base: BaseModel, recipe: Recipe, inherited: Inherited, datasets: list[str]) -> str:
    """The card's YAML block. huggingface_hub writes it, so that every value is quoted as needed."""
    from huggingface_hub import ModelCardData

    origin = base.repo_id or inherited.base_model
    return ModelCardData(
        language=list(inherited.language) or None,
        license=inherited.license,
        license_name=inherited.license_name,
        license_link=inherited.license_link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=origin,
        # The Hub knows adapter, finetune, merge and quantized, and guesses if none is given. None of them fits
        # unchanged weights; all other derived models count as "finetune".
        base_model_relation="finetune" if origin else None,
        datasets=datasets or None,
        tags=["shortv", "custom_code", recipe.family, f"arxiv:{_ARXIV}"],
    ).to_yaml()


def _divergence(recipe: Recipe) -> dict[str, str] | None:
    """The divergence measured for what `max_kl` chose; None if another budget chose it."""
    evidence = recipe.selection["evidence"]
    by_operator = recipe.selection["method"] == "operators"
    frozen = len(recipe.frozen.parts) if by_operator else len(recipe.frozen_layers)
    # Where whole layers were kept although operators were looked for, the probes are of operators.
    for probe in evidence.get("probes", []) if by_operator or "joint" not in evidence else []:
        if probe["num_frozen"] == frozen:
            return {
                "kl": f"{probe['kl']:.3g}",
                "standard_error": f"{probe['standard_error']:.2g}",
                "num_samples": plain_line(evidence.get("held_out", {}).get("num_samples")),
                "bound": plain_line(recipe.selection["budget"].get("max_kl")),
            }
    return None


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    """What the measured sections and the card's lead show beside the evaluation itself."""
    chosen = evaluation.chosen
    groups = sorted(chosen.groups.items(), key=lambda item: item[1].difference.mean)
    judged = [
        (name, found) for name, found in ((None, chosen.accuracy), *groups) if found and found.p_value is not None
    ]
    # The worst group, if it lost more than all samples together.
    worst = min(judged, key=lambda item: item[1].difference.mean, default=(None, None))
    return {
        "row": chosen,
        "enough": chosen.fidelity.num_samples >= MIN_SAMPLES,
        "calibration": sample_facts(evaluation.data),
        "groups": groups,
        "judged": judged,
        "unjudged": [name for name, found in groups if found.p_value is None],
        "worse": [(name, found) for name, found in judged if found.fell],
        "worst": None if worst[0] is None else worst,
        "command": evaluate_command(evaluation, UNNAMED),
        "sweep_text": _sweep_text(evaluation.sweep) if evaluation.sweep else None,
        "baselines": [row for row in evaluation.rows if row.baseline],
    }


def _sweep_text(sweep: tuple[Row, ...]) -> str:
    """The alternative text of the figure of a sweep."""
    chosen = next(row for row in sweep if row.chosen)
    if chosen.frozen.operators:
        return (
            "Fidelity to the base against FLOPs, with single operators and with whole layers frozen: "
            f"{chosen.fidelity.exact_match.mean:.0%} of answers are the same at the chosen {chosen.flops_ratio:.0%}."
        )
    same, same_at_last = (f"{row.fidelity.exact_match.mean:.0%}" for row in (chosen, sweep[-1]))
    text = (
        f"Fidelity to the base against the number of frozen layers: {same} of answers are the same at the chosen "
        f"{len(chosen.frozen_layers or ())}, and {same_at_last} at {len(sweep[-1].frozen_layers or ())}."
    )
    if chosen.speed and not chosen.speed[0].too_noisy:
        text += f" Prefill is {chosen.speed[0].speed_up:.2f} times as fast at the chosen number."
    return text


def _cost_table(shapes: Sequence[LayerShape], recipe: Recipe) -> tuple[str, list[dict[str, Any]]]:
    """The unit and the rows: FLOPs of the decoder layers for some prompt lengths, the recipe's own first."""
    text, visual = recipe.cost["text_tokens"], recipe.cost["visual_tokens"]
    prompts = ((text, visual), (text, 2 * visual), (8 * text, visual), (text, 0))
    flops = [
        [
            model_flops(shapes, **frozen.lists, text_tokens=text, visual_tokens=visual)
            for frozen in (Frozen(), recipe.frozen)
        ]
        for text, visual in prompts
    ]
    unit, scale = ("TFLOPs", 1e12) if flops[0][0] >= 1e11 else ("GFLOPs", 1e9)
    names = ("text", "visual", "dense", "frozen", "ratio")
    rows = [
        (*prompt, f"{dense / scale:.3g}", f"{frozen / scale:.3g}", frozen / dense)
        for prompt, (dense, frozen) in zip(prompts, flops, strict=True)
    ]
    return unit, [dict(zip(names, row, strict=True)) for row in rows]


def _ffn_sizes(shapes: Sequence[LayerShape]) -> str:
    """The formulas' m."""
    return _by_layers(
        f"{shape.intermediate_size} ({shape.visual_intermediate_size} for visual tokens)"
        if shape.visual_intermediate_size
        else f"{shape.intermediate_size}"
        for shape in shapes
    )


def _projection_sizes(shapes: Sequence[LayerShape]) -> str:
    """The widths of the attention projections; empty if all are h, as the formulas assume."""
    sizes = []
    for shape in (shape for shape in shapes if shape.query_size):
        key_value = "key and value" if shape.value_projections else "key, and values made of it,"
        gate = f", gate {shape.gate_size}" if shape.gate_size else ""
        sizes.append(f"query {shape.query_size}, {key_value} {shape.key_value_size}{gate}")
    hidden = shapes[0].hidden_size
    return "" if {*sizes} == {f"query {hidden}, key and value {hidden}"} else _by_layers(sizes)


def _by_layers(sizes: Iterable[str]) -> str:
    """The size of all layers, or each of several sizes with the number of layers that have it."""
    counts = Counter(sizes)
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{size} in {count} layer{'s' if count > 1 else ''}" for size, count in counts.items())


def _figure_text(recipe: Recipe) -> str:
    """The alternative text of the figure of the scores."""
    scores = recipe.scores or {}
    if recipe.frozen.operators:
        return (
            "KL divergence from the base without attention, without the FFN and without both, per decoder layer, on a "
            f"log scale. Marks below: visual tokens skip {recipe.frozen.describe(recipe.num_layers)}."
        )
    visual = scores["visual"]
    low, high = min(visual), max(visual)
    tokens = "visual and text tokens" if scores["text"] else "visual tokens"
    return (
        f"Layer Contribution of {tokens} per decoder layer, on a log scale. "
        f"Visual tokens contribute between {low:.2g} and {high:.2g} nats, most in layer {visual.index(high)}; "
        f"the {len(recipe.frozen_layers)} frozen of {recipe.num_layers} layers are shaded."
    )


def _template_owner(base: BaseModel) -> str | None:
    """What has the default chat template once it is loaded: ``"processor"`` or ``"tokenizer"``; None without one.

    A processor's configuration comes before the template files, a tokenizer's after them. A processor does not take
    its tokenizer's template.
    """

    def configured(name: str) -> set[str]:
        """The names of the templates in a configuration."""
        fields = read_json(base.path / name, folder=base.path) if name in base.files else {}
        templates = fields.get("chat_template") if isinstance(fields, dict) else None
        if isinstance(templates, list):
            return {str(template.get("name")) for template in templates if isinstance(template, dict)}
        return {"default"} if isinstance(templates, str) else {*templates} if isinstance(templates, dict) else set()

    files = {Path(name).stem for name in base.files if name.startswith(f"{TEMPLATES_FOLDER}/")}
    files |= {"default"} if "chat_template.jinja" in base.files else set()
    legacy = {"default"} if "chat_template.json" in base.files else set()
    if "default" in (configured("processor_config.json") or legacy or files):
        return "processor"
    return "tokenizer" if "default" in (files or configured(TOKENIZER_CONFIG_NAME)) else None
