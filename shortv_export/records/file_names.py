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
SHARD = re.compile(r"(?!adapter_)[\w-][\w.-]*\.safetensors", re.ASCII)
"""The name of a weight file. For `fullmatch`, as the patterns below."""
WEIGHTS = ("copy", "reference")
"""Where a package's weights are: copied into it, or only in the base's repository, from which they are loaded."""

TEMPLATES_FOLDER = "additional_chat_templates"
"""The folder of named chat templates, the only folder of a base that a package takes over."""
CARRIED = re.compile(
    # What transformers' processors, tokenizers and `generate` read, but for code.
    r"(?:preprocessor_config|processor_config|video_preprocessor_config|generation_config|chat_template"
    r"|tokenizer|tokenizer\.[\d.]*\d|tokenizer_config|special_tokens_map|added_tokens|vocab|tekken)\.json"
    rf"|chat_template\.jinja|{TEMPLATES_FOLDER}/[\w-][\w.-]*\.jinja"
    r"|(?:tokenizer|tiktoken|spiece|spm|sentencepiece|sentencepiece\.bpe)\.model|(?:vocab|merges)\.txt"
    # What licences require.
    r"|(?i:(?:LICENSE|LICENCE|NOTICE|COPYING|USE_POLICY)[\w-]*(?:\.(?:txt|md))?)",
    re.ASCII,
)
"""The small files of a base that a package takes over."""

RECIPE_NAME = "shortv.json"
FIGURE_NAME = "layer_contribution.png"
EVALUATION_NAME = "evaluation.json"
SWEEP_NAME = "frozen_layers_sweep.png"
RESULTS_FOLDER = ".eval_results"

FOREIGN_FILES = {".gitattributes", ".cache", ".git"}
"""Entries that git, the Hub and `hf download --local-dir` add to a package's folder."""
