"""The names of the files in a base and in a package."""

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
WEIGHT_FILES = (".safetensors", ".safetensors.index.json")
"""How the names of weight files and of their index end."""

RECIPE_NAME = "shortv.json"
FIGURE_NAME = "layer_contribution.png"
EVALUATION_NAME = "evaluation.json"
SWEEP_NAME = "frozen_layers_sweep.png"
RESULTS_FOLDER = ".eval_results"

NOT_OURS = {".gitattributes", ".cache", ".git"}
"""What git, the Hub and `hf download --local-dir` put beside a package's files."""
