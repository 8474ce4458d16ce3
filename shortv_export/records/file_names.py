"""The names of repositories, and of files in bases and packages."""

import re

HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
"""The id of a repository on the Hub; some old repositories have no namespace. For `fullmatch`."""

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
WEIGHT_FILES = (".safetensors", ".safetensors.index.json")
"""Endings of the names of weight files and of their index."""
WEIGHTS = ("copy", "reference")
"""Where a package's weights are: copied into it, or only in the base's repository, from which they are loaded."""

RECIPE_NAME = "shortv.json"
FIGURE_NAME = "layer_contribution.png"
EVALUATION_NAME = "evaluation.json"
SWEEP_NAME = "frozen_layers_sweep.png"
RESULTS_FOLDER = ".eval_results"

FOREIGN_FILES = {".gitattributes", ".cache", ".git"}
"""Entries that git, the Hub and `hf download --local-dir` add to a package's folder."""
