"""Every setting of a run, and which values are allowed."""

from timemaster.algo.advantages import AlgorithmConfig
from timemaster.algo.losses import LossConfig
from timemaster.algo.schedule import ScheduleConfig
from timemaster.config.settings import (
    ActorConfig,
    Config,
    DataConfig,
    EvalConfig,
    JudgeConfig,
    ModelConfig,
    NumericConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    TrainerConfig,
    attention,
    compute_dtype,
    head_dtype,
    run_dir,
    world_size,
)

__all__ = [
    "ActorConfig",
    "AlgorithmConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "JudgeConfig",
    "LossConfig",
    "ModelConfig",
    "NumericConfig",
    "OptimConfig",
    "RewardConfig",
    "RolloutConfig",
    "ScheduleConfig",
    "TrainerConfig",
    "attention",
    "compute_dtype",
    "head_dtype",
    "run_dir",
    "world_size",
]
