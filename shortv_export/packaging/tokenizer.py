"""The tokenizer class that a package names, so that it splits text as its base does.

Some repositories name a tokenizer class that is wrong, and transformers replaces it by the config's model type. For
LLaVA it takes ``tokenizer.json`` as it is, since `LlamaTokenizer` would split the text after an image differently.
transformers does not do this for a package's own model type. So the package names the class that transformers gives
the base. The rest of its ``tokenizer_config.json`` is the base's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..base import BaseModel, entering, in_worker
from ..errors import ShortVError, one_line
from ..records import TOKENIZER_CONFIG_NAME


def tokenizer_classes(base: BaseModel) -> dict[str, str | None] | None:
    """The tokenizer classes that a base names (None if it names none) and that a package of it has to name.

    Returns:
        ``{"base", "package"}``; None if the package can name the same class.

    Raises:
        ShortVError: the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer  # noqa: F401  # imported here, a fork has it

    if TOKENIZER_CONFIG_NAME not in base.files:
        return None
    right, plain = in_worker(base.name, _classes, base.path)
    if right == "MistralCommonBackend":  # needs mistral-common; without it, transformers takes the other
        right = "TokenizersBackend"
    if right == plain:
        return None
    named = json.loads((base.path / TOKENIZER_CONFIG_NAME).read_text("utf-8")).get("tokenizer_class")
    return {"base": named, "package": right}


def _classes(folder: Path) -> tuple[str, str]:
    """The classes that transformers gives the tokenizer by the base's config and without it, in a worker."""
    from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

    entering("tokenizer", "cannot be loaded")
    right = AutoTokenizer.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))
    plain = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig())
    return type(right).__name__, type(plain).__name__


def with_class(text: str, before: str | None, after: str | None) -> str:
    """Replaces the class in the text of a ``tokenizer_config.json``. Swapping back gives the same text.

    Args:
        text: of the file.
        before: the class that it names; None if it names none.
        after: the class that it is to name; None for none.

    Raises:
        ShortVError: the text is not a JSON object, or does not name `before` exactly once.
    """
    try:
        fields = json.loads(text)
        if fields.get("tokenizer_class") != before:
            raise ValueError(f"it does not name {before}")
        if before is None:
            changed, count = re.subn(r"\A(\s*\{)(\s*)", rf'\1\2"tokenizer_class": "{after}",\2', text)
        elif after is None:
            changed, count = re.subn(rf'\A(\s*\{{)\s*"tokenizer_class": "{re.escape(before)}",', r"\1", text)
        else:
            pattern = rf'("tokenizer_class"\s*:\s*")(?:{re.escape(before)})"'
            changed, count = re.subn(pattern, rf'\g<1>{after}"', text)
        wanted = {name: value for name, value in fields.items() if name != "tokenizer_class"}
        wanted |= {} if after is None else {"tokenizer_class": after}
        if count != 1 or json.loads(changed) != wanted:
            raise ValueError("it names its class in a way that cannot be replaced")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ShortVError(f"{TOKENIZER_CONFIG_NAME}: {one_line(error)}.") from None
    return changed
