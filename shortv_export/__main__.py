"""``python -m shortv_export``: the command line, for launchers such as ``accelerate launch -m``."""

from .cli import main

main()
