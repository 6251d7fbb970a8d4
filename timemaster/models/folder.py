"""The folder and the config.json of a model, given by its path or its hub id."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from timemaster.config import ModelConfig
from timemaster.models.family import default_family, family_of
from timemaster.types import InputError

FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")


def pinned(model: ModelConfig) -> ModelConfig:
    """The settings with a hub id's revision as a commit, for all processes of a run: a branch may change meanwhile."""
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    if Path(model.path).is_dir():
        return model
    config = str(cached_file(model.path, "config.json", revision=model.revision))
    return replace(model, revision=extract_commit_hash(config, None) or model.revision)


def local_folder(path: str, revision: str) -> str:
    """`path` if it is a folder, else the local copy of a hub id at a commit, downloaded if this node lacks it."""
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download

    return snapshot_download(path, revision=revision, allow_patterns=list(FILES))


def load_model_config(path: str, revision: str = "main") -> dict[str, Any]:
    """The config.json of a folder or hub id. InputError unless it is of a supported family. Does not import torch."""
    from transformers.utils import cached_file

    if not Path(path).is_dir():
        _check_hub_id(path)
    try:
        config = json.loads(Path(str(cached_file(path, "config.json", revision=revision))).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = f"Give a local folder (with config.json) or a hub id such as {default_family().published}."
        raise InputError(f"model.path={path!r} cannot be read as a model: {error}. {hint}") from error
    try:
        family_of(config)
    except InputError as error:
        raise InputError(f"model.path={path!r}: {error}") from error
    return config


def _check_hub_id(path: str) -> None:
    """InputError when `path` is not a folder but looks like one. The hub gets no request then."""
    home = os.path.expanduser(path)
    if home != path and Path(home).is_dir():
        raise InputError(f"model.path={path!r}: the shell did not expand ~. Write {home!r}.")
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path.split("/")[0]).is_dir():
        raise InputError(
            f"model.path={path!r}: there is no such folder, relative to {Path.cwd()}, and this is not a hub id such as "
            f"{default_family().published}. To download a model into the folder: hf download OWNER/NAME --local-dir "
            f"{path}"
        )
