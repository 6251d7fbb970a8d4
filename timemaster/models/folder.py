"""Where a model's folder lies, for a hub id too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from timemaster.config import ModelConfig
from timemaster.types import InputError

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


def load_model_config(path: str, revision: str = "main") -> dict[str, Any]:
    """The config.json of a Qwen2.5-VL folder or hub id. InputError for anything else. Does not import torch."""
    from transformers.utils import cached_file

    if not Path(path).is_dir():
        _check_hub_id(path)
    try:
        config = json.loads(Path(str(cached_file(path, "config.json", revision=revision))).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "Give a local Qwen2.5-VL folder (with config.json) or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct."
        raise InputError(f"model.path={path!r} cannot be read as a model: {error}. {hint}") from error
    if config.get("model_type") != "qwen2_5_vl":
        kind = config.get("model_type", "unknown")
        raise InputError(f"model.path={path!r} is a {kind} model: only qwen2_5_vl (Qwen2.5-VL) is supported.")
    return config


def _check_hub_id(path: str) -> None:
    """InputError when `path`, which is no folder, is meant to be one: then the network is not asked."""
    home = os.path.expanduser(path)
    if home != path and Path(home).is_dir():
        raise InputError(f"model.path={path!r}: write the folder out, {home!r}; the shell has not.")
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path.split("/")[0]).is_dir():
        raise InputError(
            f"model.path={path!r}: no such folder, and no hub id such as Qwen/Qwen2.5-VL-3B-Instruct. Looked from "
            f"{Path.cwd()}. To fetch a model into it: hf download OWNER/NAME --local-dir {path}"
        )
