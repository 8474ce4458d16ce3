"""A Hub on this machine for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def client_of_loopback(cache: Path) -> Iterator[Any]:
    """A `LoopbackHub` that this process's client is logged in to while the context lasts, with its cache.

    Any error that the Hub saw fails the test.
    """
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    from shortv_export.loopback import LoopbackHub

    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        # The client reads these from the environment once, at import.
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(transformers_hub, "_hf_api", None)  # keeps the address of the first Hub that it met
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("HF_TOKEN", hub.token)
        patch.setenv("no_proxy", "127.0.0.1")
        yield hub
        assert hub.errors == []
