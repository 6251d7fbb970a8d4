"""A model's folder: where it lies, for a hub id too, and which weights it must have."""

from __future__ import annotations

from pathlib import Path

from timemaster.config import ModelConfig

FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")


def pin(model: ModelConfig) -> None:
    """Resolve a hub id to a commit, once for all processes of a run: a branch may move while they start."""
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    if not Path(model.path).is_dir():
        config = str(cached_file(model.path, "config.json", revision=model.revision))
        model.revision = extract_commit_hash(config, None) or model.revision


def local_folder(path: str, revision: str) -> str:
    """The folder itself, or the one of a hub id at a commit, fetched when this node does not have it yet."""
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download

    return snapshot_download(path, revision=revision, allow_patterns=list(FILES))


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
