"""Every setting, its type, its default and its meaning. Nothing here imports anything heavy.

A default is written once, here. Names are verl's wherever the setting means the same. `checks` says which values are
allowed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class NumericConfig:
    """How data.modality=numeric writes a series."""

    decimals: int | None = None  # of a reading; null: as the task says
    separator: str = ","  # between two readings
    channel: str = "{name}: {values}"  # of one channel; a single one without a name is written bare
    channel_separator: str = "\n"  # between two channels


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
    mixture: dict[str, float] = field(default_factory=dict)  # weight of each data_source in a batch; {} as rows come
    modality: str = "image"  # image: plots; numeric: the raw series as text in their place
    numeric: NumericConfig = field(default_factory=NumericConfig)
    shuffle: bool = True
    seed: int = 1  # of the order of rows and of sampling
    on_bad_row: str = "raise"  # raise, or skip: count and list the rows that cannot be used


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which Qwen2.5-VL and how it runs in training."""

    path: str = ""  # local folder or hub id
    revision: str = "main"  # of a hub id: branch, tag or commit; a run takes the commit that it finds when it starts
    dtype: str = "auto"  # of the forward pass; auto: bfloat16 on GPU (masters stay float32), float32 on CPU
    head_dtype: str = "auto"  # of logits, in trainer and engines: float32, or model's dtype; auto: float32 on GPU
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
    ppo_max_token_len_per_gpu: int = 16384  # tokens of one micro-batch on one rank; on GPU less without flash-attn
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
    placement: str = "colocated"  # colocated: engines and trainer take turns on the same GPUs; separate: own GPUs each
    num_engines: int = 0  # 0: as many as fit the GPUs (colocated), one on CPU; placement=separate needs a number
    tensor_model_parallel_size: int = 1
    gpu_memory_utilization: float = 0.6  # share of each GPU's memory the engine may take
    cpu_kv_cache_gib: float = 1.0  # on CPU, memory for the engine's cache
    max_num_seqs: int = 256  # sequences decoded at once by one engine
    max_num_batched_tokens: int = 8192  # tokens of one engine step
    enforce_eager: bool = False
    # Colocated, while the trainer works: 1 keeps the engines' weights in host memory; 2 drops them and sends them anew,
    # after a check at the start of the run.
    sleep_level: int = 1
    # Stop when mean |trainer - engine| log-prob of a step exceeds this; 0 never stops. 0.001 suits float32. For
    # bfloat16 on GPU 0.05 is a first value, not yet measured on one: benchmarks/gpu_smoke.sh prints what to expect.
    limit_logprob_diff: float = 0.0


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """How answers are scored."""

    path: str = ""  # own reward, "package.module:function" or "file.py:function"; "" takes the recipe's
    on_error: str = "raise"  # raise stops with the example's id; zero counts it and scores 0
    # A judge could not settle a part: the whole group, or the rollout alone, is not learnt from. Where only right
    # answers are judged, leaving out the rollout alone teaches the wrong ones.
    on_unknown: str = "group"
    num_threads: int = 8  # scoring threads beside each engine
    timeout: float = 600.0  # seconds that a call of a reward may take before it fails; 0 is no limit


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    """The model that grades soft rewards, behind an OpenAI-compatible endpoint."""

    model: Any = ""  # its name; a list of several is averaged
    base_url: Any = ""  # e.g. http://host:8000/v1, one for all models or one each; "" is the openai package's default
    api_key_env: Any = "OPENAI_API_KEY"  # the environment variable that holds the key; one for all models or one each
    temperature: float = 0.0
    max_tokens: int = 512  # of a verdict
    # More fields of a request; null takes one away, as in {max_tokens: null, max_completion_tokens: 2048}.
    extra_body: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 64  # calls in flight at once, over all engines
    timeout: float = 60.0  # seconds without a word from the server
    max_retries: int = 4  # after 408, 409, 429, 5xx, a cut connection or a time-out; then the judgement is unknown
    max_calls: int = 0  # of the run, resumed or not, with retries; when used up the run stops; 0 is no limit
    max_cost: float = 0.0  # likewise, in the currency of the prices
    price_in: float = 0.0  # of a million tokens sent
    price_out: float = 0.0  # of a million tokens received
    cache: str = ""  # SQLite file of replies and spending; "" means judge.sqlite in the run's folder
    include_image: bool = False  # the judge sees the plot
    include_truth: bool = False  # the judge is told the ground truth


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation (EVAL=True in the scripts)."""

    checkpoint: Any = "latest"  # latest of the run, base (model.path), a step number, or a list of these
    blank_images: Any = False  # true: answer with every image blanked, the control that shows the model looks; or both
    temperature: float = 0.0  # 0 is greedy
    n: int = 1  # answers per row; more than one, at a temperature, for their mean, majority vote and pass@k
    top_p: float = 1.0
    top_k: int = -1


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The run."""

    project_name: str = "TimeMaster"
    experiment_name: str = "grpo"
    default_local_dir: str = ""  # the run's folder; "" means checkpoints/<project_name>/<experiment_name>
    total_epochs: int = 1
    total_training_steps: int = 0  # takes the place of total_epochs when set
    val_only: bool = False  # evaluate data.test_files, then exit
    val_before_train: bool = False
    test_freq: int = 0  # steps between looks at data.val_files; 0 never
    save_freq: int = 100  # steps between checkpoints; the last step is always saved
    max_ckpt_to_keep: int = 2
    resume_mode: str = "auto"  # auto continues from the latest checkpoint of the run; disable refuses a used folder
    stop_seconds: float = 300.0  # SIGTERM (SLURM, Kubernetes): a step that takes longer is not waited for; 0 waits
    n_gpus_per_node: int = 1  # trainer ranks per node (processes on CPU)
    nnodes: int = 1
    logger: list[str] = field(default_factory=lambda: ["console", "tensorboard"])  # console, tensorboard, wandb
    device: str = "auto"  # auto: cuda where a GPU is found
    ray_address: str = ""  # "" starts Ray on this machine; "auto" joins the cluster of `ray start`
    rollouts_to_log: int = 64  # written per step to rollouts/step_<N>.jsonl, rounded up to whole groups


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
    """Trainer ranks in all."""
    return cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes


def compute_dtype(cfg: Config, device: str) -> str:
    """The dtype of forward passes and of the engines' weights: "float32" or "bfloat16"."""
    return cfg.model.dtype if cfg.model.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"


def head_dtype(cfg: Config, device: str) -> str:
    """The dtype of logits: "float32", or "model" for that of forward passes. The names are vLLM's."""
    return cfg.model.head_dtype if cfg.model.head_dtype != "auto" else "float32" if device == "cuda" else "model"


def attention(cfg: Config, device: str) -> str:
    """transformers' name of the trainer's attention. flash-attn knows half precision only."""
    if cfg.model.attn_implementation != "auto":
        return cfg.model.attn_implementation
    fits = device == "cuda" and compute_dtype(cfg, device) != "float32"
    return "flash_attention_2" if fits and importlib.util.find_spec("flash_attn") else "sdpa"


def run_dir(cfg: Config) -> str:
    """The run's folder."""
    return cfg.trainer.default_local_dir or f"checkpoints/{cfg.trainer.project_name}/{cfg.trainer.experiment_name}"
