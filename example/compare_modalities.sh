#!/usr/bin/env bash
# Compares plots with numbers on one dataset: trains and evaluates with the same rows, scripts and settings, once on
# images and once on text. Then writes a table and a picture of accuracy and token cost to
# checkpoints/modalities/<dataset>/.
#
# Needs the data of example/data_preprocess/<dataset>.sh. Takes the variables and settings of
# example/grpo_trainer/run_<dataset>.sh. SFT=True adds a warm start before each run, with
# example/sft_trainer/run_<dataset>.sh; the settings data.* and model.* go to it, too. SMALL=True runs example/small.sh
# both ways instead: tiny model, no GPU, the arguments of small.sh.
#
#   SFT=True NUM_GPUS=4 bash example/compare_modalities.sh ctu data.max_prompt_length=4096
#   SMALL=True bash example/compare_modalities.sh italy_power
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: bash $0 DATASET [KEY=VALUE ...]" >&2; exit 2; }
DATASET="$1"
shift
source "$(dirname "$0")/setup_env.sh"
OUT="$ROOT/checkpoints/modalities/$DATASET"

if [ "${SMALL:-False}" = True ]; then
    DATA="$ROOT/data/${DATASET}_small"
    for modality in image numeric; do
        printf '\n=== %s\n' "$modality"
        run_until_signal env MODALITY="$modality" bash example/small.sh "$DATASET" "$@"
    done
    RUNS=("$ROOT/checkpoints/small_$DATASET/grpo" "$ROOT/checkpoints/small_${DATASET}_numeric/grpo")
else
    export DATA="${DATA:-$ROOT/data/${DATASET}_image}"
    RUNS=("$OUT/image" "$OUT/numeric")
    SHARED=()
    for setting; do case "$setting" in data.* | model.*) SHARED+=("$setting") ;; esac; done
    for modality in numeric image; do # numbers first: their prompts may be too long, which the run reports at its start
        folder="$OUT/$modality" warm=
        if [ "${SFT:-False}" = True ]; then
            printf '\n=== %s: warm start\n' "$modality"
            run_until_signal bash "example/sft_trainer/run_$DATASET.sh" ${SHARED[@]+"${SHARED[@]}"} \
                data.modality="$modality" trainer.default_local_dir="$folder/sft"
            warm="$(ls -d "$folder"/sft/global_step_*/huggingface | sort -V | tail -n 1)"
        fi
        run=(env ${warm:+MODEL_PATH="$warm"} bash "example/grpo_trainer/run_$DATASET.sh" "$@"
            data.modality="$modality" trainer.default_local_dir="$folder")
        printf '\n=== %s: training\n' "$modality"
        run_until_signal "${run[@]}"
        printf '\n=== %s: evaluation\n' "$modality"
        run_until_signal env EVAL=True "${run[@]}"
    done
fi
printf '\n=== comparison\n'
timemaster modalities "${RUNS[@]}" --out "$OUT" --tokens-of "$DATA/test.parquet"
