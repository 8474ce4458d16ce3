"""What a card takes over from the base's card: the licence and the languages."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..base import BaseModel
from ..errors import ShortVError, UsageError
from ..files import open_regular
from ..records import CARD_NAME, HUB_ID
from .licenses import has_license_form, is_license, nearest_license

_MOST_METADATA = 1 << 16  # bytes; reading YAML takes long
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
_LINK = re.compile(r"https?://\S+|[\w-][\w.-]*", re.ASCII)  # on the web, or a file of the package


@dataclass(frozen=True)
class Inherited:
    """What the card takes over from the base's card, under the names of the Hub's metadata.

    `license_given`: the licence comes from the option `license`, and differs from the base's card. `base_model`: what
    a local base was derived from, from the option.
    """

    license: str
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    license_given: bool = False
    base_model: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object in a recipe. Most bases need no `base_model`."""
        return {name: value for name, value in asdict(self).items() if name != "base_model" or value is not None}


def inherited_metadata(base: BaseModel, license: str | None = None, base_model: str | None = None) -> Inherited:
    """Reads the licence and the languages from a base's card.

    Args:
        base: the base; it may have no card.
        license: the option; it wins over the base's card.
        base_model: the option.

    Raises:
        ShortVError: no licence is known, or the Hub would refuse it; or `base_model` is no Hub id.
    """
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise UsageError(f"`base_model` {base_model!r:.60} is no Hub id; give one such as llava-hf/llava-1.5-7b-hf.")
    metadata = _front_matter(base.path)
    languages = metadata.get("language") or []
    languages = languages if isinstance(languages, list) else [languages]
    language = tuple(each for each in languages if isinstance(each, str) and _LANGUAGE.fullmatch(each))
    inherited = metadata.get("license")
    if isinstance(inherited, list) and len(inherited) == 1:
        inherited = inherited[0]
    if license is None and (not isinstance(inherited, str) or inherited == "unknown"):
        raise ShortVError(f"the card of {base.name} names no licence; say which one applies with `license`.")
    chosen = str(inherited) if license is None else license
    if not is_license(chosen):
        near = nearest_license(chosen) or "one of https://huggingface.co/docs/hub/repositories-licenses"
        if license is not None:
            raise ShortVError(f"the Hub knows no licence {plain_line(chosen)!r}; the nearest `license` is {near}.")
        raise ShortVError(
            f"the card of {base.name} names the licence {plain_line(chosen)!r}, which the Hub does not know; "
            f"say which one applies with `license`, such as {near}."
        )
    if chosen != inherited:
        return Inherited(chosen, language=language, license_given=True, base_model=base_model)
    name, link = (_short_text(metadata.get(key)) for key in ("license_name", "license_link"))
    if link and base.repo_id and "://" not in link and link not in base.files:
        # A file of the base's repository that the package does not carry.
        link = f"https://huggingface.co/{base.repo_id}/blob/{base.revision}/{quote(link.lstrip('/'))}"
    link = link if link and _LINK.fullmatch(link) else None
    return Inherited(chosen, name, link, language, base_model=base_model)


def recorded_metadata(record: dict[str, Any]) -> Inherited:
    """The same from a recipe's `card`, which may come from anywhere.

    Raises:
        ShortVError: it is not what `inherited_metadata` returns.
    """
    try:
        fields = {name: value for name, value in record.items() if name != "template"}
        inherited = Inherited(**{**fields, "language": tuple(fields["language"])})
        name, link, origin = inherited.license_name, inherited.license_link, inherited.base_model
        right = (
            has_license_form(inherited.license)
            and all(_LANGUAGE.fullmatch(each) for each in inherited.language)
            and isinstance(inherited.license_given, bool)
            and (name is None or name == _short_text(name))
            and (link is None or _LINK.fullmatch(link))
            and (origin is None or HUB_ID.fullmatch(origin))
        )
    except (LookupError, TypeError):
        right = False
    if not right:
        raise ShortVError(
            "the recipe's card is not what this tool writes: its licence, languages or base are not valid."
        )
    return inherited


def plain_line(text: Any) -> str:
    """Foreign text, made harmless: printable characters on one line, at most 200 of them."""
    line = " ".join(str(text).split())
    return "".join(character for character in line if character.isprintable())[:200]


def _front_matter(folder: Path) -> dict[str, Any]:
    """The metadata block of a base's card; empty if there is none or it cannot be read."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        with open_regular(folder / CARD_NAME, folder=folder) as file:
            block = REGEX_YAML_BLOCK.search(file.read(_MOST_METADATA).decode("utf-8", "replace"))
        metadata = yaml.safe_load(block[2]) if block else None
    except (ShortVError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _short_text(value: Any) -> str | None:
    return plain_line(value) or None if isinstance(value, str) else None
