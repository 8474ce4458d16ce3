"""Shows the page on this machine."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

from ..errors import ShortVError
from ..evaluation import load_package, require_frozen
from ..options import Placement
from ..packaging import Package


@dataclass(frozen=True)
class Page:
    """A page that is being served.

    Attributes:
        url: where a browser finds it.
    """

    url: str
    blocks: Any

    def wait(self) -> None:
        """Serves it until the process is interrupted."""
        try:
            threading.Event().wait()
        finally:
            self.close()

    def close(self) -> None:
        """Stops serving it."""
        self.blocks.close(verbose=False)


def require_comparable(package: Package) -> None:
    """Refuses a package that cannot be shown beside its base. None of its code is run.

    Raises:
        ShortVError: gradio is missing, the package is not what its recipe says, or it freezes no layer.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ShortVError("the page needs gradio: pip install 'gradio>=6'") from None
    require_frozen(package, "compared with its base")


def show_page(package: Package, *, host: str, port: int | None, placement: Placement = Placement()) -> Page:
    """Loads a package and serves the page.

    Args:
        package: checked by `require_comparable`.
        host: address to listen on.
        port: None takes a free one.
        placement: where the model runs.

    Raises:
        ShortVError: the package cannot be loaded, or the port cannot be listened on.
    """
    from transformers import AutoProcessor

    from .page import LOOK, Asked, build

    model = load_package(package, placement)
    model.freeze_layers(**{name: list(layers) for name, layers in package.recipe.frozen.lists.items()})
    processor = AutoProcessor.from_pretrained(package.folder, trust_remote_code=True)
    blocks = build(
        Asked(model, processor, package.family.prompt),
        *words(package, package.name if package.commit else package.folder.name),
    )
    try:
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            ssr_mode=False,
            **LOOK,
        )
    except OSError as error:  # gradio's, too, where no port is free
        where = host if port is None else f"{host}:{port}"
        raise ShortVError(f"{where} cannot be listened on; choose another `port`.") from error
    return Page(url, blocks)


def words(package: Package, name: str) -> tuple[str, str]:
    """Title and description of the page for a package."""
    recipe = package.recipe
    base, ratio = recipe.base.repo_id or "the base", recipe.cost["flops_ratio"]
    frozen = recipe.frozen.describe(recipe.num_layers)
    return (
        f"{name} beside its base",
        f"In some layers, ShortV skips the computation for the tokens of a picture: {frozen}. A prompt with a picture "
        f"then takes {ratio:.0%} of the FLOPs of {base}. Ask both the same, and see what is gained and what is lost.",
    )
