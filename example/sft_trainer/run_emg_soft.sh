#!/usr/bin/env bash
# Supervised warm start on EMG with advice. There is no explainer for advice: data/emg_soft_image/sft.parquet is what a
# vision model was asked for before. Settings, and the variables that change them, stand in published.sh.
#
#   timemaster traces recipes.emg_soft --data data/emg_soft_image/train.parquet \
#       --out data/emg_soft_image/sft.parquet --base-url http://host:8000/v1 --model NAME
#   bash example/sft_trainer/run_emg_soft.sh
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/sft_trainer/published.sh

sft emg_soft "$@"
