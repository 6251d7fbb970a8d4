#!/usr/bin/env bash
# Supervised warm start on RCW: demonstrations of the deterministic explainer (data/rcw_image/sft.parquet). Settings, and
# the variables that change them, stand in published.sh beside this file.
#
#   bash example/sft_trainer/run_rcw.sh
#   MODEL_PATH=... NUM_GPUS=4 bash example/sft_trainer/run_rcw.sh data.train_batch_size=64   # further settings at the end
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/sft_trainer/published.sh

sft rcw "$@"
