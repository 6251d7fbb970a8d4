#!/usr/bin/env bash
# GRPO on ECG; settings, and the variables that change them, stand in published.sh beside this file.
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_ecg.sh                      # RL from the base model
#   MODEL_PATH=checkpoints/TimeMaster_ECG/qwen2.5_vl_3b_sft/global_step_<N>/huggingface NAME=qwen2.5_vl_3b_grpo_sft_rl \
#       NUM_GPUS=4 bash example/grpo_trainer/run_ecg.sh                  # SFT, then RL
#   EVAL=True bash example/grpo_trainer/run_ecg.sh
#   bash example/grpo_trainer/run_ecg.sh rollout.n=8                     # further settings at the end
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/grpo_trainer/published.sh

grpo ecg "$@"
