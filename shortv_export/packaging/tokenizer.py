"""Which tokenizer class a package names, so that it splits text as its base does.

For some architectures transformers knows that the class which their repositories name is wrong, and by the config's
model type takes another: for LLaVA, ``tokenizer.json`` as it stands instead of a `LlamaTokenizer`, which would split
the text after an image otherwise. Of a package's own model type it knows no such thing. A package of such a base
therefore names the class that the base gets; all else in its ``tokenizer_config.json`` stays as it is.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from ..errors import ShortVError, one_line
from ..records import TOKENIZER_CONFIG_NAME

if TYPE_CHECKING:
    from ..base import BaseModel


def tokenizer_classes(base: BaseModel) -> dict[str, str | None] | None:
    """The class that a base's ``tokenizer_config.json`` names, and the one that a package of it has to name.

    Args:
        base: with its files here.

    Returns:
        ``{"base", "package"}``, where the base may name none; None if they need not differ.

    Raises:
        ShortVError: the tokenizer cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

    if TOKENIZER_CONFIG_NAME not in base.files:
        return None
    try:
        right, plain = (
            type(AutoTokenizer.from_pretrained(base.path, config=config)).__name__
            for config in (AutoConfig.from_pretrained(base.path), PreTrainedConfig())
        )
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise ShortVError(f"{base.name}: its tokenizer cannot be loaded: {one_line(error)}") from error
    if right == "MistralCommonBackend":  # of a package that not everyone has; without it, transformers takes this
        right = "TokenizersBackend"
    if right == plain:
        return None
    named = json.loads((base.path / TOKENIZER_CONFIG_NAME).read_text("utf-8")).get("tokenizer_class")
    return {"base": named, "package": right}


def with_class(text: str, before: str | None, after: str | None) -> str:
    """A ``tokenizer_config.json`` that names another class, all else in its place.

    Doing so there and back gives the same text.

    Args:
        text: of the file.
        before: the class that it names; None if it names none.
        after: the class that it is to name; None for none.

    Raises:
        ShortVError: the text is no JSON object, or does not name `before` just once.
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
