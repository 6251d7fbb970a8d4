#!/usr/bin/env bash
# GRPO on EMG with the soft reward: a judge (an OpenAI-compatible model, JUDGE at JUDGE_URL, its key in OPENAI_API_KEY)
# grades the advice in <extension>. Other settings, and the variables that change them, stand in published.sh.
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_emg_soft.sh                 # RL from the base model
#   MODEL_PATH=checkpoints/TimeMaster_EMG_SOFT/qwen2.5_vl_3b_sft/global_step_<N>/huggingface \
#       NAME=qwen2.5_vl_3b_grpo_sft_rl NUM_GPUS=4 bash example/grpo_trainer/run_emg_soft.sh   # SFT, then RL
#   EVAL=True bash example/grpo_trainer/run_emg_soft.sh
#   JUDGE=NAME JUDGE_URL=http://host:8000/v1 bash example/grpo_trainer/run_emg_soft.sh judge.max_calls=50000
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/grpo_trainer/published.sh

JUDGE="${JUDGE:-gpt-4o}"
JUDGE_URL="${JUDGE_URL:-}" # empty: the openai package's own default

grpo emg_soft judge.model="$JUDGE" judge.base_url="$JUDGE_URL" "$@"
