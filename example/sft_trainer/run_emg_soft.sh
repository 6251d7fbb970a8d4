#!/usr/bin/env bash
# Supervised warm start on EMG with advice. No explainer writes advice: ask a vision model for the demonstrations first.
#
#   timemaster traces recipes.emg_soft --data data/emg_soft_image/train.parquet \
#       --out data/emg_soft_image/sft.parquet --base-url http://host:8000/v1 --model NAME
#
# Variables and examples: published.sh in this folder.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/sft_trainer/published.sh

sft emg_soft "$@"
