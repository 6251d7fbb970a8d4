#!/usr/bin/env bash
# GRPO on TEE; settings, and the variables that change them, stand in published.sh beside this file.
# Batches are half the published size, for there are 63 rows to train on.
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_tee.sh                      # RL from the base model
#   MODEL_PATH=checkpoints/TimeMaster_TEE/qwen2.5_vl_3b_sft/global_step_<N>/huggingface NAME=qwen2.5_vl_3b_grpo_sft_rl \
#       NUM_GPUS=4 bash example/grpo_trainer/run_tee.sh                  # SFT, then RL
#   EVAL=True bash example/grpo_trainer/run_tee.sh
#   bash example/grpo_trainer/run_tee.sh rollout.n=8                     # further settings at the end
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/grpo_trainer/published.sh

grpo tee data.train_batch_size=32 actor.ppo_mini_batch_size=16 "$@"
