"""From the settings as they were given to those that a run uses."""

from __future__ import annotations

import copy
import os
from typing import Literal

from timemaster.config.checks import check_settings, one_each
from timemaster.config.settings import Config, run_dir

Mode = Literal["grpo", "sft", "eval"]


def resolve(given: Config, mode: Mode) -> Config:
    """A checked copy of `given` for a run, with everything filled in that follows from other settings.

    - Empty names of files, tasks, judges and checkpoints are removed.
    - Paths are absolute, since the processes of a Ray cluster start in other folders.
    - trainer.default_local_dir is set; judge.base_url and judge.api_key_env have one item for each of judge.model.

    `given` is not changed. Raises InputError with the key, the value, what is allowed and what to do.
    """
    cfg = copy.deepcopy(given)
    data, judge = cfg.data, cfg.judge
    data.recipes, judge.model = _not_empty(data.recipes), _not_empty(judge.model)
    data.train_files, data.val_files = _not_empty(data.train_files), _not_empty(data.val_files)
    data.test_files, cfg.eval.checkpoint = _not_empty(data.test_files), _not_empty(cfg.eval.checkpoint)
    cfg.eval.blank_images = cfg.eval.blank_images.lower()  # Hydra also accepts True and TRUE
    check_settings(cfg, mode)
    data.train_files, data.val_files = _absolute(data.train_files), _absolute(data.val_files)
    data.test_files = _absolute(data.test_files)
    judge.base_url = one_each(judge.base_url, len(judge.model))
    judge.api_key_env = one_each(judge.api_key_env, len(judge.model))
    judge.cache = os.path.abspath(judge.cache) if judge.cache else ""
    cfg.trainer.default_local_dir = os.path.abspath(run_dir(cfg))
    if os.path.isdir(cfg.model.path):
        cfg.model.path = os.path.abspath(cfg.model.path)
    file, _, function = cfg.reward.path.rpartition(":")
    if file.endswith(".py"):
        cfg.reward.path = f"{os.path.abspath(file)}:{function}"
    return cfg


def _not_empty(names: list[str]) -> list[str]:
    return [name for name in names if name]


def _absolute(paths: list[str]) -> list[str]:
    return [os.path.abspath(path) for path in paths]
