#!/usr/bin/env bash
# The whole job on a small machine without a GPU: environment, data (real daily power demand, part of sktime), a tiny
# Qwen2.5-VL, supervised warm start, GRPO with Ray, FSDP2 and vLLM, evaluation. It downloads nothing but packages and
# takes about 6 minutes on two cores, plus the installation. Empties checkpoints/quickstart/ and writes there, with
# summary.json.
#
#   bash example/quickstart.sh
set -euo pipefail
source "$(dirname "$0")/stages.sh"
source "$(dirname "$0")/setup_env.sh"
fresh_folder checkpoints/quickstart

stage data bash example/data_preprocess/italy_power.sh
stage model timemaster tiny "$OUT/tiny" --text-from data/italy_power_image/sft.parquet
stage sft bash example/sft_trainer/run_italy_power.sh
stage grpo bash example/grpo_trainer/run_italy_power.sh
stage evaluation env EVAL=True bash example/grpo_trainer/run_italy_power.sh \
    'eval.checkpoint=[base,latest]' eval.blank_images=both
stage summary timemaster summary "$OUT"
