"""The licence ids that a card on the Hub may name."""

from __future__ import annotations

import difflib
import json
import re

# https://huggingface.co/docs/hub/repositories-licenses, as of 2026
_KNOWN = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community
    h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl
    postgresql unknown unlicense wtfpl zlib
"""
LICENSES: tuple[str, ...] = tuple(_KNOWN.split())
_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def is_license(text: str) -> bool:
    """Whether the Hub accepts a licence id. It is asked about ids that are not in the list, which may have grown."""
    return text in LICENSES or (bool(_FORM.fullmatch(text)) and _is_accepted(text))


def has_license_form(text: str) -> bool:
    """Whether a text can be a licence id: a few letters, digits and . + -"""
    return _FORM.fullmatch(text) is not None


def nearest_license(text: str) -> str | None:
    """The id that is meant by an SPDX id or by the name of a licence; None if nothing is near."""
    written = re.sub(r"[\s_]+|(?<=[a-z])v(?=\d)", "-", text.strip().lower())
    written = re.sub(r"^the-|-licen[cs]e|-version|(-only|-or-later|\+)$", "", written)
    # So that the suggestion for lgpl-2.0 is not gpl-2.0.
    family = [each for each in LICENSES if each.split("-")[0] == written.split("-")[0]]
    found = difflib.get_close_matches(written, family or LICENSES, n=1)
    return found[0] if found else None


def _is_accepted(license: str) -> bool:
    """Asks the Hub; False if it cannot be asked."""
    from huggingface_hub import RepoCard
    from huggingface_hub.errors import HTTPError

    try:
        RepoCard(f"---\nlicense: {json.dumps(license)}\n---\n").validate(repo_type="model")
    except (HTTPError, OSError, ValueError):  # ValueError: it is refused
        return False
    return True
