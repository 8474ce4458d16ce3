"""A card's last line is a hash of what stands above it: without it, nobody could tell a card that a person edited.

The line is an HTML comment, which no page shows.
"""

from __future__ import annotations

import hashlib
import re

from ..records import HUB_ID

UNNAMED = "your-name/your-model"
"""Stands for the repository's name until the package is published."""

_SEAL = "<!-- shortv-export: sha256 of the text above: {} -->\n"
_NAME = re.compile(rf'^model_id = "({HUB_ID.pattern})"$', re.ASCII | re.MULTILINE)


def seal(text: str) -> str:
    """A card's text with its hash as the last line."""
    # Text from elsewhere may have lone surrogates.
    return text + _SEAL.format(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def is_as_made(text: str) -> bool:
    """Whether a card is as this tool wrote it."""
    return seal(_unsealed(text)) == text


def named_in(text: str) -> str:
    """The repository that a card tells to load; `UNNAMED` if it tells none."""
    found = _NAME.search(text)
    return found[1] if found else UNNAMED


def rename_card(text: str, repo_id: str) -> str:
    """The card for another repository. It is sealed again, unless somebody edited it."""
    # Only where the template puts it: a data set may have the same name.
    place = re.compile(
        rf'(model_id = "|shortv-export (?:verify|evaluate) |vllm serve ){re.escape(named_in(text))}(?=["\s])'
    )
    made, body = is_as_made(text), _unsealed(text)
    renamed = place.sub(lambda found: found[1] + repo_id, body if made else text)
    return seal(renamed) if made else renamed


def _unsealed(text: str) -> str:
    return text[: text.rfind("\n", 0, -1) + 1]
