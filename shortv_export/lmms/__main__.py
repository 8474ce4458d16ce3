"""lmms-eval's command line with the exit status 1 after an error, where lmms-eval itself exits with 0.

``python -m shortv_export.lmms --model shortv --model_args pretrained=PACKAGE ...`` takes the options of ``lmms-eval``.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from ..errors import ShortVError, one_line, shown


def main() -> None:
    """Runs lmms-eval: status 0 done, 1 failed, 2 wrong usage."""
    try:
        from lmms_eval import __main__ as command_line
    except ImportError as error:
        sys.exit(f"error: lmms-eval cannot be loaded ({one_line(error)}); install the extra lmms of shortv-export.")
    evaluate = command_line.cli_evaluate_single

    def strict(args: Any) -> Any:
        # lmms-eval catches exceptions, but not SystemExit.
        try:
            if not args.tasks:
                raise ShortVError("no tasks are given; name them with --tasks.")
            return evaluate(args)
        except Exception as error:
            if not isinstance(error, ShortVError):
                traceback.print_exc()
            sys.exit(f"error: {shown(one_line(error))}")

    command_line.cli_evaluate_single = strict
    command_line.cli_evaluate()


if __name__ == "__main__":
    main()
