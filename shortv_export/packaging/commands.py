"""The command lines on a card, which make and measure the package again."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from ..base import BaseModel
from ..options import Budget, Choice, Comparison, Contents, Questions, Samples, Scoring, to_words
from ..records import HUB_ID, REVERSE, Evaluation, Recipe
from ..samples import LOCAL_FILES
from .card_metadata import Inherited, plain_line
from .contents import HANDLER_NAME

_COMMAND_WIDTH = 78  # what the Hub's page shows without scrolling, minus room for a backslash


def calibration_facts(recipe: Recipe) -> dict[str, Any]:
    """What the card says about the samples that the layers were scored on."""
    scores = recipe.scores or {"calibration": {}, "num_samples": None}
    return {**sample_facts(scores["calibration"]), "num_samples": scores["num_samples"]}


def sample_facts(record: dict[str, Any]) -> dict[str, Any]:
    """What the card says about a record of samples (see `samples.DrawnSamples`), which may come from anywhere."""
    sources = record.get("sources")
    sources = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    names = [source.get("repo_id") for source in sources]
    return {
        "datasets": [name for name in names if isinstance(name, str) and HUB_ID.fullmatch(name)],
        "data": record.get("data") if names and all(names) else "DATA",
        "seed": record.get("seed"),
        "videos": _videos(record, sources),
        "plain": record.get("prompt") == "plain",  # the base has no chat template
    }


def _videos(record: dict[str, Any], sources: list[dict[str, Any]]) -> str | None:
    """The numbers of videos, their frames and images in the samples; None if there are only images."""
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
    source, revision = base.repo_id or "BASE", ["--revision", base.revision] if base.revision else []
    method, budget = recipe.selection["method"], recipe.selection["budget"]
    license, weights = inherited.license if inherited.license_given else None, cast(Any, recipe.weights)
    handler = HANDLER_NAME in recipe.code
    contents = Contents(license=license, base_model=inherited.base_model, weights=weights, handler=handler)

    def package(choice: Choice, *more: str) -> str:
        words = ["shortv-export", "package", source, "OUT", *revision, *to_words(choice), *more, *to_words(contents)]
        return _command(words)

    if method == "preset":
        return [package(Choice(preset="paper"))]
    if method == "given":
        return [
            package(
                Choice(
                    frozen_layers=recipe.frozen_layers or None,
                    frozen_attention=recipe.frozen_attention or None,
                    frozen_ffn=recipe.frozen_ffn or None,
                )
            )
        ]
    budgets = Budget(**{key: budget[key] for key in ("num_frozen", "flops_ratio", "max_kl") if key in budget})
    held_out = recipe.selection["evidence"].get("held_out") or {}
    data = held_out.get("data")
    drawn = Samples(
        data="DATA" if data == LOCAL_FILES else data and plain_line(data),
        num_samples=held_out.get("num_samples", Samples.num_samples),
        seed=budget.get("seed", Samples.seed),
    )
    more = to_words(budgets) + to_words(drawn, *(("num_samples",) if held_out else ()), *budget.keys() & {"seed"})
    if method == "random":
        return [package(Choice(method=method), *more)]
    facts = calibration_facts(recipe)
    names = [name for name in ("data", "num_samples", "seed") if facts[name] is not None]
    samples = Samples(**{name: plain_line(facts[name]) for name in names})  # type: ignore[arg-type]
    reverse = recipe.scores and recipe.scores["divergence"] == REVERSE
    scored = recipe.scores or {}
    scoring = Scoring(divergence="reverse" if reverse else "forward")
    ablations = scored.get("ablations") or {}
    if scored:
        positions: Any = "answer" if "answer_ffn" in ablations or not ablations else "first"
        text = bool(scored["text"])
        scoring = replace(scoring, operators=bool(ablations), positions=positions, text_contribution=text)
    score = ["shortv-export", "score", source, *revision, *to_words(samples, *names), *to_words(scoring)]
    choice = Choice(scores=Path("scores.json"))
    if method != "operators":
        # Where operators would be chosen by default and were not even compared, layers were asked for.
        layers = ablations and budget.keys() & {"flops_ratio", "max_kl"}
        asked = method == "lc" and layers and "joint" not in recipe.selection["evidence"]
        choice = replace(choice, method=cast(Any, method), granularity="layer" if asked else None)
    return [_command(score), package(choice, *more)]


def evaluate_command(evaluation: Evaluation, repo_id: str) -> str:
    """The command line that measures this evaluation again."""
    data, chosen = evaluation.data, evaluation.chosen
    seed = data.get("seed")
    group_by, task = (None if data.get(key) is None else plain_line(data[key]) for key in ("group_by", "task_id"))
    samples = Samples(
        data=plain_line(sample_facts(data)["data"] or "DATA"),
        num_samples=chosen.fidelity.num_samples,
        seed=seed - 1 if type(seed) is int else 0,  # held-out samples are drawn with the next seed
    )
    questions = Questions(
        group_by=group_by,
        task=task,
        force_overlap=data.get("overlap", 0) != 0,
        max_new_tokens=evaluation.max_new_tokens,
    )
    comparison = Comparison(
        sweep=tuple(len(row.frozen.layers) for row in evaluation.sweep if not row.chosen and not row.frozen.operators)
        or None,
        baselines=any(row.baseline for row in evaluation.rows),
        speed=bool(chosen.speed),
        at=tuple((speed.text_tokens, speed.visual_tokens) for speed in chosen.speed if speed.at == "given"),
    )
    words = ["shortv-export", "evaluate", repo_id]
    words += to_words(samples, "data", "num_samples", *(["seed"] if type(seed) is int else []))
    words += [*to_words(questions, "max_new_tokens"), "--dtype", plain_line(evaluation.dtype)]
    return _command(words + to_words(comparison))


def _command(words: list[str]) -> str:
    """A command line with quoted words. A long one is broken before options, so that a page shows all of it."""
    import shlex

    lines: list[str] = []
    options = [index for index, word in enumerate(words) if word.startswith("--")]
    for start, end in pairwise([0, *options, len(words)]):
        part = shlex.join(words[start:end])
        if lines and len(lines[-1]) + len(part) < _COMMAND_WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}" if lines else part)
    return " \\\n".join(lines)
