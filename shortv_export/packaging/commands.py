"""The command lines on a card, which make and measure the package again."""

from __future__ import annotations

import re
from typing import Any

from ..base import BaseModel
from ..records import Evaluation, Recipe
from .card_metadata import Inherited, plain_line

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_COMMAND_WIDTH = 78  # what the Hub's page shows without scrolling, and room for a backslash


def calibration_facts(recipe: Recipe) -> dict[str, Any]:
    """What the card tells of the calibration samples (see `calibration.load_calibration`)."""
    record = recipe.scores["calibration"] if recipe.scores else {}
    return {**sample_facts(record), "num_samples": recipe.scores["num_samples"] if recipe.scores else None}


def sample_facts(record: dict[str, Any]) -> dict[str, Any]:
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


def package_commands(base: BaseModel, recipe: Recipe, inherited: Inherited) -> list[str]:
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
    calibration = calibration_facts(recipe)
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


def evaluate_command(evaluation: Evaluation, repo_id: str) -> str:
    """The command line that measures this again."""
    data, chosen = evaluation.data, evaluation.chosen
    calibration = sample_facts(data)
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
