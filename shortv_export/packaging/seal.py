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
_PINNED = 'revision = "{}"  # pins weights, frozen layers and code'
_UNPINNED = 'revision = "main"  # the newest version; no tag pins one yet'
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


def is_pinned(text: str) -> bool:
    """Whether a card tells to load a tag, and not the newest version."""
    return _UNPINNED not in text


def unpin_card(text: str, tag: str) -> str:
    """The card that tells to load the newest version, for a pull request: nobody but its merger can set the tag.

    It is sealed again, unless somebody edited it.
    """
    made, body = is_as_made(text), _unsealed(text)
    loose = (body if made else text).replace(_PINNED.format(tag), _UNPINNED)
    loose = loose.replace(f"  --revision {tag} ", "  --revision main ")
    return seal(loose) if made else loose


def _unsealed(text: str) -> str:
    return text[: text.rfind("\n", 0, -1) + 1]
