#!/usr/bin/env bash
# Supervised warm start of the tiny model on ItalyPowerDemand. It is short, so that GRPO has something left to improve.
# In float32, like the GRPO run that follows.
#
#   bash example/sft_trainer/run_italy_power.sh
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

MODEL_PATH="${MODEL_PATH:-checkpoints/quickstart/tiny}"
DATA="${DATA:-data/italy_power_image}"
NUM_GPUS="${NUM_GPUS:-1}"

exec timemaster sft \
    data.recipes=recipes.italy_power \
    data.train_files="$DATA/sft.parquet" \
    data.train_batch_size=32 \
    data.max_prompt_length=64 \
    data.max_response_length=64 \
    data.min_pixels=784 \
    model.path="$MODEL_PATH" \
    model.dtype=float32 \
    model.enable_gradient_checkpointing=False \
    actor.optim.lr=5e-4 \
    actor.use_remove_padding=False \
    trainer.project_name=quickstart \
    trainer.experiment_name=sft \
    trainer.n_gpus_per_node="$NUM_GPUS" \
    trainer.total_training_steps=100 \
    "$@"
