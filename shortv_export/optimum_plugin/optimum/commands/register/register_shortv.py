"""`optimum-cli export shortv`: `shortv-export package` for those who know optimum's command line.

`optimum-cli` imports every module of the namespace `optimum.commands.register` at its start, so this one is light.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class ShortVExportCommand(BaseOptimumCLICommand):
    """Takes the options of `shortv-export package` and hands them on; the exit status is that of `shortv-export`."""

    COMMAND = CommandInfo(name="shortv", help="Freeze the visual tokens in the layers that do not need them.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        from shortv_export.options import options_of, with_flags
        from shortv_export.pipeline import package

        names = {option.name for option in options_of(package)}
        parser.add_argument("-m", "--model", metavar="BASE", required=True, help="Base model: a Hub id or a folder.")
        parser.add_argument("output", metavar="OUT", help="Folder of the package; must not exist or be empty.")
        for option in options_of(package):
            if not option.positional and option.name != "recipe":
                text = with_flags(option.help.text, names).replace("%", "%%")  # argparse fills in percent signs
                parser.add_argument(option.flag, dest=option.name, help=text)

    def run(self) -> None:
        from shortv_export.cli import main
        from shortv_export.options import options_of
        from shortv_export.pipeline import package

        typed = {option.flag: getattr(self.args, option.name, None) for option in options_of(package)}
        options = [f"{flag}={value}" for flag, value in typed.items() if value is not None]
        sys.argv[1:] = ["package", *options, "--", self.args.model, self.args.output]
        main()


REGISTER_COMMANDS = [(ShortVExportCommand, ExportCommand)]
