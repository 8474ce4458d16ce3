"""The model card: what a published repository says about itself.

Every number on it was counted, measured or cites its source. The base's own card is untrusted text: only its
licence and its languages are taken over, each in the form that the Hub's metadata has.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..base import BaseModel, LayerShape, model_flops
from ..files import model_cards_dir, read_json
from ..records import FIGURE_NAME, SWEEP_NAME, Evaluation, Recipe, Row
from .card_metadata import Inherited, plain_line, recorded_metadata
from .commands import calibration_facts, evaluate_command, package_commands, sample_facts

# Stands for the repository's name until the package is published.
UNNAMED = "your-name/your-model"

_ARXIV = "2504.00502"
_TEMPLATE = "model_card.md.jinja"
_MEASURED_TEMPLATE = "measured.md.jinja"
_PAPER = "paper.json"


def template_sha256() -> str:
    """The hash of the templates and of the paper's numbers, from which cards are rendered."""
    digest = hashlib.sha256()
    for name in (_TEMPLATE, _MEASURED_TEMPLATE, _PAPER):
        digest.update((model_cards_dir() / name).read_bytes())
    return digest.hexdigest()


def render_card(
    base: BaseModel,
    recipe: Recipe,
    *,
    tag: str,
    repo_id: str | None = None,
    evaluation: Evaluation | None = None,
) -> str:
    """The text of ``README.md``.

    Args:
        base: the base model.
        recipe: of the package.
        tag: the Hub tag that pins the package.
        repo_id: where it will be published; `UNNAMED` stands for it otherwise.
        evaluation: of the package; without one, the card has nothing measured on it.
    """
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
    inherited = recorded_metadata(recipe.card)
    unit, cost = _cost_table(base.layer_shapes, recipe)
    paper = read_json(model_cards_dir() / _PAPER)
    calibration = calibration_facts(recipe)
    measured = _measured(evaluation, repo_id or UNNAMED) if evaluation else None
    preset = paper["models"].get(base.repo_id) if recipe.selection["method"] == "preset" else None
    return environment.get_template(_TEMPLATE).render(
        metadata=_metadata(base, recipe, inherited),
        title=f"{(base.repo_id or recipe.family).split('/')[-1]} · ShortV-{len(recipe.frozen_layers)}",
        repo_id=repo_id or UNNAMED,
        base=base,
        recipe=recipe,
        tag=tag,
        since=base.family.since,
        broken=base.family.broken,
        commands=package_commands(base, recipe, inherited),
        calibration=calibration,
        videos=bool(calibration["videos"] or (measured and measured["calibration"]["videos"])),
        divergence=_divergence(recipe),
        unit=unit,
        cost=cost,
        hidden_size=base.layer_shapes[0].hidden_size,
        projections=_projection_sizes(base.layer_shapes),
        mixers=sum(shape.mixer_flops > 0 for shape in base.layer_shapes),
        ffn_sizes=_ffn_sizes(base.layer_shapes),
        layers_differ=len({*base.layer_shapes}) > 1,
        figure=FIGURE_NAME,
        figure_text=_figure_text(recipe) if recipe.scores else None,
        has_chat_template=_has_chat_template(base),
        columns=paper["columns"],
        preset=preset,
        # For a base of which nothing is known: the model on which the losses are largest.
        elsewhere=preset or paper["models"]["llava-hf/llava-v1.6-vicuna-7b-hf"],
        evaluation=evaluation,
        measured=measured,
        arxiv=_ARXIV,
    )


def code_span(text: Any) -> str:
    """Text from elsewhere as a Markdown code span, in which nothing is interpreted; also inside a table."""
    return "`" + plain_line(text).replace("`", "'").replace("|", "/") + "`"


def prose(text: Any) -> str:
    """Text from elsewhere as plain words within Markdown; also inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", plain_line(text))


def _metadata(base: BaseModel, recipe: Recipe, inherited: Inherited) -> str:
    """The card's YAML block. huggingface_hub writes it, so that every value is quoted as needed."""
    from huggingface_hub import ModelCardData

    calibration = calibration_facts(recipe)
    return ModelCardData(
        language=list(inherited.language) or None,
        license=inherited.license,
        license_name=inherited.license_name,
        license_link=inherited.license_link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=base.repo_id,
        # The Hub knows adapter, finetune, merge and quantized, and guesses where none is given. No word means
        # "same weights, less computation"; "finetune" is where it files all other derived models.
        base_model_relation="finetune" if base.repo_id else None,
        datasets=calibration["datasets"] or None,
        tags=["shortv", "custom_code", recipe.family, f"arxiv:{_ARXIV}"],
    ).to_yaml()


def _divergence(recipe: Recipe) -> dict[str, str] | None:
    """What a bound on the divergence measured for the layers that it froze; None where there was no such bound."""
    evidence = recipe.selection["evidence"]
    frozen = len(recipe.frozen_layers)
    probe = next((probe for probe in evidence.get("probes", []) if probe["num_frozen"] == frozen), None)
    if probe is None:
        return None
    return {
        "kl": f"{probe['kl']:.3g}",
        "standard_error": f"{probe['standard_error']:.2g}",
        "num_samples": plain_line(evidence.get("held_out", {}).get("num_samples")),
        "bound": plain_line(recipe.selection["budget"].get("max_kl")),
    }


def _measured(evaluation: Evaluation, repo_id: str) -> dict[str, Any]:
    """What the card tells of an evaluation beside its numbers."""
    groups = sorted(evaluation.chosen.groups.items(), key=lambda item: item[1].difference.mean)
    sweep = evaluation.sweep
    return {
        "row": evaluation.chosen,
        "calibration": sample_facts(evaluation.data),
        "groups": groups,
        "worse": [(name, found) for name, found in groups if (found.difference.high or 0) < 0],
        "command": evaluate_command(evaluation, repo_id),
        "sweep": sweep,
        "sweep_figure": SWEEP_NAME,
        "sweep_text": _sweep_text(sweep) if sweep else None,
        "baselines": [row for row in evaluation.rows if row.baseline],
    }


def _sweep_text(sweep: tuple[Row, ...]) -> str:
    """The figure in words, for who cannot see it."""
    chosen = next(row for row in sweep if row.chosen)
    last = sweep[-1]
    text = (
        "Agreement with the base against the number of frozen layers: "
        f"{chosen.fidelity.exact_match.mean:.0%} of answers are the same at the chosen "
        f"{len(chosen.frozen_layers or ())}, and {last.fidelity.exact_match.mean:.0%} at "
        f"{len(last.frozen_layers or ())}."
    )
    if chosen.speed:
        text += f" The prompt pass is {chosen.speed[0].speed_up:.2f} times as fast at the chosen number."
    return text


def _cost_table(shapes: Sequence[LayerShape], recipe: Recipe) -> tuple[str, list[dict[str, Any]]]:
    """Counted FLOPs of the decoder layers for some prompt lengths, the recipe's own first; and their unit."""
    text, visual = recipe.cost["text_tokens"], recipe.cost["visual_tokens"]
    prompts = ((text, visual), (text, 2 * visual), (8 * text, visual), (text, 0))
    flops = [[model_flops(shapes, frozen, *prompt) for frozen in ((), recipe.frozen_layers)] for prompt in prompts]
    unit, scale = ("TFLOPs", 1e12) if flops[0][0] >= 1e11 else ("GFLOPs", 1e9)
    rows = [
        {
            "text": prompt[0],
            "visual": prompt[1],
            "dense": f"{dense / scale:.3g}",
            "frozen": f"{frozen / scale:.3g}",
            "ratio": frozen / dense,
        }
        for prompt, (dense, frozen) in zip(prompts, flops, strict=True)
    ]
    return unit, rows


def _ffn_sizes(shapes: Sequence[LayerShape]) -> str:
    """The formulas' m: one, or each of several with the number of layers that have it."""
    sizes = Counter(
        f"{shape.intermediate_size} ({shape.visual_intermediate_size} for visual tokens)"
        if shape.visual_intermediate_size
        else f"{shape.intermediate_size}"
        for shape in shapes
    )
    return _by_layers(sizes)


def _projection_sizes(shapes: Sequence[LayerShape]) -> str:
    """What the formulas take to be h wide, where it is not: of all layers with attention, or of each kind of them."""
    sizes: Counter[str] = Counter()
    for shape in shapes:
        if shape.query_size:
            text = f"query {shape.query_size}, key and value {shape.key_value_size}"
            text += f", gate {shape.gate_size}" if shape.gate_size else ""
            sizes[
                text if shape.value_projections else text.replace("key and value", "key, and values made of it,")
            ] += 1
    hidden = shapes[0].hidden_size
    return "" if sizes.keys() == {f"query {hidden}, key and value {hidden}"} else _by_layers(sizes)


def _by_layers(sizes: Counter[str]) -> str:
    """One size, or each of several with the number of layers that have it."""
    if len(sizes) == 1:
        return next(iter(sizes))
    return " and ".join(f"{size} in {count} layer{'s' if count > 1 else ''}" for size, count in sizes.items())


def _figure_text(recipe: Recipe) -> str:
    """The figure in words, for who cannot see it."""
    visual = (recipe.scores or {})["visual"]
    low, high = min(visual), max(visual)
    most = max(range(len(visual)), key=visual.__getitem__)
    return (
        f"Layer Contribution of visual and text tokens per decoder layer, on a log scale. "
        f"Visual tokens contribute between {low:.2g} and {high:.2g} nats, most in layer {most}; "
        f"the {len(recipe.frozen_layers)} frozen of {recipe.num_layers} layers are shaded."
    )


def _has_chat_template(base: BaseModel) -> bool:
    """Whether the processor can format a conversation: a template file, or a field of its configuration."""
    if any(name.startswith("chat_template.") for name in base.files):
        return True
    names = [name for name in ("processor_config.json", "tokenizer_config.json") if name in base.files]
    return any("chat_template" in read_json(base.path / name) for name in names)
