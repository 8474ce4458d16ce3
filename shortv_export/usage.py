"""Which options have no effect beside others: they are refused by name, so that nobody believes that they counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

from .errors import UsageError
from .options import Budget, Choice, Contents, Conversion, Placement, Samples, Scoring, options_of

Asked = Any
"""The values of a call: each option and each dataclass of options by its name, and what `_asked` adds."""


@dataclass(frozen=True)
class Rule:
    """When options of a command have no effect.

    Attributes:
        names: of the options.
        idle: whether they have no effect in a call.
        why: goes on after "does not apply"; values of the call stand in braces.
        advice: what to do instead.
    """

    names: tuple[str, ...]
    idle: Callable[[Asked], bool]
    why: str
    advice: str = "leave {it} out"


def refuse_unused(command: Callable[..., Any], arguments: Mapping[str, Any], typed: Collection[str] = ()) -> None:
    """Refuses options that would have no effect.

    Args:
        command: a function of `pipeline`.
        arguments: of the call, by name.
        typed: options that are given, also where the value is the default. Others are given if their value differs.

    Raises:
        UsageError: names those that break the first of the command's rules, and says why they do not apply.
    """
    rules = RULES.get(command.__name__, ())
    if not rules:
        return
    asked = _asked(arguments)
    given = {each.name: each for each in options_of(command)}
    given = {name: each for name, each in given.items() if name in typed or getattr(asked, name) != each.default}
    for rule in rules:
        names = [_name(given[name], asked) for name in rule.names if name in given]
        if names and rule.idle(asked):
            does, it = ("does", "it") if len(names) == 1 else ("do", "them")
            listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
            why, advice = (text.format_map({**vars(asked), "it": it}) for text in (rule.why, rule.advice))
            raise UsageError(f"{listed} {does} not apply {why}; {advice}.")


def _name(option: Any, asked: Asked) -> str:
    """As a message names it: a flag that was switched off as `no_name`."""
    off = option.type is bool and option.default is True and not getattr(asked, option.name)
    return f"`no_{option.name}`" if off else f"`{option.name}`"


def _asked(arguments: Mapping[str, Any]) -> Asked:
    found = dict(arguments)
    waiting = [value for value in arguments.values() if is_dataclass(value)]
    while waiting:
        group = waiting.pop()
        found |= {each.name: getattr(group, each.name) for each in fields(group)}
        waiting += [value for value in vars(group).values() if is_dataclass(value)]
    asked = SimpleNamespace(**found)
    if "choice" in found:
        fixing = [name for name in ("preset", *_LISTS) if found[name] is not None]
        asked.fixing = f"`{fixing[0]}`" if fixing else None
        asked.chosen_by = asked.choice.sources[0] if asked.choice.sources else None
    return asked


# What is done for a choice and a budget


def _by_operator(asked: Asked) -> bool:
    """Whether single operators may be chosen."""
    from .selection import may_be_operators

    return may_be_operators(asked.choice, asked.budget)


def _has_granularity(asked: Asked) -> bool:
    """Whether there is a choice between single operators and whole layers."""
    from .selection import may_be_operators

    return may_be_operators(replace(asked.choice, granularity=None), asked.budget)


def _compared(asked: Asked) -> bool:
    """Whether what is frozen may be measured on held-out samples."""
    return asked.max_kl is not None or _by_operator(asked)


def _scored(asked: Asked) -> bool:
    """Whether `push` measures the layers itself."""
    return not asked.choice.sources


def _measured(asked: Asked) -> bool:
    return _scored(asked) or _compared(asked)


def _is_package(asked: Asked) -> bool:
    from .packaging import Package

    return Package.is_at(asked.source)


def _is_folder(name: str) -> bool:
    return bool(name) and os.path.isdir(os.path.expanduser(name))


# The rules. Those that come first say more.


def _names(*groups: type) -> tuple[str, ...]:
    return tuple(each.name for group in groups for each in fields(group))


_LISTS = ("frozen_layers", "frozen_attention", "frozen_ffn")
_FOLDER = "to a folder, which has no revisions"
_CONVERSION = (
    *(each.name for each in fields(Conversion) if not is_dataclass(each.default_factory)),
    *_names(Samples, Scoring, Placement, Choice, Budget, Contents),
)
_WHOLE = "where only whole layers are counted: by `num_frozen`, `granularity` layer, another `method` or no budget"
_SCORING = (
    Rule(("max_samples",), lambda asked: not asked.until_stable, "without `until_stable`"),
    Rule(("positions",), lambda asked: not asked.operators, "with `no_operators`"),
    Rule(("device_map",), lambda asked: asked.stream, "with `stream`, which reads one layer at a time"),
)
_CHOICE = (
    Rule(_LISTS, lambda asked: asked.preset is not None, "with `preset`, which fixes the list"),
    Rule(
        ("scores", *_names(Budget), "method", "granularity"),
        lambda asked: asked.fixing is not None,
        "with {fixing}, which fixes the list",
    ),
    Rule(
        ("granularity",),
        lambda asked: not _has_granularity(asked),
        _WHOLE,
    ),
    Rule(("scores",), lambda asked: asked.method == "random", "with `method` random, which measures nothing"),
)
_NAMED = "to {0}, which is no folder: a card names a base on the Hub by itself"
_NOTHING = "where nothing is measured: that takes `max_kl`, or `flops_ratio` and scores of single operators"

RULES: dict[str, tuple[Rule, ...]] = {
    "score": (
        Rule(("revision",), lambda asked: _is_folder(asked.base), _FOLDER),
        Rule(
            ("max_kl",),
            lambda _: True,
            "to scores: it is measured when the package is made",
            "give it to `shortv-export package`",
        ),
        Rule(("flops_ratio",), lambda asked: not asked.until_stable, "to scores without `until_stable`"),
        *_SCORING,
    ),
    "package": (
        Rule(
            ("revision", *(name for name in _names(Choice, Budget, Samples, Placement, Contents) if name != "recipe")),
            lambda asked: asked.recipe is not None,
            "with `recipe`, which decides everything",
        ),
        Rule(("revision",), lambda asked: _is_folder(asked.base), _FOLDER),
        Rule(("base_model",), lambda asked: not _is_folder(asked.base), _NAMED.format("{base}")),
        *_CHOICE,
        Rule(("seed",), lambda asked: not _compared(asked) and asked.method != "random", _NOTHING),
        Rule(("data", "num_samples", *_names(Placement)), lambda asked: not _compared(asked), _NOTHING),
    ),
    "verify": (Rule(("revision",), lambda asked: _is_folder(asked.package), _FOLDER),),
    "evaluate": (
        Rule(("revision",), lambda asked: _is_folder(asked.package), _FOLDER),
        Rule(
            ("update_card",),
            lambda asked: not os.path.isdir(asked.package),
            "to {package}, which is no folder, and only a folder's card can be updated",
            "package the base again",
        ),
        Rule(("at",), lambda asked: not asked.speed, "with `no_speed`, as it has nothing to time"),
    ),
    "compare": (Rule(("revision",), lambda asked: _is_folder(asked.package), _FOLDER),),
    "push": (
        Rule(("branch",), lambda asked: asked.create_pr, "with `create_pr`: a pull request is opened against main"),
        Rule(
            ("tag",),
            lambda asked: asked.create_pr,
            "with `create_pr`: a pull request is not tagged",
            "push again with it after the merge",
        ),
        Rule(
            ("space",),
            lambda asked: asked.create_pr,
            "with `create_pr`: a Space shows what is published",
            "push again with it after the merge",
        ),
        Rule(
            ("evaluate",),
            _is_package,
            "to {source}, which is a package",
            "evaluate it first: shortv-export evaluate {source} --update-card",
        ),
        Rule(_CONVERSION, _is_package, "to {source}, which is a package already"),
        Rule(
            ("recipe",),
            lambda _: True,
            "to a base",
            "make the package again with `shortv-export package`, then push it",
        ),
        Rule(("revision",), lambda asked: _is_folder(asked.source), _FOLDER),
        Rule(("base_model",), lambda asked: not _is_folder(asked.source), _NAMED.format("{source}")),
        *_CHOICE,
        Rule(
            tuple(name for name in _names(Scoring) if name != "stream"),
            lambda asked: not _scored(asked),
            "with {chosen_by}, as no layers are scored",
        ),
        Rule(("stream",), lambda asked: not _measured(asked), "with {chosen_by}, as nothing is measured"),
        Rule(
            ("max_kl", "evaluate"),
            lambda asked: asked.stream,
            "with `stream`, as that takes the whole model",
            "place the model with `device_map` auto instead",
        ),
        *_SCORING,
        Rule(
            ("operators", "positions"),
            lambda asked: not _by_operator(asked),
            _WHOLE,
        ),
        Rule(
            ("seed",),
            lambda asked: not _measured(asked) and asked.evaluate is None and asked.method != "random",
            "with {chosen_by}, as nothing is measured",
        ),
        Rule(
            ("data", *_names(Placement)),
            lambda asked: not _measured(asked) and asked.evaluate is None,
            "with {chosen_by}, as nothing is measured",
        ),
        Rule(
            ("num_samples",),
            lambda asked: not _measured(asked),
            "with {chosen_by}, as nothing is measured to choose layers by",
        ),
    ),
}
