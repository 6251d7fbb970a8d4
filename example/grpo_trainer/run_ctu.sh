#!/usr/bin/env bash
# GRPO on CTU as published; settings, and the variables that change them, stand in published.sh beside this file.
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_ctu.sh                      # SFT (the released model), then RL
#   MODEL_PATH=Qwen/Qwen2.5-VL-3B-Instruct NAME=qwen2.5_vl_3b_grpo_rl NUM_GPUS=4 \
#       bash example/grpo_trainer/run_ctu.sh                             # RL from the base model
#   EVAL=True bash example/grpo_trainer/run_ctu.sh
#   bash example/grpo_trainer/run_ctu.sh rollout.n=8                     # further settings at the end
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

MODEL_PATH="${MODEL_PATH:-checkpoints/TimeMaster-SFT-Qwen2.5-VL-3B-CTU}"
NAME="${NAME:-qwen2.5_vl_3b_grpo_sft_rl}"
source example/grpo_trainer/published.sh

grpo ctu "$@"
