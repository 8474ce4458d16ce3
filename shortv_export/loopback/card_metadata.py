"""Reads the metadata of a model card and checks it as the Hub does."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_MODEL_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)


def front_matter(text: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The metadata of a card, and the errors and warnings that the Hub would report."""
    block = _FRONT_MATTER.match(text)
    if block is None or not block[1].strip():
        return {}, [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return {}, [f"YAML metadata could not be parsed: {error}"], []
    if not isinstance(data, dict):
        return {}, ["YAML metadata must be a mapping"], []
    texts = ("library_name", "pipeline_tag")
    errors = [f'"{key}" must be a string' for key in texts if not isinstance(data.get(key, ""), str)]
    for key in ("tags", "datasets", "metrics", "license", "language", "base_model"):
        value = data.get(key) or []
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in items) or (key == "tags" and value is not items):
            errors.append(f'"{key}" must be an array{"" if key == "tags" else " or a string"}')
        elif key == "base_model":
            wrong = [each for each in items if not _MODEL_ID.fullmatch(each)]
            errors += [f'"base_model" with value "{each}" is not valid' for each in wrong]
    if data.get("base_model_relation", "finetune") not in ("adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of [adapter, finetune, merge, quantized]')
    return json.loads(json.dumps(data, default=str)), errors, []
