"""What an evaluation adds to a package: its file, the figure of a sweep, and the Hub's ``.eval_results/*.yaml``.

The Hub's format is for benchmarks only: data sets whose ``eval.yaml`` names their tasks
(https://huggingface.co/docs/hub/eval-results).
"""

from __future__ import annotations

from typing import Any

from ..errors import ShortVError
from ..files import json_text
from ..records import EVALUATION_NAME, HUB_ID, RESULTS_FOLDER, SWEEP_NAME, Evaluation, Recipe
from .figures import draw_sweep

_BENCHMARK = "eval.yaml"


def evaluation_files(evaluation: Evaluation) -> dict[str, bytes]:
    """The files that an evaluation adds to its package, by name. The same evaluation gives the same bytes."""
    files = {EVALUATION_NAME: json_text(evaluation.to_dict()).encode()}
    if evaluation.sweep:
        files[SWEEP_NAME] = draw_sweep(evaluation.sweep)
    if evaluation.data.get("task_id") is not None:
        name, text = _results_yaml(evaluation)
        files[f"{RESULTS_FOLDER}/{name}.yaml"] = text.encode()
    return files


def check_evaluation(evaluation: Evaluation, recipe: Recipe) -> None:
    """Refuses an evaluation of another package.

    Raises:
        ShortVError: it names another recipe, base or list of layers.
    """
    base = {"repo_id": recipe.base.repo_id, "revision": recipe.base.revision}
    if evaluation.base != base or evaluation.num_layers != recipe.num_layers:
        reason = "another base"
    elif evaluation.chosen.frozen != recipe.frozen:
        reason = "other frozen layers"
    elif evaluation.recipe_sha256 != recipe.sha256:
        reason = "another recipe"
    else:
        return
    raise ShortVError(
        f"the evaluation is of another package ({reason}); measure this one with `shortv-export evaluate`."
    )


def check_task(task_id: str, data: dict[str, Any]) -> None:
    """Refuses samples that do not belong to a benchmark's task.

    Args:
        task_id: as the benchmark's ``eval.yaml`` names it.
        data: the record of the samples (see `samples.DrawnSamples`).

    Raises:
        ShortVError: the samples are not from a single data set on the Hub, it is not a benchmark, or it has no such
            task for their configuration and split.
    """
    import yaml
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    sources = data["sources"]
    if len(sources) != 1 or "repo_id" not in sources[0]:
        raise ShortVError("`task` names a benchmark on the Hub, but the samples are not from a single data set there.")
    source = sources[0]
    name, revision = source["repo_id"], source["revision"]
    try:
        path = hf_hub_download(name, _BENCHMARK, repo_type="dataset", revision=revision)
        with open(path, encoding="utf-8") as file:
            tasks = yaml.safe_load(file.read(1 << 20))["tasks"]
        settings = {task["id"]: (task.get("config", "default"), task.get("split")) for task in tasks}
    except EntryNotFoundError:
        raise ShortVError(f"{name} is not a benchmark: it has no {_BENCHMARK}; leave out `task`.") from None
    except (HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        raise ShortVError(f"the {_BENCHMARK} of {name} cannot be read; leave out `task`.") from None
    if task_id not in settings:
        raise ShortVError(f"{name} has no task {task_id!r}; there are: {', '.join(map(str, settings))}.")
    config, split = settings[task_id]
    if (source["config"] or "default") != config or split not in (None, source["split"]):
        raise ShortVError(f"the task {task_id} is `data` {name}:config={config},split={split or source['split']}.")


def _results_yaml(evaluation: Evaluation) -> tuple[str, str]:
    """The name and the text of a results file: the package's accuracy in percent. The commit dates it."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    data, accuracy = evaluation.data, evaluation.chosen.accuracy
    sources = data.get("sources")
    source = sources[0] if isinstance(sources, list) and len(sources) == 1 and isinstance(sources[0], dict) else {}
    named = [data["task_id"], source.get("repo_id"), source.get("revision")]
    right = all(isinstance(name, str) for name in named) and HUB_ID.fullmatch(source["repo_id"])
    if not right or accuracy is None:
        raise ShortVError("the evaluation names a benchmark's task, but has no accuracy on one data set of the Hub.")
    entry = EvalResultEntry(
        dataset_id=source["repo_id"],
        task_id=data["task_id"],
        value=round(100 * accuracy.changed.mean, 2),
        dataset_revision=source["revision"],
        notes=f"{accuracy.num_samples} samples, drawn at random; greedy answers of at most "
        f"{evaluation.max_new_tokens} tokens, compared by the rules of the VQA challenge",
    )
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=1000)
    return source["repo_id"].replace("/", "--"), text
