"""ShortV models in vLLM: a plugin that leaves out the computation which a package freezes.

vLLM finds `register` by the entry point `vllm.general_plugins` and runs it in every process. Nothing else of this tool
is needed for serving: these files import torch, transformers and vllm only.

vLLM flattens the scheduled tokens of all requests into rows. In a frozen layer, the plugin lets four modules work on
the rows of text tokens only, and leaves everything else to vLLM's own model:

| module | with visual rows in the step |
|---|---|
| `qkv_proj` | queries of the text rows; keys and values of all rows |
| the attention kernel | the text rows attend; keys and values of all rows go to the paged cache, as always |
| `o_proj` | the text rows; zeros elsewhere |
| feed-forward network or experts | the text rows; zeros elsewhere |

Zeros are what a decoder layer adds to visual rows, so these leave the layer as they entered it.

- `families.py`: which models; `configs.py`, `models.py`: the classes that vLLM is told of
- `plan.py`: which rows are text in a step; `attention.py`: the metadata of those rows; `rows.py`: the modules
- `model.py`: the mix-in that finds the visual rows and makes the plan
- `checks.py`: what is refused at start; `weights.py`: packages without weights; `counter.py`: how much was skipped
"""


def register() -> None:
    """Tells vLLM of the configurations and model classes. It may run more than once per process."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    from .checks import checked
    from .configs import CONFIGS, REFUSED
    from .families import FAMILIES

    for model_type, config in REFUSED.items():
        AutoConfig.register(f"shortv_{model_type}", config, exist_ok=True)
    known = ModelRegistry.get_supported_archs()
    for model_type, config in CONFIGS.items():
        stock = f"{FAMILIES[model_type]}ForConditionalGeneration"
        ours = f"ShortV{stock}"
        if stock not in known:
            continue
        AutoConfig.register(f"shortv_{model_type}", config, exist_ok=True)
        ModelRegistry.register_model(ours, f"{__name__}.models:{ours}")
        # vLLM calls these when it has read the options, before it starts processes.
        MODELS_CONFIG_MAP[ours] = checked(MODELS_CONFIG_MAP.get(stock, VerifyAndUpdateConfig))
