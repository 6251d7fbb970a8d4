"""A model's folder: which weights it must have."""

from __future__ import annotations


def weight_names(path: str) -> set[str]:
    """The names of all weights of a Qwen2.5-VL folder or hub id, as transformers has them in memory.

    Read from its config alone. A tied head has no name of its own.
    """
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        names = {name for name, _ in Qwen2_5_VLForConditionalGeneration(config).named_parameters()}
    return names - {"lm_head.weight"} if config.tie_word_embeddings else names
