"""Serves ShortV models in vLLM, as a plugin that leaves out the computation which a package freezes."""


def register() -> None:
    """Tells vLLM of the configurations and model classes.

    vLLM finds this function by the entry point `vllm.general_plugins` and runs it in every process, perhaps twice.
    Nothing else of this tool is needed for serving: this room and `engines` import torch, transformers and vllm only.
    """
    import vllm
    from transformers import AutoConfig

    from ..engines import VLLM_FAMILIES, VLLM_RELEASES
    from .configs import CONFIGS, REFUSED, refused_config

    for model_type, config in REFUSED.items():
        AutoConfig.register(f"shortv_{model_type}", config, exist_ok=True)
    if ".".join(vllm.__version__.split(".")[:2]) not in VLLM_RELEASES:
        # Nothing else is imported: its modules may not be where they are in the tested releases.
        reason = f"ShortV was not tried with vLLM {vllm.__version__}; install one of {', '.join(VLLM_RELEASES)}."
        for model_type in CONFIGS:
            AutoConfig.register(f"shortv_{model_type}", refused_config(model_type, reason), exist_ok=True)
        return

    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    from .checks import checked

    known = ModelRegistry.get_supported_archs()
    for model_type, config in CONFIGS.items():
        stock = f"{VLLM_FAMILIES[model_type]}ForConditionalGeneration"
        ours = f"ShortV{stock}"
        if stock not in known:
            continue
        AutoConfig.register(f"shortv_{model_type}", config, exist_ok=True)
        ModelRegistry.register_model(ours, f"{__name__}.models:{ours}")
        # vLLM calls these when it has read the options, before it starts processes.
        MODELS_CONFIG_MAP[ours] = checked(MODELS_CONFIG_MAP.get(stock, VerifyAndUpdateConfig))
