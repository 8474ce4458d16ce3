"""lmms-eval's command line, with an exit status that tells failure.

``python -m shortv_export.lmms --model shortv --model_args pretrained=PACKAGE ...`` takes what ``lmms-eval`` takes.
After an error it exits with status 1, where lmms-eval prints the error and exits with 0.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from ..errors import ShortVError, one_line


def main() -> None:
    """Runs lmms-eval: status 0 done, 1 failed, 2 wrong usage."""
    try:
        from lmms_eval import __main__ as command_line
    except ImportError as error:
        sys.exit(f"error: lmms-eval cannot be loaded ({one_line(error)}); pip install 'shortv-export[lmms]'.")
    evaluate = command_line.cli_evaluate_single

    def strict(args: Any) -> Any:
        # lmms-eval goes on after an exception, but not after SystemExit.
        try:
            if not args.tasks:
                raise ShortVError("there is nothing to evaluate; name tasks with --tasks.")
            return evaluate(args)
        except Exception as error:
            if not isinstance(error, ShortVError):
                traceback.print_exc()
            sys.exit(f"error: {one_line(error)}")

    command_line.cli_evaluate_single = strict
    command_line.cli_evaluate()


if __name__ == "__main__":
    main()
