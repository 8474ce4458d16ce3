"""Reads the metadata of a model card and checks it as the Hub does."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
# As the Hub lists them in the error for any other: https://github.com/huggingface/huggingface_hub/issues/4218
LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
"""
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
        elif key == "license" and not set(items) <= {*LICENSES.split()}:
            errors.append(f'"license" must be one of [{", ".join(LICENSES.split())}, array]')
    if data.get("base_model_relation", "finetune") not in ("adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of [adapter, finetune, merge, quantized]')
    return json.loads(json.dumps(data, default=str)), errors, []
