"""The model card: what a published repository says about itself.

Every number on it was counted, measured or cites its source. The base's own card is untrusted text: only its
licence and its languages are taken over, each in the form that the Hub's metadata has.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .base_model import BaseModel
from .errors import ShortVError
from .eval_results import SWEEP_NAME
from .families import model_cards_dir
from .flops import LayerShape, model_flops
from .recipe import Recipe, read_json
from .results import Evaluation, Row

CARD_NAME = "README.md"
FIGURE_NAME = "layer_contribution.png"

# Stands for the repository's name until `hub.push_package` knows it.
UNNAMED = "your-name/your-model"

_ARXIV = "2504.00502"
_MAX_CARD_BYTES = 1 << 20
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
_LINK = re.compile(r"https?://\S+|[\w-][\w.-]*", re.ASCII)  # on the web, or a file of the package
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_COMMAND_WIDTH = 78  # what the Hub's page shows without scrolling, and room for a backslash
_TEMPLATE = "model_card.md.jinja"
_MEASURED_TEMPLATE = "measured.md.jinja"
_PAPER = "paper.json"


@dataclass(frozen=True)
class Inherited:
    """What the card takes over from the base's card, as the Hub's metadata names it.

    Of these, `license_given` says that the licence is the user's word instead: the base's card names none, or another.
    """

    license: str
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    license_given: bool = False


def inherited_metadata(base: BaseModel, license: str | None = None) -> Inherited:
    """The licence and the languages of a base.

    Args:
        base: the base, whose ``README.md`` is read if it has one.
        license: the user's word for the licence; it wins over the base's card.

    Raises:
        ShortVError: no licence is known, or it is none that the Hub's metadata can hold.
    """
    metadata = _front_matter(base.path / CARD_NAME)
    languages = metadata.get("language") or []
    languages = languages if isinstance(languages, list) else [languages]
    language = tuple(each for each in languages if isinstance(each, str) and _LANGUAGE.fullmatch(each))
    inherited = metadata.get("license")
    if isinstance(inherited, list) and len(inherited) == 1:
        inherited = inherited[0]
    if license is None and (not isinstance(inherited, str) or inherited == "unknown"):
        raise ShortVError(f"the card of {base.name} names no licence; say which one applies with --license.")
    chosen = license or str(inherited)
    if not _LICENSE.fullmatch(chosen):
        raise ShortVError(
            f"{plain_line(chosen)!r} is no licence identifier, such as apache-2.0; set it with --license."
        )
    if chosen != inherited:
        return Inherited(chosen, language=language, license_given=True)
    name, link = (_short_text(metadata.get(key)) for key in ("license_name", "license_link"))
    if link and base.repo_id and "://" not in link and link not in base.files:
        # A path into the base's repository, whose file the package does not carry.
        link = f"https://huggingface.co/{base.repo_id}/blob/{base.revision}/{quote(link.lstrip('/'))}"
    return Inherited(chosen, name, link if link and _LINK.fullmatch(link) else None, language)


def recorded_metadata(record: dict[str, Any]) -> Inherited:
    """What a recipe says that the card inherits.

    Raises:
        ShortVError: it is not what `inherited_metadata` gives.
    """
    try:
        fields = {name: value for name, value in record.items() if name != "template"}
        inherited = Inherited(**{**fields, "language": tuple(fields["language"])})
        name, link = inherited.license_name, inherited.license_link
        right = (
            _LICENSE.fullmatch(inherited.license)
            and all(_LANGUAGE.fullmatch(each) for each in inherited.language)
            and isinstance(inherited.license_given, bool)
            and (name is None or name == _short_text(name))
            and (link is None or _LINK.fullmatch(link))
        )
    except (LookupError, TypeError):
        right = False
    if not right:
        raise ShortVError("the recipe's card is not what this tool writes: its licence or languages are none.")
    return inherited


def template_sha256() -> str:
    """The hash of what a card is rendered from, beside the recipe and the evaluation: the templates, the paper's
    numbers."""
    digest = hashlib.sha256()
    for name in (_TEMPLATE, _MEASURED_TEMPLATE, _PAPER):
        digest.update((model_cards_dir() / name).read_bytes())
    return digest.hexdigest()


def render_card(
    base: BaseModel,
    recipe: Recipe,
    inherited: Inherited,
    *,
    tag: str,
    repo_id: str | None = None,
    evaluation: Evaluation | None = None,
) -> str:
    """The text of ``README.md``.

    Args:
        base: the base model.
        recipe: of the package.
        inherited: what is taken over from the base's card.
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
    unit, cost = _cost_table(base.layer_shapes, recipe)
    paper = read_json(model_cards_dir() / _PAPER)
    calibration = _calibration(recipe)
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
        commands=_commands(base, recipe, inherited),
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


def plain_line(text: Any) -> str:
    """Text from elsewhere, made harmless: printable characters on one line, at most 200 of them."""
    line = " ".join(str(text).split())
    return "".join(character for character in line if character.isprintable())[:200]


def code_span(text: Any) -> str:
    """Text from elsewhere as a Markdown code span, in which nothing is interpreted; also inside a table."""
    return "`" + plain_line(text).replace("`", "'").replace("|", "/") + "`"


def prose(text: Any) -> str:
    """Text from elsewhere as plain words within Markdown; also inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", plain_line(text))


def _front_matter(path: Path) -> dict[str, Any]:
    """The metadata block of a card; empty where there is none, or none that can be read."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        with path.open(encoding="utf-8") as file:
            block = REGEX_YAML_BLOCK.search(file.read(_MAX_CARD_BYTES))
        metadata = yaml.safe_load(block[2]) if block else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _short_text(value: Any) -> str | None:
    return plain_line(value) or None if isinstance(value, str) else None


def _metadata(base: BaseModel, recipe: Recipe, inherited: Inherited) -> str:
    """The card's YAML block. huggingface_hub writes it, so that every value is quoted as needed."""
    from huggingface_hub import ModelCardData

    calibration = _calibration(recipe)
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


def _calibration(recipe: Recipe) -> dict[str, Any]:
    """What the card tells of the calibration samples (see `calibration.load_calibration`)."""
    record = recipe.scores["calibration"] if recipe.scores else {}
    return {**_samples(record), "num_samples": recipe.scores["num_samples"] if recipe.scores else None}


def _samples(record: dict[str, Any]) -> dict[str, Any]:
    """What the card tells of the samples of a record, which may come from anywhere."""
    sources = record.get("sources")
    sources = sources if isinstance(sources, list) else []
    sources = [source for source in sources if isinstance(source, dict)]
    names = [source.get("repo_id") for source in sources]
    return {
        # Only what looks like a Hub id.
        "datasets": [name for name in names if isinstance(name, str) and _HUB_ID.fullmatch(name)],
        "data": record.get("data") if names and all(names) else "DATA",
        "seed": record.get("seed"),
        "videos": _videos(record, sources),
    }


def _videos(record: dict[str, Any], sources: list[dict[str, Any]]) -> str | None:
    """How many of what the samples show are videos, and of how many frames; None for images alone."""
    images, videos = (record.get(f"num_{kind}") for kind in ("images", "videos"))
    if type(videos) is not int or videos < 1:
        return None
    frames = [source["frames"] for source in sources if type(source.get("frames")) is int]
    text = f"{videos} video{'s' if videos > 1 else ''}"
    text += f" of at most {max(frames)} frames" if frames else ""
    if type(images) is int and images > 0:
        text += f" and {images} image{'s' if images > 1 else ''}"
    return text


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


def _commands(base: BaseModel, recipe: Recipe, inherited: Inherited) -> list[str]:
    """The command lines that make this package again."""
    source = [base.repo_id or "BASE", *(["--revision", base.revision] if base.revision else [])]
    package = ["shortv-export", "package", source[0], "OUT", *source[1:]]
    package += ["--weights", "reference"] if recipe.weights == "reference" else []
    package += ["--license", inherited.license] if inherited.license_given else []
    method, budget = recipe.selection["method"], recipe.selection["budget"]
    if method == "preset":
        return [_command([*package, "--preset", "paper"])]
    if method == "given":
        return [_command([*package, "--frozen-layers", ",".join(map(str, recipe.frozen_layers))])]
    calibration = _calibration(recipe)
    score = ["shortv-export", "score", *source]
    for key in ("data", "num_samples", "seed"):
        if calibration[key] is not None:
            score += [f"--{key.replace('_', '-')}", plain_line(calibration[key])]
    if recipe.scores and recipe.scores["divergence"] == "kl(ablated||original)":
        score += ["--divergence", "reverse"]
    options = {"num_frozen": "--num-frozen", "flops_ratio": "--flops-ratio", "max_kl": "--max-kl", "seed": "--seed"}
    chosen = [part for key, option in options.items() if key in budget for part in (option, str(budget[key]))]
    if method != "lc":
        chosen += ["--method", plain_line(method)]
    if held_out := recipe.selection["evidence"].get("held_out"):
        data = held_out.get("data")
        chosen += ["--data", "DATA" if data == "local files" else plain_line(data)]
        chosen += ["--num-samples", plain_line(held_out.get("num_samples"))]
    if method == "random":
        return [_command([*package, *chosen])]
    return [_command(score), _command([*package, "--scores", "scores.json", *chosen])]


def _measured(evaluation: Evaluation, repo_id: str) -> dict[str, Any]:
    """What the card tells of an evaluation beside its numbers."""
    groups = sorted(evaluation.chosen.groups.items(), key=lambda item: item[1].difference.mean)
    sweep = evaluation.sweep
    return {
        "row": evaluation.chosen,
        "calibration": _samples(evaluation.data),
        "groups": groups,
        "worse": [(name, found) for name, found in groups if (found.difference.high or 0) < 0],
        "command": _evaluate_command(evaluation, repo_id),
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


def _evaluate_command(evaluation: Evaluation, repo_id: str) -> str:
    """The command line that measures this again."""
    data, chosen = evaluation.data, evaluation.chosen
    calibration = _samples(data)
    words = ["shortv-export", "evaluate", repo_id, "--data", plain_line(calibration["data"] or "DATA")]
    words += ["--num-samples", str(chosen.fidelity.num_samples)]
    if type(data.get("seed")) is int:
        words += ["--seed", str(data["seed"] - 1)]  # the draw's own seed is one more, see `pipeline.evaluate`
    for option, value in (("--group-by", data.get("group_by")), ("--task", data.get("task_id"))):
        words += [option, plain_line(value)] if value is not None else []
    words += ["--max-new-tokens", str(evaluation.max_new_tokens), "--dtype", plain_line(evaluation.dtype)]
    if counts := [str(len(row.frozen_layers or ())) for row in evaluation.sweep if not row.chosen]:
        words += ["--sweep", ",".join(counts)]
    if given := [f"{speed.text_tokens}+{speed.visual_tokens}" for speed in chosen.speed if speed.at == "given"]:
        words += ["--at", ",".join(given)]
    # Without a value, these come last: the others are kept together with theirs.
    words += ["--force-overlap"] if data.get("overlap", 0) != 0 else []
    words += ["--baselines"] if any(row.baseline for row in evaluation.rows) else []
    words += ["--no-speed"] if not chosen.speed else []
    return _command(words)


def _command(words: list[str]) -> str:
    """A command line as one types it; a long one is broken before options, so that a page shows all of it."""
    import shlex

    first = next(index for index, word in enumerate(words) if word.startswith("--"))
    lines = [shlex.join(words[:first])]
    for option in (shlex.join(words[index : index + 2]) for index in range(first, len(words), 2)):
        if len(lines[-1]) + len(option) < _COMMAND_WIDTH:
            lines[-1] += f" {option}"
        else:
            lines.append(f"  {option}")
    return " \\\n".join(lines)


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
