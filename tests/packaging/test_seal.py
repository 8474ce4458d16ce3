"""A card tells whether somebody edited it, and can be renamed."""

from __future__ import annotations

import hashlib

import pytest

from shortv_export.packaging.seal import UNNAMED, is_as_made, named_in, rename_card, seal

TEXT = f"""---
datasets:
- alice/pets
---
# Title

```python
model_id = "{UNNAMED}"
```
shortv-export evaluate {UNNAMED} \\
  --data alice/pets
shortv-export verify {UNNAMED}
"""


def test_the_seal_is_a_comment_with_the_hash_of_the_text_above() -> None:
    sealed = seal(TEXT)
    assert sealed.startswith(TEXT)
    line = sealed.removeprefix(TEXT)
    assert line == f"<!-- shortv-export: sha256 of the text above: {hashlib.sha256(TEXT.encode()).hexdigest()} -->\n"
    assert is_as_made(sealed)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("Title", "title"),
        lambda text: text + "More.\n",
        lambda text: text + "\n",
        lambda text: text[:-1],
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: "".join(text.splitlines(keepends=True)[:-1]),
        lambda text: text[-120:],
        lambda text: text.replace("sha256", "sha512"),
        lambda text: text.encode()[:-90].decode() + "\udcff",
        lambda _: "",
        lambda _: "\n",
    ],
)
def test_any_edit_shows(edit) -> None:  # type: ignore[no-untyped-def]
    assert not is_as_made(edit(seal(TEXT)))


def test_renaming() -> None:
    """Every place of the name, and not the data set of the same name; back and forth."""
    made = seal(TEXT)
    pets = rename_card(made, "alice/pets")
    assert pets == seal(TEXT.replace(UNNAMED, "alice/pets"))
    assert named_in(pets) == "alice/pets"
    other = rename_card(pets, "bob/model.v1")
    assert other == seal(TEXT.replace(UNNAMED, "bob/model.v1"))
    assert rename_card(other, UNNAMED) == made
    assert other.count("alice/pets") == 2


def test_an_edited_card_stays_an_edited_card() -> None:
    edited = seal(TEXT).replace("Title", "Mine")
    renamed = rename_card(edited, "me/model")
    assert not is_as_made(renamed)
    assert named_in(renamed) == "me/model"
    assert "# Mine" in renamed
    assert rename_card("no card", "me/model") == "no card"
