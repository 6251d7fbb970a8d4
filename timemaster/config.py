"""Every setting, its type, its default and its meaning. Nothing here imports anything heavy.

A default is written once, here. Names are verl's wherever the setting means the same. `check` looks across fields and
raises InputError with the key, the value, what is allowed and what to do; `sizes` derives the numbers that follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from timemaster.types import InputError

CHOICES = {
    "data.on_bad_row": ("raise", "skip"),
    "eval.blank_images": (True, False, "both"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attn_implementation": ("auto", "sdpa", "eager", "flash_attention_2"),
    "algorithm.adv_estimator": ("grpo",),
    "actor.policy_loss": ("ppo_clip",),
    "actor.kl_loss_type": ("low_var_kl",),
    "actor.optim.lr_scheduler_type": ("constant", "cosine"),
    "rollout.name": ("auto", "vllm", "hf"),
    "rollout.placement": ("colocated", "separate"),
    "reward.on_error": ("raise", "zero"),
    "trainer.device": ("auto", "cpu", "cuda"),
    "trainer.resume_mode": ("auto", "disable"),
}


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where rows come from and how they are cut into steps."""

    recipes: Any = ""  # import path(s) of the tasks, e.g. recipes.ctu; what labels, parses and rewards a row
    train_files: Any = ""  # parquet file(s) to train on
    val_files: Any = ""  # parquet file(s) watched while training; never the test split
    test_files: Any = ""  # parquet file(s) that evaluation answers
    train_batch_size: int = 64  # prompts per step (rows per step in SFT)
    max_prompt_length: int = 1024  # tokens, image tokens included; longer rows are dropped before training and listed
    max_response_length: int = 1024  # tokens sampled per row, over all turns
    min_pixels: int = 3136  # an image is scaled up to at least this area; 28 x 28 pixels become one token
    max_pixels: int = 1003520  # an image is scaled down to at most this area
    shuffle: bool = True
    seed: int = 1  # of the order of rows and of sampling
    on_bad_row: str = "raise"  # raise, or skip: count and list the rows that cannot be used


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which Qwen2.5-VL and how it runs in training."""

    path: str = ""  # local folder or hub id
    dtype: str = "auto"  # of the forward pass; auto: bfloat16 on GPU (masters stay float32), float32 on CPU
    attn_implementation: str = "auto"  # auto: flash_attention_2 where installed on GPU, else sdpa
    enable_gradient_checkpointing: bool = True
    freeze_vision_tower: bool = False  # True: neither trained nor sharded nor sent to the engines


@dataclass(kw_only=True, slots=True)
class AlgorithmConfig:
    """How rewards become advantages."""

    adv_estimator: str = "grpo"
    norm_adv_by_std_in_grpo: bool = True  # False: centre only (Dr.GRPO)


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-6
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    lr_warmup_steps: int = 0  # optimizer steps of linear warm-up
    lr_scheduler_type: str = "constant"
    min_lr_ratio: float = 0.0  # where cosine ends, as a share of lr


@dataclass(kw_only=True, slots=True)
class ActorConfig:
    """The update."""

    ppo_mini_batch_size: int = 32  # prompts per optimizer step; divides data.train_batch_size
    ppo_epochs: int = 1  # passes over each step's rollouts
    ppo_max_token_len_per_gpu: int = 16384  # tokens of one micro-batch on one rank
    policy_loss: str = "ppo_clip"
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    entropy_coeff: float = 0.0
    use_kl_loss: bool = False  # True loads the reference model
    kl_loss_coef: float = 0.01
    kl_loss_type: str = "low_var_kl"  # k3 of http://joschu.net/blog/kl-approx.html
    grad_clip: float = 1.0  # of the global norm
    use_remove_padding: bool = True  # pack sequences without padding; False pads rows to the longest
    offload: bool = False  # GPU, colocated: parameters and optimizer wait in host memory while engines run
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """The engines that sample."""

    name: str = "vllm"  # vllm; hf: transformers' generate; auto: vllm where it is installed, else hf
    n: int = 5  # answers per prompt, the group
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    placement: str = "colocated"  # colocated: engines and trainer take turns on the same GPUs; separate: own GPUs each
    num_engines: int = 0  # 0: as many as fit the GPUs (colocated), one on CPU; placement=separate needs a number
    tensor_model_parallel_size: int = 1
    gpu_memory_utilization: float = 0.6  # share of each GPU's memory the engine may take
    cpu_kv_cache_gib: float = 1.0  # on CPU, memory for the engine's cache
    max_num_seqs: int = 256  # sequences decoded at once by one engine
    max_num_batched_tokens: int = 8192  # tokens of one engine step
    enforce_eager: bool = False
    limit_logprob_diff: float = 0.0  # stop when mean |trainer - engine| log-prob of a step exceeds this; 0 never stops


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """How answers are scored."""

    path: str = ""  # own reward, "package.module:function" or "file.py:function"; "" takes the recipe's
    on_error: str = "raise"  # raise stops with the example's id; zero counts it and scores 0
    num_threads: int = 8  # scoring threads beside each engine


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation (EVAL=True in the scripts)."""

    checkpoint: Any = "latest"  # latest of the run, base (model.path), a step number, or a list of these
    blank_images: Any = False  # true: answer with every image blanked, the control that shows the model looks; or both
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = -1


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The run."""

    project_name: str = "TimeMaster"
    experiment_name: str = "grpo"
    default_local_dir: str = ""  # the run's folder; "" means checkpoints/<project_name>/<experiment_name>
    total_epochs: int = 1
    total_training_steps: int = 0  # stops earlier than total_epochs when set
    val_only: bool = False  # evaluate data.test_files, then exit
    val_before_train: bool = False
    test_freq: int = 0  # steps between looks at data.val_files; 0 never
    save_freq: int = 100  # steps between checkpoints; the last step is always saved
    max_ckpt_to_keep: int = 2
    resume_mode: str = "auto"  # auto continues from the latest checkpoint of the run; disable refuses a used folder
    n_gpus_per_node: int = 1  # trainer ranks per node (processes on CPU)
    nnodes: int = 1
    logger: list[str] = field(default_factory=lambda: ["console", "tensorboard"])  # console, tensorboard, wandb
    device: str = "auto"  # auto: cuda where a GPU is found
    ray_address: str = ""  # "" starts Ray on this machine; "auto" joins the cluster of `ray start`
    rollouts_to_log: int = 64  # rollouts written per step to rollouts/step_<N>.jsonl


@dataclass(kw_only=True, slots=True)
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


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
    for key in POSITIVE:
        _require(cfg, key, get(cfg, key) > 0, "greater than 0", "")
    for key in NOT_NEGATIVE:
        _require(cfg, key, get(cfg, key) >= 0, "0 or greater", "")
    for name in ("recipes", "train_files", "val_files", "test_files"):
        setattr(cfg.data, name, as_list(getattr(cfg.data, name), f"data.{name}"))
    _require(cfg, "model.path", bool(cfg.model.path), "a Qwen2.5-VL folder or hub id", "Set MODEL_PATH or model.path.")
    known = {"console", "tensorboard", "wandb"}
    _require(cfg, "trainer.logger", set(cfg.trainer.logger) <= known, f"a list out of {', '.join(sorted(known))}", "")
    lo, hi = cfg.data.min_pixels, cfg.data.max_pixels
    _require(cfg, "data.max_pixels", hi >= lo, f"at least data.min_pixels={lo}", "")
    files = "test_files" if mode == "eval" else "train_files"
    _require(cfg, f"data.{files}", bool(get(cfg, f"data.{files}")), "set", "Make one with example/data_preprocess/.")
    if mode != "sft":
        _check_rollout(cfg)
    if mode == "grpo":
        _check_grpo(cfg)


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
    "reward.num_threads",
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
    "trainer.total_training_steps",
    "trainer.test_freq",
    "trainer.save_freq",
    "trainer.rollouts_to_log",
)


def _check_rollout(cfg: Config) -> None:
    share = cfg.rollout.gpu_memory_utilization
    _require(cfg, "rollout.gpu_memory_utilization", 0 < share < 1, "between 0 and 1", "0.5 to 0.9 is usual.")
    cfg.eval.checkpoint = as_list(cfg.eval.checkpoint, "eval.checkpoint")
    ok = all(name in ("latest", "base") or name.isdigit() for name in cfg.eval.checkpoint)
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
    longest = cfg.data.max_prompt_length + cfg.data.max_response_length
    advice = "It is data.max_prompt_length + data.max_response_length: one sequence must fit a micro-batch."
    ok = cfg.actor.ppo_max_token_len_per_gpu >= longest
    _require(cfg, "actor.ppo_max_token_len_per_gpu", ok, f"at least {longest}", advice)
    if cfg.trainer.test_freq > 0 or cfg.trainer.val_before_train:
        advice = "Set it, or set trainer.test_freq=0 and trainer.val_before_train=false."
        _require(cfg, "data.val_files", bool(cfg.data.val_files), "set when validation is on", advice)


def _divisor(number: int, near: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - near), -d))


def world_size(cfg: Config) -> int:
    """Trainer ranks in all."""
    return cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes


def run_dir(cfg: Config) -> str:
    """The run's folder."""
    return cfg.trainer.default_local_dir or f"checkpoints/{cfg.trainer.project_name}/{cfg.trainer.experiment_name}"
