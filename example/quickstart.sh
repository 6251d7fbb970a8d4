#!/usr/bin/env bash
# The whole main job on a small machine, without a GPU or a download other than packages: environment, data (real daily
# power demand, bundled with sktime), a tiny Qwen2.5-VL, supervised warm start, GRPO with Ray, FSDP2 and vLLM, evaluation.
# About 6 minutes on two cores, plus the installation. Writes checkpoints/quickstart/ (made afresh) and summary.json there.
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
