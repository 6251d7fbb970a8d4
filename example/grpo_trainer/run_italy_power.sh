#!/usr/bin/env bash
# GRPO of the tiny model on ItalyPowerDemand, from the supervised warm start. EVAL=True evaluates on the test split.
# All in float32: with bfloat16, the default on a GPU, log-probs differ by more than rollout.limit_logprob_diff allows.
#
#   bash example/grpo_trainer/run_italy_power.sh
#   EVAL=True bash example/grpo_trainer/run_italy_power.sh 'eval.checkpoint=[base,latest]' eval.blank_images=both
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

EVAL="${EVAL:-False}"
MODEL_PATH="${MODEL_PATH:-checkpoints/quickstart/sft/global_step_100/huggingface}"
DATA="${DATA:-data/italy_power_image}"
NUM_GPUS="${NUM_GPUS:-1}"

exec timemaster grpo \
    data.recipes=recipes.italy_power \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/validation.parquet" \
    data.test_files="$DATA/test.parquet" \
    data.train_batch_size=64 \
    data.max_prompt_length=64 \
    data.max_response_length=64 \
    data.min_pixels=784 \
    model.path="$MODEL_PATH" \
    model.dtype=float32 \
    model.enable_gradient_checkpointing=False \
    actor.optim.lr=3e-4 \
    actor.optim.lr_scheduler_type=cosine \
    actor.optim.min_lr_ratio=0.1 \
    actor.ppo_mini_batch_size=32 \
    actor.use_remove_padding=False \
    rollout.name=auto \
    rollout.n=4 \
    rollout.cpu_kv_cache_gib=0.5 \
    rollout.limit_logprob_diff=1e-4 \
    trainer.project_name=quickstart \
    trainer.experiment_name=grpo \
    trainer.n_gpus_per_node="$NUM_GPUS" \
    trainer.save_freq=22 \
    trainer.total_training_steps=44 \
    trainer.val_only="$EVAL" \
    "$@"
