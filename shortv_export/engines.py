"""The families that serving engines have a model of: for the plugins and for the cards. It imports nothing."""

VLLM_RELEASES = ("0.31", "0.32")
"""The releases of vLLM that the tests ran with."""

VLLM_FAMILIES = {
    "llava": "Llava",
    "llava_next": "LlavaNext",
    "llava_next_video": "LlavaNextVideo",
    "llava_onevision": "LlavaOnevision",
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
    "internvl": "InternVL",
    "smolvlm": "SmolVLM",
    "idefics3": "Idefics3",
    "gemma3": "Gemma3",
    "mistral3": "Mistral3",
    "paligemma": "PaliGemma",
    "glm4v": "Glm4v",
    "glm4v_moe": "Glm4vMoe",
    "cohere2_vision": "Cohere2Vision",
    "aria": "Aria",
    "llama4": "Llama4",
    "paddleocr_vl": "PaddleOCRVL",
    "exaone4_5": "Exaone4_5_",
    "lfm2_vl": "Lfm2Vl",
}
"""Model type of the base -> how the names of its classes begin, in transformers and in vLLM."""

VLLM_MISSING = (
    *("aya_vision", "glm46v", "video_llava", "vipllava", "idefics2"),
    *("video_llama_3", "lighton_ocr", "deepseek_vl", "janus"),
    *("ernie4_5_vl_moe", "molmo2"),  # vLLM reads the repositories from before transformers had these models
    "gemma4",  # its layers scale their output in vLLM, visual rows included, which frozen layers must leave alone
)
"""Model types that this tool converts and vLLM cannot serve. Their packages are refused."""
