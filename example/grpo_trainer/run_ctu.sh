#!/usr/bin/env bash
# GRPO on CTU with the published settings, from the released SFT model. RL from the base model:
# MODEL_PATH=Qwen/Qwen2.5-VL-3B-Instruct NAME=qwen2.5_vl_3b_grpo_rl. Variables and examples: published.sh in this
# folder.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

MODEL_PATH="${MODEL_PATH:-checkpoints/TimeMaster-SFT-Qwen2.5-VL-3B-CTU}"
NAME="${NAME:-qwen2.5_vl_3b_grpo_sft_rl}"
source example/grpo_trainer/published.sh

grpo ctu "$@"
