"""Shared fixtures: tiny base models, ShortV folders made from them, photographs, a Hub, the command line.

All files are temporary, including Hugging Face's caches; nothing is downloaded.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.definition import MIXED, Pair, edit_config, make_shortv
from tests.support.hub import client_of_loopback

# Set before any Hugging Face library is imported, because they read these once.
_CACHE = tempfile.mkdtemp(prefix="shortv-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_HOME"] = _CACHE
os.environ["HF_MODULES_CACHE"] = f"{_CACHE}/modules"
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing answers there; tests that need a Hub use `hub`
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"  # progress bars would bury the output of a failed test
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for matrices this small, more threads are slower

atexit.register(gc.freeze)  # see `shortv_export.cli`

# Columns of the table that the tests of all families print.
MATRIX = ("logit error", "generate equal", "LC error", "stream equal", "verify", "push and load")


def pytest_configure(config: pytest.Config) -> None:
    with suppress(ImportError):  # the tests of `modeling/` run without it
        from hypothesis import settings

        # `make cases` tries more.
        settings.register_profile("shortv", max_examples=int(os.environ.get("SHORTV_EXAMPLES", 30)), deadline=None)
        settings.load_profile("shortv")
    if getattr(config.option, "dist", "no") == "load":  # of pytest-xdist
        config.option.dist = "loadgroup"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a module makes for several of its tests is made once: these run in one process."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(each[-1].scope == "module" for each in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0].replace("/", ".")))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays; looking through it for garbage takes a tenth of the time of all tests


@pytest.fixture(autouse=True)
def no_signal_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A signal that one test sends must not stop the requests of the next."""
    yield
    if (processes := sys.modules.get("shortv_export.processes")) is not None:
        processes.stopping.clear()


@pytest.fixture
def matrix(record_property: Callable[[str, Any], None]) -> Callable[[str, str, Any], None]:
    """``matrix(family, column, value)``: fills a cell of the table; the worst value of several is kept."""

    def record(family: str, column: str, value: Any) -> None:
        assert column in MATRIX
        record_property("matrix", (family, column, value))

    return record


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the table of `matrix` if the tests of all families ran."""
    cells: dict[str, dict[str, Any]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key == "matrix":
                    family, column, new = value
                    old = cells.setdefault(family, {}).get(column, new)
                    # The worst: the largest error, or False.
                    cells[family][column] = old and new if isinstance(new, bool) else max(old, new)
    found = {column for row in cells.values() for column in row}
    if not {MATRIX[0], MATRIX[-2]} <= found:
        return
    terminalreporter.section("families")
    terminalreporter.write_line("".join(f"{title:<18}" for title in ("family", *MATRIX)))
    for family, row in sorted(cells.items()):
        shown = (_cell(row.get(column)) for column in MATRIX)
        terminalreporter.write_line("".join(f"{text:<18}" for text in (family, *shown)))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.1e}"


@pytest.fixture
def flash() -> Any:
    """The name of a reference attention with the semantics and masks of flash kernels."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(module, query, key, value, attention_mask, sliding_window=None, **kwargs):
        assert query.shape[2] > 0, "flash kernels take no empty query"
        if attention_mask is not None:  # it covers the filled part of a static cache
            key, value = (states[:, :, : attention_mask.shape[1]] for states in (key, value))
        queries, keys = query.shape[2], key.shape[2]
        row = torch.arange(queries)[:, None] + keys - queries
        column = torch.arange(keys)
        seen = column <= row
        if sliding_window is not None:
            seen = seen & (column > row - sliding_window)
        seen = seen[None, None].expand(query.shape[0], -1, -1, -1)
        if attention_mask is not None:
            assert attention_mask.dim() == 2
            seen = seen & attention_mask[:, None, None].bool()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, seen, **kwargs)

    AttentionInterface.register("reference_flash", attention)
    AttentionMaskInterface.register("reference_flash", flash_attention_mask)
    yield "reference_flash"
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("reference_flash")


@pytest.fixture(scope="session")
def photos() -> dict[str, Any]:
    """Four of scikit-image's photographs, of different shapes."""
    import skimage.data
    from PIL import Image

    names = ("astronaut", "coffee", "chelsea", "rocket")
    return {name: Image.fromarray(getattr(skimage.data, name)()) for name in names}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_base(model_type="llava", text_config={...}, **build_tiny_llava's arguments)``: a base folder.

    The same arguments give the same folder: copy it before changing it.
    """
    from tests.support.tiny_llava import build_tiny_llava

    made: dict[str, Path] = {}

    def make(model_type: str = "llava", text_config: dict[str, Any] | None = None, **arguments: Any) -> Path:
        key = repr((model_type, text_config, sorted(arguments.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny_{model_type}")
            made[key] = edit_config(build_tiny_llava(folder, model_type=model_type, **arguments), text_config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def shortv_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``shortv_folder(base, frozen_layers, **make_shortv's arguments)``: a ShortV model from a copy of the base."""

    def make(base: Path, frozen_layers: Any, **operators: Any) -> Path:
        folder = tmp_path_factory.mktemp("shortv") / base.name
        return make_shortv(shutil.copytree(base, folder), frozen_layers, **operators)

    return make


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    """`client_of_loopback` with an empty cache."""
    with client_of_loopback(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``run("score", ...)`` -> (exit status, stdout, stderr) of the command line, in this process."""
    from shortv_export import cli

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shortv-export", *map(str, arguments)])
        capsys.readouterr()  # what was printed before
        status = 0
        try:
            cli.main()
        except SystemExit as exit:
            status = int(exit.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def load_pair(
    tiny_base: Callable[..., Path], shortv_folder: Callable[..., Path], photos: dict[str, Any]
) -> Callable[..., Pair]:
    """``load_pair(model_type="llava", frozen=MIXED, **tiny_base's arguments)``: a new `Pair` in eval mode.

    `frozen` are the lists of the config by name, or the frozen layers alone.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def load(model_type: str = "llava", *, frozen: Any = MIXED, dtype: Any = None, **arguments: Any) -> Pair:
        base = tiny_base(model_type, **arguments)
        folder = shortv_folder(base, **frozen if isinstance(frozen, dict) else {"frozen_layers": list(frozen)})
        stock = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
        shortv = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
        processor = AutoProcessor.from_pretrained(base)
        return Pair(base, folder, stock.eval(), shortv.eval(), processor, photos)

    return load
