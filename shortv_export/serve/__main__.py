"""``python -m shortv_export.serve PACKAGE [PACKAGE ...] [OPTIONS]``: `transformers serve` for packages.

Names of packages come first; the options are those of `transformers serve`. Requests name a package as it was named
here. A package's code runs, so it is checked first: it must be this release's, and the files those of its recipe.
"""

from __future__ import annotations

import logging
import sys
from itertools import takewhile

from .. import terminal
from ..errors import ShortVError, UsageError

_USAGE = "python -m shortv_export.serve PACKAGE [PACKAGE ...] [options of `transformers serve`]"


def main() -> None:
    """Runs the server. Its exit status is that of `terminal.run`."""
    logger = logging.getLogger("shortv_export")
    logger.addHandler(terminal.LogPrinter(str))
    logger.setLevel(logging.INFO)
    sys.exit(terminal.run(_run, debug=False))


def _run() -> None:
    arguments = sys.argv[1:]
    names = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = arguments[len(names) :]
    if not names or {"-h", "--help"} & {*options}:
        terminal.say(f"Usage: {_USAGE}", "", "Without a package, see `transformers serve --help`.")
        if not options:
            raise UsageError(f"name a package to serve: {_USAGE}.")
        return
    try:
        import transformers.cli.serve
        from transformers.cli.serving import model_manager
        from transformers.utils.import_utils import is_serve_available
    except ImportError as error:
        raise ShortVError(f"this needs `transformers serve` of transformers 5.24 or newer: {error}") from error
    if not is_serve_available():
        raise ShortVError("the server's packages are missing: pip install 'transformers[serving]'")
    import typer

    from ..packaging import Package, require_intact
    from .manager import manager_of

    packages = {name: Package.open(name) for name in names}
    for name, package in packages.items():
        require_intact(package, "cannot be served", weights=False)
        recipe = package.recipe
        frozen, ratio = recipe.frozen.describe(recipe.num_layers), recipe.cost["flops_ratio"]
        terminal.say(f"{name}: {frozen}, {ratio:.0%} of the base's FLOPs for a prompt with an image")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(transformers.cli.serve.Serve)
    model_manager.ModelManager = manager_of(packages)  # type: ignore[misc]
    # A server with one package loads it now, and requests need not name it.
    preloaded = names if len(names) == 1 else []
    app(args=[*preloaded, *options], standalone_mode=False)


if __name__ == "__main__":
    main()
