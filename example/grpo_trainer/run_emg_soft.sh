#!/usr/bin/env bash
# GRPO on EMG with the soft reward: a judge grades the advice in <extension>. JUDGE is an OpenAI-compatible model,
# JUDGE_URL its address (default: OpenAI's); its key is in OPENAI_API_KEY. Other variables and examples: published.sh in
# this folder.
#
#   JUDGE=NAME JUDGE_URL=http://host:8000/v1 bash example/grpo_trainer/run_emg_soft.sh judge.max_calls=50000
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/grpo_trainer/published.sh

grpo emg_soft judge.model="${JUDGE:-gpt-4o}" judge.base_url="${JUDGE_URL:-}" "$@"
