"""Where a model's folder lies, for a hub id too."""

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
