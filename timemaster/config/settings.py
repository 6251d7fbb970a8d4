"""Every setting with its type, default, meaning and rule. Nothing here imports anything heavy.

Each setting is written once: here, or in `timemaster/algo/` if a loss, an advantage or a schedule reads it. A setting
that means the same in verl has verl's name. `checks` adds the rules that concern several settings.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

from timemaster.algo.advantages import ON_UNKNOWN, AlgorithmConfig
from timemaster.algo.losses import LossConfig
from timemaster.algo.schedule import ScheduleConfig
from timemaster.config.registries import ENGINES, ON_BAD_ROW, ON_ERROR, SINKS
from timemaster.fields import above, at_least, one_of, rule, setting, some_of


def _is_channel_form(text: str) -> bool:
    try:
        return "0.1,0.2" in text.format(name="x", values="0.1,0.2")
    except (AttributeError, LookupError, TypeError, ValueError):  # raised by `format` for braces that it cannot fill
        return False


def _are_checkpoints(names: list[str]) -> bool:
    return bool(names) and all(name in ("latest", "base") or (name.isascii() and name.isdigit()) for name in names)


@dataclass(kw_only=True, slots=True)
class NumericConfig:
    """How data.modality=numeric writes a series."""

    decimals: int | None = setting(
        None,
        "decimals of a reading; null takes the task's",
        rule("0 or greater, or null for the task's", lambda value: value is None or value >= 0),
    )
    separator: str = setting(
        ",", "text between two readings", rule("at least one character", bool, "Without it readings run together.")
    )
    channel: str = setting(
        "{name}: {values}",
        "how a channel is written; a single one without a name is written as its values alone",
        rule("a text with {values}, and {name} if you like, and no other braces", _is_channel_form),
    )
    channel_separator: str = setting("\n", "text between two channels")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where rows come from and how they are divided into steps."""

    recipes: list[str] = setting(
        [], "import paths of the tasks, e.g. recipes.ctu: labels, parsing and rewards of a row"
    )
    train_files: list[str] = setting([], "parquet files to train on")
    val_files: list[str] = setting([], "parquet files for validation while training; never the test split")
    test_files: list[str] = setting([], "parquet files for evaluation")
    train_batch_size: int = setting(64, "prompts per step (rows per step in SFT)", above(0))
    max_prompt_length: int = setting(
        1024, "tokens of a prompt, image tokens included; longer rows are dropped before training and listed", above(0)
    )
    max_response_length: int = setting(1024, "tokens sampled per row, over all turns", above(0))
    min_pixels: int = setting(3136, "smaller images are enlarged to this area, in pixels", above(0))
    max_pixels: int = setting(1003520, "larger images are reduced to this area", above(0))
    mixture: dict[str, float] = setting({}, "weight of each data_source in a batch; {} takes the rows as they come")
    modality: str = setting(
        "image", "image shows the plots; numeric writes the series as text in their place", one_of(("image", "numeric"))
    )
    numeric: NumericConfig = field(default_factory=NumericConfig)
    shuffle: bool = setting(True, "take the rows in a new random order in each epoch")
    seed: int = setting(1, "seed of the order of rows and of sampling")
    on_bad_row: str = setting(
        "raise",
        "a row that cannot be used stops the run (raise), or is left out, counted and listed (skip)",
        one_of(ON_BAD_ROW),
    )


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which model is trained and how its forward pass runs."""

    path: str = setting("", "local folder or hub id of the model")
    revision: str = setting(
        "main", "branch, tag or commit of a hub id; a run uses the commit that this names when the run starts"
    )
    dtype: str = setting(
        "auto",
        "dtype of the forward pass; auto: bfloat16 on GPU (the trained weights stay float32), float32 on CPU",
        one_of(("auto", "float32", "bfloat16")),
    )
    head_dtype: str = setting(
        "auto",
        "dtype of the logits in trainer and engines; model: that of the forward pass; auto: float32 on GPU",
        one_of(("auto", "float32", "model")),
    )
    attn_implementation: str = setting(
        "auto",
        "transformers' attention in the trainer; auto: flash_attention_2 on GPU where installed, else sdpa",
        one_of(("auto", "sdpa", "eager", "flash_attention_2")),
    )
    enable_gradient_checkpointing: bool = setting(
        True, "keep only the input of each layer and compute the rest again in the backward pass: less memory, slower"
    )
    freeze_vision_tower: bool = setting(False, "the vision tower is not trained, not sharded, not sent to the engines")


@dataclass(kw_only=True, slots=True)
class OptimConfig(ScheduleConfig):
    """AdamW and its learning rate."""

    lr: float = setting(1e-6, "learning rate", above(0))
    weight_decay: float = setting(0.01, "weight decay of AdamW", at_least(0))
    betas: list[float] = setting(
        [0.9, 0.999],
        "betas of AdamW",
        rule("two of 0 <= b < 1", lambda betas: len(betas) == 2 and all(0 <= b < 1 for b in betas)),
    )


@dataclass(kw_only=True, slots=True)
class ActorConfig(LossConfig):
    """The update of the policy."""

    ppo_mini_batch_size: int = setting(32, "prompts per optimizer step; divides data.train_batch_size", above(0))
    ppo_epochs: int = setting(1, "passes over the rollouts of a step", above(0))
    ppo_max_token_len_per_gpu: int = setting(
        16384, "tokens of one micro-batch on one rank; on GPU fewer are used without flash-attn", above(0)
    )
    grad_clip: float = setting(1.0, "largest global norm of the gradient; a larger one is scaled down", above(0))
    use_remove_padding: bool = setting(True, "pack sequences without padding; false pads rows to the longest")
    offload: bool = setting(
        False, "colocated on GPU: parameters and optimizer state are moved to host memory while the engines run"
    )
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """The engines that sample."""

    name: str = setting(
        "vllm",
        "engine; hf is transformers' generate; auto is vllm where it is installed, else hf",
        one_of(ENGINES, "auto"),
    )
    n: int = setting(5, "answers per prompt (the group)", above(0))
    temperature: float = setting(1.0, "sampling temperature of training", above(0))
    placement: str = setting(
        "colocated",
        "colocated: engines and trainer take turns on the same GPUs; separate: each has GPUs of its own",
        one_of(("colocated", "separate")),
    )
    num_engines: int = setting(
        0, "0: as many as fit the GPUs (colocated), one on CPU; placement=separate needs a number", at_least(0)
    )
    tensor_model_parallel_size: int = setting(1, "GPUs that share one engine", above(0))
    gpu_memory_utilization: float = setting(
        0.6,
        "share of each GPU's memory that an engine may take",
        rule("greater than 0, less than 1", lambda share: 0 < share < 1, "0.5 to 0.9 is usual."),
    )
    cpu_kv_cache_gib: float = setting(1.0, "memory of an engine's KV cache on CPU, in GiB", above(0))
    max_num_seqs: int = setting(256, "sequences that one engine decodes at the same time", above(0))
    max_num_batched_tokens: int = setting(8192, "tokens of one engine step", above(0))
    enforce_eager: bool = setting(False, "vLLM runs without CUDA graphs and compilation: starts sooner, slower")
    sleep_level: int = setting(
        1,
        "colocated, while the trainer works: 1 keeps the engines' weights in host memory; 2 drops them and sends "
        "them again, after a check at the start of the run",
        one_of((1, 2)),
    )
    limit_logprob_diff: float = setting(
        0.0,
        "stop when the mean of |trainer's - engine's log-prob| of a step is greater than this; 0 never stops. 0.001 "
        "suits float32. For bfloat16 on GPU 0.05 is a first value, not yet measured on one: benchmarks/gpu_smoke.sh "
        "prints what to expect",
        at_least(0),
    )


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """How answers are scored."""

    path: str = setting(
        "", "your own reward, 'package.module:function' or 'file.py:function'; empty takes the rewards of the recipe"
    )
    on_error: str = setting(
        "raise",
        "a reward that fails stops the run with the example's id (raise), or is counted and scores 0 (zero)",
        one_of(ON_ERROR),
    )
    on_unknown: str = setting(
        "group",
        "when a judge could not score a part of an answer, the whole group or that rollout alone is not "
        "trained on. Where only right answers are judged, leaving out the rollout alone favours wrong answers",
        one_of(ON_UNKNOWN),
    )
    num_threads: int = setting(8, "scoring threads beside each engine", above(0))
    timeout: float = setting(
        600.0, "seconds that a call of a reward may take before it fails; 0 is no limit", at_least(0)
    )


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    """The model that grades soft rewards, behind an OpenAI-compatible endpoint."""

    model: list[str] = setting([], "name of the model; the scores of several are averaged")
    base_url: list[str] = setting(
        [""], "address, e.g. http://host:8000/v1: one for all models or one each; empty is the openai package's default"
    )
    api_key_env: list[str] = setting(
        ["OPENAI_API_KEY"], "environment variable that holds the key: one for all models or one each"
    )
    temperature: float = setting(0.0, "sampling temperature of the judge; 0 is greedy", at_least(0))
    max_tokens: int = setting(512, "tokens of a verdict", above(0))
    extra_body: dict[str, object] = setting(
        {}, "more fields of a request; null removes a field: {max_tokens: null, max_completion_tokens: 2048}"
    )
    concurrency: int = setting(64, "requests at the same time, over all engines", above(0))
    timeout: float = setting(60.0, "seconds without an answer from the server", above(0))
    max_retries: int = setting(
        4,
        "attempts after a 408, 409, 429, 5xx, a broken connection or a timeout; then the score is unknown",
        at_least(0),
    )
    max_calls: int = setting(
        0,
        "requests of the run, over all its starts, retries included; at the limit the run stops; 0 is no limit",
        at_least(0),
    )
    max_cost: float = setting(0.0, "cost of the run, in the currency of the prices; likewise", at_least(0))
    price_in: float = setting(0.0, "price of a million tokens sent", at_least(0))
    price_out: float = setting(0.0, "price of a million tokens received", at_least(0))
    cache: str = setting("", "SQLite file of replies and costs; empty is judge.sqlite in the run's folder")
    include_image: bool = setting(False, "send the plot to the judge")
    include_truth: bool = setting(False, "tell the judge the right answer")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation (EVAL=True in the scripts)."""

    checkpoint: list[str] = setting(
        ["latest"],
        "latest of the run, base (model.path), a step number, or a list of these",
        rule("latest, base, a step number, or a list of these", _are_checkpoints),
    )
    blank_images: str = setting(
        "false",
        "true blanks every image, which shows whether the model looks at them; both does both",
        one_of(("false", "true", "both")),
    )
    temperature: float = setting(0.0, "sampling temperature; 0 is greedy", at_least(0))
    n: int = setting(
        1, "answers per row; several, at a temperature, give their mean, majority vote and pass@k", above(0)
    )
    top_p: float = setting(
        1.0,
        "sample from the most likely tokens whose probabilities add up to this",
        rule("greater than 0, at most 1", lambda p: 0 < p <= 1),
    )
    top_k: int = setting(
        -1,
        "sample from this number of most likely tokens",
        rule("greater than 0, or -1 for all tokens", lambda k: k == -1 or k > 0),
    )


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The run: its name and folder, how long it trains, what it saves, the machines it uses."""

    project_name: str = setting("TimeMaster", "name of the project, part of the run's folder")
    experiment_name: str = setting("grpo", "name of the run, part of its folder")
    default_local_dir: str = setting("", "the run's folder; empty is checkpoints/<project_name>/<experiment_name>")
    total_epochs: int = setting(1, "passes over the training rows", above(0))
    total_training_steps: int = setting(0, "steps to train; 0 follows total_epochs", at_least(0))
    val_only: bool = setting(False, "evaluate data.test_files, then exit")
    val_before_train: bool = setting(False, "validate before the first step")
    test_freq: int = setting(0, "steps between validations on data.val_files; 0 never validates", at_least(0))
    save_freq: int = setting(100, "steps between checkpoints; the last step is always saved", at_least(0))
    max_ckpt_to_keep: int = setting(2, "checkpoints that are kept; older ones are deleted", above(0))
    resume_mode: str = setting(
        "auto",
        "auto continues from the latest checkpoint of the run; disable refuses a folder that has one",
        one_of(("auto", "disable")),
    )
    stop_seconds: float = setting(
        300.0,
        "after SIGTERM (SLURM, Kubernetes) the step is finished if it takes no longer; 0 always waits for it",
        at_least(0),
    )
    n_gpus_per_node: int = setting(1, "trainer ranks per node (processes on CPU)", above(0))
    nnodes: int = setting(1, "machines", above(0))
    logger: list[str] = setting(["console", "tensorboard"], "where metrics are written", some_of(SINKS, "console"))
    device: str = setting("auto", "auto is cuda where a GPU is found, else cpu", one_of(("auto", "cpu", "cuda")))
    ray_address: str = setting("", "empty starts Ray on this machine; auto joins the cluster of `ray start`")
    rollouts_to_log: int = setting(
        64, "rollouts written per step to rollouts/step_<N>.jsonl, rounded up to whole groups", at_least(0)
    )


@dataclass(kw_only=True, slots=True)
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def world_size(cfg: Config) -> int:
    """Number of trainer ranks."""
    return cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes


def compute_dtype(cfg: Config, device: str) -> str:
    """The dtype of forward passes and of the engines' weights: "float32" or "bfloat16"."""
    return cfg.model.dtype if cfg.model.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"


def head_dtype(cfg: Config, device: str) -> str:
    """The dtype of logits: "float32", or "model" for that of forward passes. The names are vLLM's."""
    return cfg.model.head_dtype if cfg.model.head_dtype != "auto" else "float32" if device == "cuda" else "model"


def attention(cfg: Config, device: str) -> str:
    """transformers' name of the trainer's attention. flash-attn supports half precision only."""
    if cfg.model.attn_implementation != "auto":
        return cfg.model.attn_implementation
    is_half_on_gpu = device == "cuda" and compute_dtype(cfg, device) != "float32"
    return "flash_attention_2" if is_half_on_gpu and importlib.util.find_spec("flash_attn") else "sdpa"


def run_dir(cfg: Config) -> str:
    """The run's folder."""
    return cfg.trainer.default_local_dir or f"checkpoints/{cfg.trainer.project_name}/{cfg.trainer.experiment_name}"
