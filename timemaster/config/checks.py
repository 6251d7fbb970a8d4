"""Which settings are allowed: the rule of each field, and rules that concern several settings.

A refusal is an InputError with the key, the value, what is allowed and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from timemaster.config.keys import all_settings, get
from timemaster.config.settings import Config, world_size
from timemaster.types import InputError


def check_settings(cfg: Config, mode: str) -> None:
    """Check the settings for mode "grpo", "sft" or "eval"; `resolve` calls this. Raises InputError."""
    for item in all_settings(cfg):
        if not all(math.isfinite(number) for number in _floats(item.value)):
            raise InputError(f"{item.key}={item.value!r}: must be a finite number.")
        if item.rule:
            _require(cfg, item.key, item.rule.holds(item.value), item.rule.describe(), item.rule.advice)
    _check_data(cfg, mode)
    _check_judge(cfg)
    _require(cfg, "model.path", bool(cfg.model.path), "a model's folder or hub id", "Set MODEL_PATH or model.path.")
    named = cfg.trainer.default_local_dir or (cfg.trainer.project_name and cfg.trainer.experiment_name)
    _require(cfg, "trainer.experiment_name", bool(named), "set, and trainer.project_name, too", "They name the folder.")
    advice = "Greedy answers to one row are all the same: set eval.temperature too, such as 0.7."
    _require(cfg, "eval.n", cfg.eval.n == 1 or cfg.eval.temperature > 0, "1 with eval.temperature=0", advice)
    if mode == "sft":
        advice = "Evaluate with `timemaster evaluate`."
        _require(cfg, "trainer.val_only", not cfg.trainer.val_only, "false here", advice)
        ok = cfg.data.train_batch_size >= world_size(cfg)
        _require(cfg, "data.train_batch_size", ok, f"at least the {world_size(cfg)} trainer ranks", "")
    else:
        _check_rollout(cfg)
    if mode == "grpo":
        _check_grpo(cfg)
    if mode in ("sft", "grpo"):
        longest = cfg.data.max_prompt_length + cfg.data.max_response_length
        advice = "It is data.max_prompt_length + data.max_response_length: one sequence must fit a micro-batch."
        ok = cfg.actor.ppo_max_token_len_per_gpu >= longest
        _require(cfg, "actor.ppo_max_token_len_per_gpu", ok, f"at least {longest}", advice)


def one_each(given: list[str], count: int) -> list[str]:
    """One value for each of `count` models: `given` itself, or its only value repeated."""
    return given * count if len(given) == 1 else given


def _require(cfg: Config, key: str, ok: bool, allowed: str, advice: str) -> None:
    if not ok:
        raise InputError(f"{key}={get(cfg, key)!r}: must be {allowed}. {advice}")


def _floats(value: Any) -> Iterator[float]:
    """The floats of a value, including those in a list or dict."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    yield from (item for item in items if isinstance(item, float))


def _check_data(cfg: Config, mode: str) -> None:
    low, high = cfg.data.min_pixels, cfg.data.max_pixels
    _require(cfg, "data.max_pixels", high >= low, f"at least data.min_pixels={low}", "")
    ok = cfg.data.modality == "image" or cfg.eval.blank_images == "false"
    _require(cfg, "eval.blank_images", ok, "false with data.modality=numeric", "There is no image to blank.")
    ok = cfg.data.modality == "image" or not cfg.judge.include_image
    _require(cfg, "judge.include_image", ok, "false with data.modality=numeric", "There is no image to send.")
    files = "data.test_files" if mode == "eval" else "data.train_files"
    _require(cfg, files, bool(get(cfg, files)), "set", "Make one with example/data_preprocess/.")


def _check_judge(cfg: Config) -> None:
    judge, count = cfg.judge, len(cfg.judge.model)
    allowed = "one for all of judge.model, or one each"
    _require(cfg, "judge.base_url", len(judge.base_url) in (1, count), allowed, "")
    _require(cfg, "judge.api_key_env", len(judge.api_key_env) in (1, count), allowed, "")
    judges = set(zip(one_each(judge.base_url, count), judge.model, strict=True))
    advice = "Equal requests are sent once: the same model twice at one address is one judge."
    _require(cfg, "judge.model", len(judges) == count, "different models, or at different addresses", advice)


def _check_rollout(cfg: Config) -> None:
    ok = cfg.rollout.max_num_batched_tokens >= cfg.rollout.max_num_seqs
    _require(cfg, "rollout.max_num_batched_tokens", ok, f"at least rollout.max_num_seqs={cfg.rollout.max_num_seqs}", "")
    if cfg.rollout.placement == "separate":
        ok = cfg.rollout.num_engines > 0
        _require(cfg, "rollout.num_engines", ok, "set with rollout.placement=separate", "Each takes its own GPUs.")
    if not cfg.reward.path:
        advice = "Name the task (data.recipes=recipes.ctu) or a reward of your own (reward.path=my_reward.py:score)."
        _require(cfg, "data.recipes", bool(cfg.data.recipes), "set unless reward.path is", advice)


def _check_grpo(cfg: Config) -> None:
    batch, mini, n = cfg.data.train_batch_size, cfg.actor.ppo_mini_batch_size, cfg.rollout.n
    advice = f"data.train_batch_size={batch} prompts must split into equal mini-batches; try {_divisor(batch, mini)}."
    _require(cfg, "actor.ppo_mini_batch_size", batch % mini == 0, "a divisor of data.train_batch_size", advice)
    _require(cfg, "rollout.n", n >= 2, "at least 2", "A group of one has no advantage.")
    ranks = world_size(cfg)
    advice = f"A mini-batch has {mini} x {n} = {mini * n} sequences for {ranks} trainer ranks; every rank needs one."
    _require(cfg, "actor.ppo_mini_batch_size", mini * n >= ranks, "large enough for all ranks", advice)
    if cfg.trainer.test_freq > 0 or cfg.trainer.val_before_train:
        advice = "Set it, or set trainer.test_freq=0 and trainer.val_before_train=false."
        _require(cfg, "data.val_files", bool(cfg.data.val_files), "set when validation is on", advice)


def _divisor(number: int, near: int) -> int:
    """The divisor of `number` that is closest to `near`; if two are equally close, the larger one."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - near), -d))
