"""The verbs: names and files become values, values become files.

The command line calls these functions, and so can a notebook. What decides what (scores, layers, files, checks) is in
the rooms; here each verb looks at everything that could stand in its way, and then does its work.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .errors import ShortVError, UsageError
from .options import (
    Base,
    Budget,
    Choice,
    Comparison,
    Contents,
    Conversion,
    Help,
    Placement,
    Questions,
    Revision,
    Samples,
    Scoring,
    Target,
)
from .usage import refuse_unused

if TYPE_CHECKING:
    from .base import BaseModel
    from .comparison import Page
    from .journal import Journal
    from .packaging import Draft, Package
    from .publish import Forecast, Push
    from .records import Evaluation, Scores
    from .samples import DrawnSamples
    from .selection import Measure
    from .verification import Verification

logger = logging.getLogger(__name__)

_HELD_OUT = Samples(num_samples=64)


def score(
    base: Base,
    *,
    output: Annotated[Path, Help("Where the scores go.", short="-o")] = Path("scores.json"),
    revision: Revision = None,
    samples: Samples = Samples(),
    budget: Budget = Budget(),
    scoring: Scoring = Scoring(),
    placement: Placement = Placement(),
) -> Scores:
    """Measures each decoder layer's Layer Contribution.

    Args:
        base: a Hub id or a folder.
        output: the ``scores.json`` to write. Finished samples are kept beside it until then.
        revision: branch, tag or commit of the base.
        samples: what to measure on.
        budget: how many layers will be frozen, for `until_stable`.
        scoring: how to measure.
        placement: where the base runs.

    Raises:
        UsageError: an option would have no effect; so do the other verbs (see `usage`).
        ShortVError: the base or the data cannot be used; a number is out of range; too little memory.
    """
    refuse_unused(score, locals())
    from .base import resolve_base
    from .files import check_writable
    from .selection import preview_selection

    _check_rounds(samples, scoring)
    check_writable(Path(output))
    resolved = resolve_base(base, revision=revision, weights=False)
    preview_selection(resolved, Choice(), budget, seed=samples.seed)
    return _score(resolved, Path(output), samples, budget, scoring, placement)


def package(
    base: Annotated[str, Help("Base model: a Hub id or a folder. With `recipe`, OUT alone will do.", "BASE")],
    out: Annotated[Path | None, Help("Folder of the package; must not exist or be empty.", "OUT")] = None,
    *,
    revision: Revision = None,
    choice: Choice = Choice(),
    budget: Budget = Budget(),
    samples: Samples = Samples(),
    placement: Placement = Placement(),
    contents: Contents = Contents(),
) -> Package:
    """Makes the folder that is published: weights, frozen-layer list, code and card.

    Args:
        base: a Hub id or a folder.
        out: the folder to make; must not exist or be empty.
        revision: branch, tag or commit of the base.
        choice: which layers to freeze.
        budget: how many.
        samples: for `max_kl`, the held-out samples.
        placement: for `max_kl`, where the base runs.
        contents: licence and weights; or a recipe, from which the package is made again (see `rebuild`). Then
            nothing else is given, and `base` may be left out.

    Raises:
        ShortVError: the base, the choice or the folder cannot be used; nothing is left behind.
    """
    refuse_unused(package, locals())
    from .base import fetch_weights, resolve_base
    from .packaging import Draft
    from .selection import preview_selection, require_source

    if contents.recipe is not None:
        return rebuild(contents.recipe, out or Path(base), base=base if out else None)
    if out is None:
        raise UsageError("name the folder of the package: OUT.")
    require_source(choice)
    resolved = resolve_base(base, revision=revision, weights=False)
    preview_selection(resolved, choice, budget, seed=samples.seed)
    draft = Draft.of(resolved, out, contents)
    fetch_weights(resolved)
    return _package(draft, choice, budget, samples, placement)


def rebuild(recipe: Path, out: Path, *, base: str | None = None) -> Package:
    """Makes a package again from its recipe, byte for byte.

    Args:
        recipe: a package's ``shortv.json``; if the package was evaluated, beside its ``evaluation.json``.
        out: the folder; must not exist or be empty.
        base: a Hub id or a folder with the recipe's base; None takes it from the Hub at the recipe's commit.

    Raises:
        ShortVError: the recipe or the folder cannot be used, the base is not the recipe's, or this release would make
            another package of it; nothing is left behind.
    """
    from .base import resolve_base, resolve_pinned
    from .files import file_sha256
    from .packaging import rebuild_package
    from .records import EVALUATION_NAME, Evaluation, Recipe

    recipe = Path(recipe)
    loaded = Recipe.load(recipe)
    repo_id, commit = loaded.base.repo_id, loaded.base.revision
    if base is None and (repo_id is None or commit is None):
        raise ShortVError(f"{recipe} was made from a folder; name that folder: package BASE OUT --recipe {recipe}.")
    evaluation = None
    if loaded.measured:
        path = recipe.with_name(EVALUATION_NAME)
        if not path.is_file() or file_sha256(path) != loaded.measured.get(EVALUATION_NAME):
            raise ShortVError(f"the recipe's package was evaluated; put its {EVALUATION_NAME} beside {recipe}.")
        evaluation = Evaluation.load(path)
    if base is None:
        resolved = resolve_pinned(str(repo_id), str(commit))
    else:
        resolved = resolve_base(base, revision=None if Path(base).expanduser().is_dir() else commit)
    made = rebuild_package(resolved, out, loaded, evaluation)
    _log_stability(made)
    return made


def verify(
    package: Annotated[str, Help("A package folder or a published repository.", "PACKAGE")],
    *,
    revision: Revision = None,
    base: Annotated[
        str | None, Help("The base to compare with. Default: the recipe's, at its commit on the Hub.")
    ] = None,
) -> Verification:
    """Makes a package again from its base, compares every byte, loads it and compares it with its definition.

    Args:
        package: a folder or a repository id.
        revision: branch, tag or commit of the repository.
        base: a Hub id or a folder; needed for a package whose base was a folder.

    Raises:
        ShortVError: there is no such package, or no such base. A failed check is not raised (see `Verification`).
    """
    refuse_unused(verify, locals())
    from .base import resolve_base
    from .packaging import Package
    from .verification import verify_package

    opened = Package.open(package, revision=revision)
    return verify_package(opened, base=None if base is None else resolve_base(base, weights=False))


def evaluate(
    package: Annotated[str, Help("A package folder or a published repository that freezes layers.", "PACKAGE")],
    *,
    output: Annotated[Path, Help("Where the result goes.", short="-o")] = Path("evaluation.json"),
    revision: Revision = None,
    samples: Samples = _HELD_OUT,
    questions: Questions = Questions(),
    comparison: Comparison = Comparison(),
    placement: Placement = Placement(),
    update_card: Annotated[bool, Help("Put the result into the package, which is a folder, and on its card.")] = False,
) -> Evaluation:
    """Measures how close a package stays to its base, how often both are right, and how much faster it is.

    Args:
        package: a folder or a repository id.
        output: the ``evaluation.json`` to write. Finished samples are kept beside it until then.
        revision: branch, tag or commit of the repository.
        samples: what to measure on; samples that the layers were chosen by are left out.
        questions: what the models are asked.
        comparison: what is compared with the base.
        placement: where the model runs.
        update_card: put the result into the package, which is a folder; its card shows it.

    Raises:
        ShortVError: the package or the data cannot be used, too few held-out samples are left, or the card cannot be
            updated.
    """
    refuse_unused(evaluate, locals())
    from .evaluation import require_evaluable
    from .files import check_writable
    from .packaging import Package, require_updatable

    output = Path(output)
    check_writable(output)
    opened = Package.open(package, revision=revision)
    if update_card:
        require_updatable(opened, sweep=comparison.sweep is not None)
    require_evaluable(opened, comparison)
    if output.absolute().parent.resolve() == opened.folder.resolve():
        raise ShortVError(f"{output} lies in the package, which must stay as it is; choose another `output`.")
    evaluation, _ = _evaluate(opened, output, samples, questions, comparison, placement, update_card)
    return evaluation


def compare(
    package: Annotated[str, Help("A package folder or a published repository that freezes layers.", "PACKAGE")],
    *,
    revision: Revision = None,
    host: Annotated[str, Help("Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, Help("Port to listen on. Default: a free one from 7860.", least=1)] = None,
    open: Annotated[bool, Help("Open the page in a browser, if run in a terminal.")] = True,
    placement: Placement = Placement(),
) -> Page:
    """Shows a page that asks the model and its base the same question about a picture, side by side.

    Args:
        package: a folder or a repository id.
        revision: branch, tag or commit of the repository.
        host: address to listen on.
        port: port to listen on; None takes a free one.
        open: for the command line.
        placement: where the model runs. There is one; both share its weights.

    Raises:
        ShortVError: gradio is missing, the package cannot be used, or the port cannot be listened on.
    """
    refuse_unused(compare, locals())
    from .comparison import require_comparable, show_page
    from .packaging import Package

    opened = Package.open(package, revision=revision)
    require_comparable(opened)
    return show_page(opened, host=host, port=port, placement=placement)


def push(
    source: Annotated[str, Help("A finished package, or a base to convert first.", "PACKAGE|BASE")],
    repo_id: Annotated[str, Help("Where to publish: user/name or organisation/name.", "REPO_ID")],
    *,
    target: Target = Target(),
    conversion: Conversion = Conversion(),
) -> Push | Forecast:
    """Publishes a package in one commit. From a base, it scores, packages and verifies first, and may evaluate.

    Args:
        source: the folder of a finished package, or a base model (Hub id or folder).
        repo_id: ``user/name``, or ``name`` for the token's user.
        target: where and how to publish.
        conversion: for a base, how it becomes a package. An interrupted push goes on when it is called again with
            the same arguments (see `journal`). The package's folder stays.

    Raises:
        ShortVError: a step failed; what is finished stays for the next try.
    """
    refuse_unused(push, locals())
    from .journal import Journal, asked_for
    from .packaging import Package, inherited_metadata
    from .publish import forecast_push, inspect_repository, inspect_space, push_package

    if not Package.is_at(source):
        repository = inspect_repository(repo_id, target)
        space = inspect_space(repository)
        base, selection = _look_at_base(source, conversion)
        evaluated = conversion.evaluate is not None
        forecast = forecast_push(base, repository, selection, contents=conversion.contents, evaluated=evaluated)
        if target.dry_run:
            contents = conversion.contents
            inherited_metadata(base, contents.license, contents.base_model)
            return replace(forecast, space=space.url if space else None)
        out = Path(os.path.abspath(conversion.out or repo_id.split("/")[-1]))
        journal = Journal(out.with_name(f"{out.name}.push.json"), asked_for(base, conversion))
        with journal.kept():
            result = push_package(_convert(base, out, conversion, journal), repository, base=base, space=space)
        journal.delete()
        return result
    finished = Package.open(source)
    repository = inspect_repository(repo_id, target)
    return push_package(finished, repository, space=inspect_space(repository))


# The steps. What could stand in their way has been looked at.


def _look_at_base(source: str, conversion: Conversion) -> tuple[BaseModel, Any]:
    """The base, and the selection if it is known already. Mistakes show before hours of scoring, not after."""
    from .base import resolve_base
    from .evaluation import data_of
    from .records import Scores
    from .selection import preview_selection

    choice, budget, samples, scoring = conversion.choice, conversion.budget, conversion.samples, conversion.scoring
    evaluated_on_theirs = conversion.evaluate is not None and samples.data is None and choice.scores is not None
    if evaluated_on_theirs and data_of(Scores.load(str(choice.scores)).calibration) is None:
        raise ShortVError("the scores were measured on local files; name data for `evaluate` with `data`.")
    _check_rounds(samples, scoring)
    base = resolve_base(source, revision=conversion.revision, weights=False)
    return base, preview_selection(base, choice, budget, seed=samples.seed)


def _convert(base: BaseModel, out: Path, conversion: Conversion, journal: Journal) -> Package:
    """From a base to a verified package, evaluated if that was asked for. Finished steps are not made again."""
    from .base import fetch_weights
    from .files import check_writable
    from .packaging import Package
    from .records import RECIPE_NAME
    from .verification import verify_package

    recipe_file, output = out / RECIPE_NAME, out.with_name(f"{out.name}.evaluation.json")
    check_writable(output)
    # A folder that appears is whole; it may have come just before an interruption.
    made = journal.began("package") and Package.is_at(out)
    if made:
        logger.info("going on from %s, which an interrupted push made", out)
        fetch_weights(base)
        package = Package.open(out)
    else:
        package = _make(base, out, conversion, journal)
    if not (journal.finished("verification", recipe_file) or journal.finished("evaluation", recipe_file)):
        verification = verify_package(package, base=base)
        verification.raise_if_failed()
        if verification.not_made:
            raise ShortVError(f"{out} is {verification.summary}; to publish it all the same, push that folder.")
        logger.info(verification.summary)
        journal.finish("verification", recipe_file)
    if (number := conversion.evaluate) is not None and not journal.finished("evaluation", recipe_file):
        held_out, place = replace(conversion.samples, num_samples=number), conversion.placement
        _, package = _evaluate(package, output, held_out, Questions(), Comparison(), place, update_card=True)
        logger.info("evaluated on %d samples: %s", number, output)
        journal.finish("evaluation", recipe_file)
    return package


def _make(base: BaseModel, out: Path, conversion: Conversion, journal: Journal) -> Package:
    """From a base to a package, through scores if none are given."""
    from .base import fetch_weights
    from .files import check_writable
    from .packaging import Draft
    from .records import RECIPE_NAME
    from .selection import may_be_operators

    choice, budget, samples, placement = conversion.choice, conversion.budget, conversion.samples, conversion.placement
    draft = Draft.of(base, out, conversion.contents)
    scores_file = out.with_name(f"{out.name}.scores.json")
    check_writable(scores_file)
    if choice.sources:
        fetch_weights(base)
    else:
        if journal.finished("scores", scores_file):
            logger.info("going on from %s, which an interrupted push measured", scores_file)
            fetch_weights(base)
        else:
            operators = may_be_operators(choice, budget) and conversion.scoring.operators
            scoring = replace(conversion.scoring, operators=operators)
            scores = _score(base, scores_file, samples, budget, scoring, placement)
            logger.info("scored %d layers on %d samples: %s", len(scores.visual), scores.num_samples, scores_file)
            journal.finish("scores", scores_file)
        choice = replace(choice, scores=scores_file)
    journal.begin("package")
    package = _package(draft, choice, budget, samples, placement, whole=not conversion.scoring.stream)
    recipe = package.recipe
    logger.info("packaged with %s: %s", recipe.frozen.describe(recipe.num_layers), out)
    journal.finish("package", out / RECIPE_NAME)
    return package


def _check_rounds(samples: Samples, scoring: Scoring) -> None:
    if scoring.until_stable and scoring.max_samples < samples.num_samples:
        raise ShortVError(
            f"`max_samples` {scoring.max_samples} is fewer than the first {samples.num_samples} samples."
        )


def _score(
    base: BaseModel, output: Path, samples: Samples, budget: Budget, scoring: Scoring, placement: Placement
) -> Scores:
    from .base import fetch_weights
    from .measure import Scorer, score_in_rounds
    from .samples import draw_samples
    from .selection import select_by_scores

    scorer = Scorer(base, scoring, placement, output=output)
    with scorer.encoder as encoder:
        _ = encoder.reference  # a base whose processor fails is refused before its weights are downloaded
        fetch_weights(base)

        def draw(number: int, allow_fewer: bool = False) -> DrawnSamples:
            asked = replace(samples, num_samples=number)
            return draw_samples(asked, allow_fewer=allow_fewer, usable=encoder.refusal, stratify=True)

        if scoring.until_stable:
            scores = score_in_rounds(
                scorer,
                draw,
                lambda scores: select_by_scores(base, scores, budget),
                samples.num_samples,
                scoring.max_samples,
            )
        else:
            scores = scorer(draw(samples.num_samples))
    scorer.save(scores)
    return scores


def _package(
    draft: Draft, choice: Choice, budget: Budget, samples: Samples, placement: Placement, *, whole: bool = True
) -> Package:
    """The package of a choice. `whole` says whether the base may be loaded whole."""
    from .packaging import build_package
    from .records import Scores
    from .selection import granularity_of, select

    scores = Scores.load(choice.scores) if choice.scores else None
    by_operator = granularity_of(choice, budget, scores) == "operator"
    measure, evidence = None, {}
    if budget.max_kl is not None or by_operator:
        positions = (scores.positions if by_operator and scores else None) or "first"
        inputs, reason = _held_out(draft.base, scores, samples) if whole else (None, "the base is streamed")
        if inputs is None and budget.max_kl is not None:
            raise ShortVError(reason)
        if inputs is None:
            logger.info("not compared with whole layers on held-out samples: %s", reason)
        else:
            evidence["held_out"], encoded = inputs
            measure = _divergence(draft.base, encoded, positions, placement)
    selection, scores = select(draft.base, choice, budget, seed=samples.seed, measure=measure)
    selection = replace(selection, evidence=selection.evidence | evidence)
    package = build_package(draft, selection, scores)
    _log_stability(package)
    return package


def _log_stability(package: Package) -> None:
    from .selection import describe, describe_operators

    selection = package.recipe.selection
    if selection["method"] == "lc" and package.scores is not None:
        logger.info(describe(package.scores, len(package.recipe.frozen_layers)))
    elif selection["method"] == "operators" and (line := describe_operators(selection)):
        logger.info(line)


def _held_out(base: BaseModel, scores: Scores | None, samples: Samples) -> tuple[Any, str]:
    """The record and the inputs of samples that scores were not measured on; or None, and why there are none."""
    from .evaluation import held_out_from_scores
    from .samples import Encoder

    with Encoder(base) as encoder:
        try:
            drawn = held_out_from_scores(scores, samples, encoder.refusal)
        except ShortVError as error:
            return None, str(error)
        return (encoder.recorded(drawn), [encoder(sample) for sample in drawn.samples]), ""


def _divergence(base: BaseModel, inputs: list[Any], positions: str, placement: Placement) -> Measure:
    """What measures the divergence of what is frozen from the base, on held-out samples."""
    from .base import load_base
    from .measure import JointDivergence, device_map_for, out_of_memory, running

    device_map = device_map_for(placement)
    model = load_base(base, dtype=placement.dtype, device_map=device_map, max_memory=placement.max_memory)
    with running(base), out_of_memory("load it with `dtype` bfloat16 or spread it with `device_map` auto"):
        divergence = JointDivergence(model, inputs, positions)
    return running(base)(divergence)


def _evaluate(
    package: Package,
    output: Path,
    samples: Samples,
    questions: Questions,
    comparison: Comparison,
    placement: Placement,
    update_card: bool,
) -> tuple[Evaluation, Package]:
    """The evaluation, and the package as it is afterwards."""
    from .evaluation import evaluate_package, held_out_from_package
    from .packaging import add_evaluation
    from .samples import Encoder

    with Encoder(package.base, remote_code=True) as encoder:
        drawn = held_out_from_package(package, samples, questions, encoder.refusal)
        evaluation = evaluate_package(
            package,
            encoder,
            drawn,
            max_new_tokens=questions.max_new_tokens,
            comparison=comparison,
            placement=placement,
            output=output,
        )
    return evaluation, add_evaluation(package, evaluation) if update_card else package
