"""What people can ask for. Every option is declared here once: its type, its default and its help.

The functions of `pipeline` take these values. The command line, optimum's command and the commands on cards read the
same fields. A help text or an error names an option as `field_name`; the command line shows it as ``--field-name``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from .errors import ShortVError, UsageError

_LONGEST_RANGE = 10_000  # no model has as many layers; so that a mistyped number fills no memory

MaxMemory = Mapping[int | str, int | str]
"""As in ``from_pretrained``: GPU number or ``"cpu"`` -> bytes, or a text such as ``"20GiB"``."""


@dataclass(frozen=True)
class Help:
    """How the command line shows an option.

    Attributes:
        text: the help.
        metavar: what stands for the value; None lets the command line choose.
        least: the smallest number allowed.
        parse: from what was typed to the value; raises a ValueError or ShortVError that says what is wrong.
        short: a second name of one letter, such as ``-o``.
    """

    text: str
    metavar: str | None = None
    least: int | None = None
    parse: Callable[[str], Any] | None = None
    short: str | None = None


def parse_max_memory(text: str) -> dict[int | str, str]:
    """``"0=10GiB,cpu=20GiB"`` -> ``{0: "10GiB", "cpu": "20GiB"}``.

    Raises:
        ShortVError: it does not have this form, or names a place twice.
    """
    size_form = r"[0-9]{1,15}(\.[0-9]+)?[KMG]i?B"
    limits: dict[int | str, str] = {}
    for item in text.split(","):
        place, _, size = map(str.strip, item.partition("="))
        key: int | str = int(place) if place.isascii() and place.isdigit() else place
        if not (isinstance(key, int) or key == "cpu") or key in limits:
            raise ShortVError(f"{item!r:.60} is no limit of memory; give a GPU's number or cpu once, as in cpu=20GiB.")
        if not re.fullmatch(size_form, size, re.IGNORECASE):
            raise ShortVError(f"{size!r:.60} is not an amount of memory; give one such as 20GiB or 500MB.")
        limits[key] = size
    return limits


def parse_layers(text: str) -> tuple[int, ...]:
    """``"31,29,30"`` -> ``(31, 29, 30)``, and ``"0,2-5"`` -> ``(0, 2, 3, 4, 5)``.

    Raises:
        ShortVError: it is empty, or holds anything but whole numbers and ranges of them.
    """
    if not text.strip():
        raise ShortVError("the list of frozen layers is empty; give layer numbers such as 31,29 or 0,2-5.")
    layers: list[int] = []
    for item in map(str.strip, text.split(",")):
        # [0-9] and not int(), which takes "1_0" and digits of other scripts.
        found = re.fullmatch(r"(-?[0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?", item)
        if not found:
            raise ShortVError(
                f"frozen layer {item!r:.40} is not a whole number or a range of them; "
                "give layer numbers such as 31,29 or 0,2-5."
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if found[2] and not 0 <= first <= last < first + _LONGEST_RANGE:
            raise ShortVError(f"{item!r:.40} is no range of layers; give the smaller number first, as in 2-5.")
        layers += range(first, last + 1)
    return tuple(layers)


def parse_sweep(text: str) -> tuple[int | float, ...]:
    """``"0,4,0.6"`` -> ``(0, 4, 0.6)``: numbers of layers, and FLOPs ratios with a decimal point."""
    ratio = r"\s*(0?\.[0-9]{1,9}|1\.0+)\s*"
    return tuple(
        float(item) if re.fullmatch(ratio, item) else _numbers(item, 1, "0,4,8 or 0.8,0.6")[0]
        for item in text.split(",")
    )


def parse_lengths(text: str) -> tuple[tuple[int, int], ...]:
    """``"64+576,64+2880"`` -> ``((64, 576), (64, 2880))``: numbers of text and of visual tokens."""
    lengths = []
    for item in text.split(","):
        text_tokens, visual_tokens = _numbers(item, 2, "64+576,64+2880")
        if min(text_tokens, visual_tokens) < 1:
            raise ValueError("a prompt has text and visual tokens; give at least 1 of each.")
        lengths.append((text_tokens, visual_tokens))
    return tuple(lengths)


def _numbers(text: str, count: int, example: str) -> list[int]:
    """So many whole numbers, joined by plus signs."""
    parts = [part.strip() for part in text.split("+")]
    if len(parts) != count or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
        raise ValueError(f"{text!r} is not understood; write it as in {example}.")
    return [int(part) for part in parts]


class _Checked:
    """A dataclass whose values are among the choices that their types name."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, choices in _choices(kind).items():
            if getattr(self, name) not in choices:
                *first, last = (choice for choice in choices if choice is not None)
                listed = f"{', '.join(first)} or {last}" if first else last
                raise UsageError(f"unknown `{name}` {getattr(self, name)!r:.40}; choose {listed}.")


@cache
def _choices(kind: type) -> dict[str, tuple[str | None, ...]]:
    """The values that a dataclass's fields may have, by name, where their types name them."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        for each in (hint, *get_args(hint)):  # `Literal[...]` or `Literal[...] | None`
            if get_origin(each) is Literal:
                found[name] = (*get_args(each), *((None,) if NoneType in get_args(hint) else ()))
    return found


Base = Annotated[str, Help("Base model: a Hub id or a folder.", "BASE")]
Revision = Annotated[str | None, Help("Branch, tag or commit of the repository.")]


@dataclass(frozen=True)
class Samples:
    """Samples to measure on."""

    data: Annotated[
        str | None,
        Help(
            "'paper', a Hub data set, or a folder with images or videos and metadata.jsonl. Default: the data of the "
            "scores that layers were chosen by, if there are any, or else 'paper'."
        ),
    ] = None
    num_samples: Annotated[int, Help("Number of samples.", least=1)] = 40
    seed: Annotated[int, Help("Random seed, also of held-out samples and of `method` random.")] = 0


@dataclass(frozen=True)
class Scoring(_Checked):
    """How layers are scored."""

    until_stable: Annotated[bool, Help("Add samples in rounds until the selected layers stop changing.")] = False
    max_samples: Annotated[int, Help("With `until_stable`: stop at this many samples.", least=1)] = 160
    operators: Annotated[
        bool, Help("Measure single operators, too; without, scoring is three times as fast and chooses whole layers.")
    ] = True
    positions: Annotated[
        Literal["answer", "first"],
        Help(
            "Where single operators are judged: at each token of the base's own greedy answer (up to 32), or at the "
            "first one alone, as the paper judges layers. The paper's measure is made in any case."
        ),
    ] = "answer"
    text_contribution: Annotated[
        bool, Help("Also measure the contribution of text tokens, for comparison (paper, Figure 3).")
    ] = False
    divergence: Annotated[
        Literal["forward", "reverse"],
        Help("'forward': KL(original || frozen), as the paper defines it; 'reverse': as its code computes it."),
    ] = "forward"
    max_batch_tokens: Annotated[int, Help("Tokens per call of a decoder layer; fewer need less memory.", least=1)] = (
        2560  # keeps an accelerator busy; on a CPU, more would leave its caches
    )
    stream: Annotated[
        bool, Help("Read decoder layers from disk one at a time, for a base that is larger than memory.")
    ] = False

    @property
    def ablations(self) -> tuple[str, ...]:
        """What is left out of a layer: everything for visual tokens, one of its operators, everything for text."""
        return (
            "visual",
            *(("attention", "ffn") if self.operators else ()),
            *(("text",) if self.text_contribution else ()),
        )

    @property
    def over_answer(self) -> bool:
        """Whether divergences are also measured over the base's answer."""
        return self.operators and self.positions == "answer"


@dataclass(frozen=True)
class Placement(_Checked):
    """Where the model runs."""

    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Help("Precision.")] = "auto"
    device_map: Annotated[str | None, Help("Placement by accelerate, such as 'auto' or 'cuda'.")] = None
    max_memory: Annotated[
        MaxMemory | None,
        Help(
            "Memory that the model may use, such as 0=10GiB,cpu=20GiB. Implies `device_map` auto unless streaming.",
            parse=parse_max_memory,
        ),
    ] = None


@dataclass(frozen=True)
class Choice(_Checked):
    """What to freeze."""

    scores: Annotated[Path | None, Help("Those with the lowest scores in this file, from `shortv-export score`.")] = (
        None
    )
    preset: Annotated[Literal["paper"] | None, Help("'paper': the paper's list for this base; needs no scores.")] = (
        None
    )
    frozen_layers: Annotated[
        tuple[int, ...] | None, Help("These layers, such as 31,29 or 0,2-5.", parse=parse_layers)
    ] = None
    frozen_attention: Annotated[
        tuple[int, ...] | None, Help("Attention alone in these layers.", parse=parse_layers)
    ] = None
    frozen_ffn: Annotated[
        tuple[int, ...] | None, Help("The feed-forward network alone in these layers.", parse=parse_layers)
    ] = None
    granularity: Annotated[
        Literal["operator", "layer"] | None,
        Help(
            "Freeze whole layers, as the paper does, or attention and the FFN of each layer by themselves. Default: "
            "operator for `flops_ratio` and `max_kl`, if the scores have what it takes; else layer."
        ),
    ] = None
    method: Annotated[
        Literal["lc", "cosine", "random"],
        Help("'lc': lowest Layer Contribution. To compare with: 'cosine' (of hidden states) or 'random'."),
    ] = "lc"

    @property
    def sources(self) -> list[str]:
        """The options given that say where the list comes from; more than one contradict each other."""
        lists = [
            name for name in ("frozen_layers", "frozen_attention", "frozen_ffn") if getattr(self, name) is not None
        ]
        # The three lists are one source; messages name the first of them.
        given = [name for name in ("scores", "preset") if getattr(self, name) is not None] + lists[:1]
        random = ["`method` random"] if self.method == "random" else []
        return [f"`{name}`" for name in given] + random


@dataclass(frozen=True)
class Budget:
    """How much to freeze (one of these; default: 60 % of the layers)."""

    num_frozen: Annotated[int | None, Help("This many layers.")] = None
    flops_ratio: Annotated[
        float | None, Help("As little as brings the prefill FLOPs down to this share of the base's.")
    ] = None
    max_kl: Annotated[
        float | None,
        Help("As much as keeps KL(base || frozen), measured on held-out samples, at or below this."),
    ] = None


@dataclass(frozen=True)
class Contents(_Checked):
    """What the package holds."""

    license: Annotated[str | None, Help("Licence, if the base's card names none: an id of the Hub, such as mit.")] = (
        None
    )
    weights: Annotated[
        Literal["copy", "reference"],
        Help("'copy', or 'reference': publish no weights; they are loaded from the base's Hub repository."),
    ] = "copy"
    recipe: Annotated[
        Path | None, Help("Make the package of this shortv.json again, byte for byte; BASE may then be left out.")
    ] = None
    handler: Annotated[bool, Help("Add a handler.py, by which Inference Endpoints serve the package.")] = False
    base_model: Annotated[
        str | None, Help("What BASE, a folder, was derived from: a Hub id, such as llava-hf/llava-1.5-7b-hf.")
    ] = None


@dataclass(frozen=True)
class Questions:
    """What the models are asked."""

    group_by: Annotated[
        str | None, Help("A column of the data, such as 'task': show accuracy for each of its values.")
    ] = None
    accuracy: Annotated[bool, Help("Refuse data without answers.")] = False
    task: Annotated[
        str | None,
        Help("Task, if the data is a benchmark on the Hub. With `update_card`, also writes .eval_results/."),
    ] = None
    force_overlap: Annotated[bool, Help("Draw also from the samples that the layers were chosen by.")] = False
    max_new_tokens: Annotated[int, Help("Maximum number of tokens of an answer.", least=1)] = 32


@dataclass(frozen=True)
class Comparison:
    """What is compared with the base."""

    sweep: Annotated[
        tuple[int | float, ...] | None,
        Help("Also these numbers of frozen layers, or FLOPs ratios, such as 0,4,8 or 0.8,0.6.", parse=parse_sweep),
    ] = None
    at: Annotated[
        tuple[tuple[int, int], ...],
        Help("Also time these numbers of text + visual tokens, such as 64+576,64+2880.", parse=parse_lengths),
    ] = ()
    baselines: Annotated[
        bool, Help("Also FastV, VTW, ShortV with FastV, and layers chosen at random and by cosine.")
    ] = False
    speed: Annotated[bool, Help("Measure time, memory and FLOPs.")] = True


@dataclass(frozen=True)
class Target(_Checked):
    """Where and how to publish."""

    private: Annotated[bool, Help("Make a new repository private.")] = False
    create_pr: Annotated[bool, Help("Open a pull request instead of committing.")] = False
    branch: Annotated[str | None, Help("Branch to publish to. Default: main.")] = None
    overwrite: Annotated[bool, Help("Publish into a repository that this tool did not make.")] = False
    card: Annotated[
        Literal["package", "hub"] | None,
        Help("If the card was edited: publish the package's as it is, or keep the one on the Hub."),
    ] = None
    commit_message: Annotated[str | None, Help("Message of the commit.")] = None
    tag: Annotated[str | None, Help("A second tag, such as v1, beside the recipe's own.")] = None
    space: Annotated[
        bool, Help("Also publish a Space of the same name, a page that compares the model with its base.")
    ] = False
    dry_run: Annotated[bool, Help("Show the plan and change nothing.")] = False


@dataclass(frozen=True)
class Conversion:
    """How a base becomes a package."""

    revision: Revision = None
    out: Annotated[Path | None, Help("Folder of the package. Default: ./NAME.", short="-o")] = None
    evaluate: Annotated[int | None, Help("Evaluate on this many held-out samples, for the card.", least=1)] = None
    samples: Samples = field(default_factory=Samples)
    scoring: Scoring = field(default_factory=Scoring)
    placement: Placement = field(default_factory=Placement)
    choice: Choice = field(default_factory=Choice)
    budget: Budget = field(default_factory=Budget)
    contents: Contents = field(default_factory=Contents)


# How others read the declarations


@dataclass(frozen=True)
class Option:
    """One option of a function, wherever it stands: a parameter, or a field of a parameter that is a dataclass.

    Attributes:
        name: of the parameter or field.
        path: the names of the parameter and the fields that lead to it; the last is `name`.
        type: without its `Help`.
        default: `inspect.Parameter.empty` if it must be given.
        help: how to show it.
        group: the title of the dataclass it belongs to; None for a parameter.
        positional: whether it is an argument and not an option.
    """

    name: str
    path: tuple[str, ...]
    type: Any
    default: Any
    help: Help
    group: str | None
    positional: bool

    @property
    def flag(self) -> str:
        """As it is typed."""
        return to_flag(self.name)


def options_of(function: Callable[..., Any]) -> list[Option]:
    """Every option of a function of `pipeline`, in the order in which they are declared."""
    parameters = inspect.signature(function).parameters
    hints = _hints(function, parameters)
    found: list[Option] = []
    for name, parameter in parameters.items():
        positional = parameter.kind is not parameter.KEYWORD_ONLY
        found += _flatten((name,), hints[name], parameter.default, None, positional)
    return found


def _hints(function: Any, names: Any) -> dict[str, Any]:
    # Only of the parameters: the type of the result may not be imported yet.
    annotations = {name: hint for name, hint in function.__annotations__.items() if name in names}
    carrier = type("_", (), {"__annotations__": annotations, "__module__": function.__module__})
    return get_type_hints(carrier, include_extras=True)


def _flatten(path: tuple[str, ...], hint: Any, default: Any, group: str | None, positional: bool) -> Iterator[Option]:
    if is_dataclass(hint):
        title = str(inspect.getdoc(hint)).splitlines()[0].rstrip(".")
        hints = get_type_hints(hint, include_extras=True)
        for each in fields(hint):
            yield from _flatten((*path, each.name), hints[each.name], getattr(default, each.name), title, False)
    else:
        kind, shown = get_args(hint)
        yield Option(path[-1], path, kind, default, shown, group, positional)


def to_flag(name: str) -> str:
    """``num_frozen`` -> ``--num-frozen``."""
    return f"--{name.replace('_', '-')}"


def to_words(values: Any, *always: str) -> list[str]:
    """A dataclass of options as words of a command line: what differs from the default, and the fields in `always`."""
    words: list[str] = []
    for each in fields(values):
        value = getattr(values, each.name)
        if value is None or (value == each.default and each.name not in always):
            continue
        if isinstance(value, bool):
            words.append(to_flag(each.name if value else f"no_{each.name}"))
        else:
            words += [to_flag(each.name), _typed(value)]
    return words


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join("+".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value)


def with_flags(text: str, names: set[str]) -> str:
    """A message of the library in the words of the command line: `num_frozen` becomes --num-frozen."""
    known = names | {f"no_{name}" for name in names}
    return re.sub(r"`(\w+)`", lambda found: to_flag(found[1]) if found[1] in known else found[0], text)
