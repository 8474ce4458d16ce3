"""`optimum-cli export shortv`: what `shortv-export package` does, for who knows optimum's command line.

`optimum-cli` imports every module of the namespace `optimum.commands.register` at its start, so this one is light.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import ClassVar

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class ShortVExportCommand(BaseOptimumCLICommand):
    """Parses the options and hands them on; the exit status is that of `shortv-export`."""

    COMMAND = CommandInfo(name="shortv", help="Freeze the visual tokens in the layers that do not need them.")
    OPTIONS: ClassVar = {
        "revision": "Branch, tag or commit of the base.",
        "scores": "Scores from `shortv-export score`.",
        "preset": "'paper': the paper's own list for this base; needs no scoring.",
        "frozen-layers": "Freeze exactly these layers, such as 31,29,30.",
        "num-frozen": "Freeze this many layers. Default: 60 %% of them.",
        "flops-ratio": "Freeze as few layers as bring the prefill FLOPs down to this share of the base's.",
        "max-kl": "Freeze as many layers as keep KL(base || frozen), measured on held-out samples, at most this.",
        "method": "'lc', or for comparison 'cosine' (of the hidden states) or 'random'.",
        "data": "For --max-kl: 'paper', a Hub data set, or a folder with images or videos and metadata.jsonl.",
        "num-samples": "Samples to measure on.",
        "seed": "Of every draw: held-out samples, --method random.",
        "dtype": "Precision of the measurement: auto, float32, bfloat16 or float16.",
        "device-map": "Placement by accelerate, such as 'auto' or 'cuda'.",
        "max-memory": "What --device-map (then 'auto') may use, such as 0=10GiB,cpu=20GiB.",
        "license": "Licence of the result, if the base's card names none.",
        "weights": "'copy', or 'reference': no weights; the base's are loaded from its Hub repository.",
    }

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", metavar="BASE", required=True, help="Base model: a Hub id or a folder.")
        parser.add_argument("output", metavar="OUT", help="Folder of the package; must not exist or be empty.")
        for option, text in ShortVExportCommand.OPTIONS.items():
            parser.add_argument(f"--{option}", help=text)

    def run(self) -> None:
        from shortv_export.cli import main

        values = {option: getattr(self.args, option.replace("-", "_")) for option in self.OPTIONS}
        options = [f"--{option}={value}" for option, value in values.items() if value is not None]
        sys.argv[1:] = ["package", *options, "--", self.args.model, self.args.output]
        main()


REGISTER_COMMANDS = [(ShortVExportCommand, ExportCommand)]
