#!/usr/bin/env bash
# Plots against numbers on one dataset: the same rows, script and settings, once as images and once as text, trained and
# evaluated; then a table and a picture of accuracy and token cost. Needs the data of example/data_preprocess/<dataset>.sh.
# Variables and trailing settings are those of example/grpo_trainer/run_<dataset>.sh; runs go to checkpoints/modalities/.
#
#   NUM_GPUS=4 bash example/compare_modalities.sh ctu
#   MODEL_PATH=... bash example/compare_modalities.sh ctu data.max_prompt_length=8192
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: bash $0 DATASET [KEY=VALUE ...]" >&2; exit 2; }
DATASET="$1"
shift
source "$(dirname "$0")/setup_env.sh"
export DATA="${DATA:-$ROOT/data/${DATASET}_image}"
OUT="$ROOT/checkpoints/modalities/$DATASET"

for modality in image numeric; do
    run=("example/grpo_trainer/run_$DATASET.sh" "$@" data.modality=$modality trainer.default_local_dir="$OUT/$modality")
    printf '\n=== %s: training\n' "$modality"
    bash "${run[@]}"
    printf '\n=== %s: evaluation\n' "$modality"
    EVAL=True bash "${run[@]}"
done
printf '\n=== comparison\n'
python -m timemaster.modalities "$OUT/image" "$OUT/numeric" --out "$OUT" --tokens-of "$DATA/test.parquet"
