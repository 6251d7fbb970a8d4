"""Which settings are allowed. `check` looks at each field and across fields, before anything is started.

A refusal is an InputError with the key, the value, what is allowed and what to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from timemaster.config import Config, run_dir, world_size
from timemaster.types import InputError

CHOICES = {
    "data.on_bad_row": ("raise", "skip"),
    "data.modality": ("image", "numeric"),
    "eval.blank_images": (True, False, "both"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.head_dtype": ("auto", "float32", "model"),
    "model.attn_implementation": ("auto", "sdpa", "eager", "flash_attention_2"),
    "algorithm.adv_estimator": ("grpo",),
    "actor.policy_loss": ("ppo_clip",),
    "actor.kl_loss_type": ("low_var_kl",),
    "actor.optim.lr_scheduler_type": ("constant", "cosine"),
    "rollout.name": ("auto", "vllm", "hf"),
    "rollout.placement": ("colocated", "separate"),
    "rollout.sleep_level": (1, 2),
    "reward.on_error": ("raise", "zero"),
    "reward.on_unknown": ("rollout", "group"),
    "trainer.device": ("auto", "cpu", "cuda"),
    "trainer.resume_mode": ("auto", "disable"),
}


def as_list(value: Any, key: str) -> list[str]:
    """A path or a list of paths as a list of strings. InputError for anything else."""
    items = [str(item) if isinstance(item, int) else item for item in (value if isinstance(value, list) else [value])]
    if not all(isinstance(item, str) for item in items):
        raise InputError(f"{key}={value!r}: give one path, or a list such as '{key}=[a.parquet,b.parquet]'")
    return [item for item in items if item]


def get(cfg: Any, key: str) -> Any:
    """The value at a dotted key, e.g. get(cfg, "actor.optim.lr")."""
    for name in key.split("."):
        cfg = getattr(cfg, name)
    return cfg


def _require(cfg: Config, key: str, ok: bool, allowed: str, advice: str) -> None:
    if not ok:
        raise InputError(f"{key}={get(cfg, key)!r}: must be {allowed}. {advice}")


def check(cfg: Config, mode: str) -> None:
    """Check a configuration for mode "grpo", "sft" or "eval". Raises InputError."""
    for key, allowed in CHOICES.items():
        _require(cfg, key, get(cfg, key) in allowed, f"one of {', '.join(map(str, allowed))}", "")
    for key, value in _numbers(cfg):
        if not math.isfinite(value):
            raise InputError(f"{key}={value!r}: must be a finite number.")
    for key in POSITIVE:
        _require(cfg, key, get(cfg, key) > 0, "greater than 0", "")
    for key in NOT_NEGATIVE:
        _require(cfg, key, get(cfg, key) >= 0, "0 or greater", "")
    for name in ("recipes", "train_files", "val_files", "test_files"):
        setattr(cfg.data, name, as_list(getattr(cfg.data, name), f"data.{name}"))
    _check_judge(cfg)
    ok = cfg.data.numeric.decimals is None or cfg.data.numeric.decimals >= 0
    _require(cfg, "data.numeric.decimals", ok, "0 or greater, or null for the task's", "")
    ok = _is_channel_form(cfg.data.numeric.channel)
    _require(cfg, "data.numeric.channel", ok, "a text with {values}, and {name} if you like, and no other braces", "")
    ok = cfg.data.modality == "image" or cfg.eval.blank_images is False
    _require(cfg, "eval.blank_images", ok, "false with data.modality=numeric", "There is no image to blank.")
    ok = bool(cfg.data.numeric.separator)
    _require(cfg, "data.numeric.separator", ok, "set", "Without it readings run together.")
    named = cfg.trainer.default_local_dir or (cfg.trainer.project_name and cfg.trainer.experiment_name)
    _require(cfg, "trainer.experiment_name", bool(named), "set, and trainer.project_name, too", "They name the folder.")
    _make_absolute(cfg)
    _require(cfg, "model.path", bool(cfg.model.path), "a Qwen2.5-VL folder or hub id", "Set MODEL_PATH or model.path.")
    known = {"console", "tensorboard", "wandb"}
    _require(cfg, "trainer.logger", set(cfg.trainer.logger) <= known, f"a list out of {', '.join(sorted(known))}", "")
    lo, hi = cfg.data.min_pixels, cfg.data.max_pixels
    _require(cfg, "data.max_pixels", hi >= lo, f"at least data.min_pixels={lo}", "")
    files = "test_files" if mode == "eval" else "train_files"
    _require(cfg, f"data.{files}", bool(get(cfg, f"data.{files}")), "set", "Make one with example/data_preprocess/.")
    o = cfg.actor.optim
    _require(cfg, "actor.optim.betas", len(o.betas) == 2 and all(0 <= b < 1 for b in o.betas), "two of 0 <= b < 1", "")
    _require(cfg, "actor.optim.min_lr_ratio", 0 <= o.min_lr_ratio <= 1, "between 0 and 1", "")
    _require(cfg, "eval.top_k", cfg.eval.top_k == -1 or cfg.eval.top_k > 0, "greater than 0, or -1 for all tokens", "")
    _require(cfg, "eval.top_p", 0 < cfg.eval.top_p <= 1, "greater than 0, at most 1", "")
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


def _numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number among the settings with its key, those in lists and dicts included."""
    for item in fields(node):
        key, value = prefix + item.name, getattr(node, item.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{key}.")
        several = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        yield from ((key, one) for one in several if isinstance(one, float))


def _is_channel_form(text: str) -> bool:
    try:
        return "0.1,0.2" in text.format(name="x", values="0.1,0.2")
    except (AttributeError, LookupError, TypeError, ValueError):  # what `format` raises for braces it cannot fill
        return False


def _make_absolute(cfg: Config) -> None:
    """Paths as seen from here: processes of a Ray cluster start in other folders."""
    for name in ("train_files", "val_files", "test_files"):
        setattr(cfg.data, name, [os.path.abspath(path) for path in getattr(cfg.data, name)])
    cfg.trainer.default_local_dir = os.path.abspath(run_dir(cfg))
    cfg.judge.cache = os.path.abspath(cfg.judge.cache) if cfg.judge.cache else ""
    if os.path.isdir(cfg.model.path):
        cfg.model.path = os.path.abspath(cfg.model.path)
    file, _, function = cfg.reward.path.rpartition(":")
    if file.endswith(".py"):
        cfg.reward.path = f"{os.path.abspath(file)}:{function}"


POSITIVE = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.min_pixels",
    "actor.ppo_mini_batch_size",
    "actor.ppo_epochs",
    "actor.ppo_max_token_len_per_gpu",
    "actor.optim.lr",
    "actor.grad_clip",
    "rollout.n",
    "rollout.temperature",
    "rollout.tensor_model_parallel_size",
    "rollout.cpu_kv_cache_gib",
    "rollout.max_num_seqs",
    "rollout.max_num_batched_tokens",
    "eval.n",
    "reward.num_threads",
    "judge.max_tokens",
    "judge.concurrency",
    "judge.timeout",
    "trainer.total_epochs",
    "trainer.max_ckpt_to_keep",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
)
NOT_NEGATIVE = (
    "actor.clip_ratio_low",
    "actor.clip_ratio_high",
    "actor.kl_loss_coef",
    "actor.optim.lr_warmup_steps",
    "actor.optim.weight_decay",
    "rollout.num_engines",
    "rollout.limit_logprob_diff",
    "eval.temperature",
    "reward.timeout",
    "judge.temperature",
    "judge.max_retries",
    "judge.max_calls",
    "judge.max_cost",
    "judge.price_in",
    "judge.price_out",
    "trainer.total_training_steps",
    "trainer.test_freq",
    "trainer.save_freq",
    "trainer.stop_seconds",
    "trainer.rollouts_to_log",
)


def _check_judge(cfg: Config) -> None:
    """Also makes lists of model, base_url and api_key_env, one each."""
    j = cfg.judge
    j.model = as_list(j.model, "judge.model")
    for name in ("base_url", "api_key_env"):
        given = getattr(j, name)
        each = [str(one) for one in (given if isinstance(given, list) else [given])]
        ok = len(each) in (1, len(j.model))
        _require(cfg, f"judge.{name}", ok, "one for all of judge.model, or one each", "")
        setattr(j, name, each * len(j.model) if len(each) == 1 else each)
    pairs = list(zip(j.base_url, j.model, strict=True))
    advice = "Equal requests are sent once: the same model twice at one address is one judge."
    _require(cfg, "judge.model", len(set(pairs)) == len(pairs), "different models, or at different addresses", advice)
    ok = not j.include_image or cfg.data.modality == "image"
    _require(cfg, "judge.include_image", ok, "false with data.modality=numeric", "There is no image to send.")


def _check_rollout(cfg: Config) -> None:
    share = cfg.rollout.gpu_memory_utilization
    _require(cfg, "rollout.gpu_memory_utilization", 0 < share < 1, "between 0 and 1", "0.5 to 0.9 is usual.")
    ok = cfg.rollout.max_num_batched_tokens >= cfg.rollout.max_num_seqs
    _require(cfg, "rollout.max_num_batched_tokens", ok, f"at least rollout.max_num_seqs={cfg.rollout.max_num_seqs}", "")
    cfg.eval.checkpoint = as_list(cfg.eval.checkpoint, "eval.checkpoint")
    names = cfg.eval.checkpoint
    ok = bool(names) and all(name in ("latest", "base") or (name.isascii() and name.isdigit()) for name in names)
    _require(cfg, "eval.checkpoint", ok, "latest, base, a step number, or a list of these", "")
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
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - near), -d))
