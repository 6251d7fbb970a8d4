#!/usr/bin/env bash
# GRPO on EMG; settings, and the variables that change them, stand in published.sh beside this file.
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_emg.sh                      # RL from the base model
#   MODEL_PATH=checkpoints/TimeMaster_EMG/qwen2.5_vl_3b_sft/global_step_<N>/huggingface NAME=qwen2.5_vl_3b_grpo_sft_rl \
#       NUM_GPUS=4 bash example/grpo_trainer/run_emg.sh                  # SFT, then RL
#   EVAL=True bash example/grpo_trainer/run_emg.sh
#   bash example/grpo_trainer/run_emg.sh rollout.n=8                     # further settings at the end
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/grpo_trainer/published.sh

grpo emg "$@"
