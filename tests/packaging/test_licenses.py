"""The licences that a card may name are those of the Hub, and another one's nearest is suggested."""

from __future__ import annotations

import pytest
from huggingface_hub import RepoCard

from shortv_export.loopback import LoopbackHub, card_metadata
from shortv_export.packaging.licenses import LICENSES, is_license, nearest_license


def test_the_list_is_the_hubs(hub: LoopbackHub) -> None:
    assert sorted(LICENSES) == sorted(card_metadata.LICENSES.split())
    for license in LICENSES:
        RepoCard(f"---\nlicense: {license}\n---\n").validate(repo_type="model")
    before = len(hub.requests)
    assert all(map(is_license, LICENSES))
    assert len(hub.requests) == before


@pytest.mark.parametrize("license", ["MIT", "agpl-3.0-or-later", "no", "1.0", "x y", "x\ny", "{}", ""])
def test_others_are_refused(hub: LoopbackHub, license: str) -> None:
    assert not is_license(license)


def test_a_licence_that_the_hub_has_learned(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_license("llama5")
    monkeypatch.setattr(card_metadata, "LICENSES", "mit llama5")
    assert is_license("llama5")
    hub.stop()
    assert not is_license("llama5")


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("MIT", "mit"),
        ("The MIT License", "mit"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("GPL-3.0-only", "gpl-3.0"),
        ("gpl-3.0+", "gpl-3.0"),
        ("GPLv3", "gpl-3.0"),
        ("AGPL-3.0-or-later", "agpl-3.0"),
        ("BSD_3_Clause", "bsd-3-clause"),
        ("LGPL-2.1-only", "lgpl-2.1"),
        ("LGPL-2.0", "lgpl-3.0"),  # not gpl-2.0, which is spelled more alike
        ("Llama 3.1", "llama3.1"),
        ("openrail++", "openrail++"),
        ("qwen", None),
        ("", None),
    ],
)
def test_nearest(written: str, nearest: str | None) -> None:
    assert nearest_license(written) == nearest
