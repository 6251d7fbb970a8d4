#!/usr/bin/env bash
# The whole job for one dataset on a small machine without a GPU: data (bare 112 x 112 plots), a tiny Qwen2.5-VL,
# supervised warm start, GRPO, evaluation before RL, after RL and with blanked images. Takes minutes on two cores.
# Empties checkpoints/small_<dataset>/ and writes there, with summary.json.
#
# Arguments after the name: options (--source DIR) go to the data script; settings (KEY=VALUE) go to GRPO and
# evaluation; data.*, model.*, actor.* and trainer.* go to the warm start, too. Defaults: a batch has 32 rows, or all
# rows if there are fewer. SFT_STEPS is 20 epochs, at least 200 and at most 600 steps. GRPO_STEPS is 40.
#
#   bash example/small.sh ctu
#   SFT_STEPS=300 GRPO_STEPS=80 bash example/small.sh har --source DIR
#   bash example/small.sh tee --source DIR data.train_batch_size=8 rollout.n=8
#   MODALITY=numeric bash example/small.sh italy_power           # the series as text; checkpoints/small_<dataset>_numeric/
set -euo pipefail
source "$(dirname "$0")/stages.sh"
[ $# -gt 0 ] || { echo "usage: bash $0 DATASET [--source DIR] [KEY=VALUE ...]" >&2; exit 2; }
DATASET="$1"
shift
source "$(dirname "$0")/setup_env.sh"
[ -f "example/sft_trainer/run_$DATASET.sh" ] ||
    stop "$DATASET has no example/sft_trainer/run_$DATASET.sh; without a warm start the tiny model learns nothing"
GRPO_STEPS="${GRPO_STEPS:-40}"
MODALITY="${MODALITY:-image}"
export DATA="$ROOT/data/${DATASET}_small"
BATCH= OPTIONS=() SETTINGS=() SHARED=() previous=
for argument; do
    case "$previous" in --*=*) ;; --*) OPTIONS+=("$argument") previous= && continue ;; esac
    case "$argument" in
        --out* | --plot* | trainer.default_local_dir=* | trainer.total_*=* | data.modality=*)
            stop "$argument: this script sets the folders, the plot, SFT_STEPS, GRPO_STEPS and MODALITY" ;;
        --*) OPTIONS+=("$argument") ;;
        data.*=* | model.*=* | actor.*=* | trainer.*=*) SETTINGS+=("$argument") SHARED+=("$argument") ;;
        *=*) SETTINGS+=("$argument") ;;
        *) stop "$argument is neither an option of the data script (--source DIR) nor a setting (KEY=VALUE)" ;;
    esac
    case "$argument" in data.train_batch_size=*) BATCH="${argument#*=}" ;; esac
    previous="$argument"
done
case "$BATCH" in 0* | *[!0-9]*) stop "data.train_batch_size=$BATCH; give a whole number of rows" ;; esac

# Settings that differ from those of the 3B model.
TINY=(
    data.modality="$MODALITY"
    data.min_pixels=784
    data.max_response_length=128
    model.dtype=float32
    model.enable_gradient_checkpointing=False
    actor.use_remove_padding=False
    actor.optim.lr_scheduler_type=cosine
    actor.optim.min_lr_ratio=0.1
    trainer.save_freq=0
    trainer.test_freq=0
)
case "$MODALITY" in
    image) NAME="$DATASET" BLANK=both ;;
    numeric) NAME="${DATASET}_numeric" BLANK=false TINY+=(data.max_prompt_length=12288) ;;
    *) stop "MODALITY=$MODALITY; image and numeric are known" ;;
esac
fresh_folder "$ROOT/checkpoints/small_$NAME"
GRPO=(
    actor.optim.lr=2e-4
    actor.optim.lr_warmup_steps=5
    actor.use_kl_loss=False
    actor.entropy_coeff=0
    rollout.n=4
    rollout.cpu_kv_cache_gib=0.5
    rollout.limit_logprob_diff=1e-4
    trainer.default_local_dir="$OUT/grpo"
    trainer.val_before_train=False
    trainer.total_training_steps="$GRPO_STEPS"
)

stage data bash "example/data_preprocess/$DATASET.sh" --plot small ${OPTIONS[@]+"${OPTIONS[@]}"}
ROWS=$(python -c "import pyarrow.parquet as p, sys; print(p.read_metadata(sys.argv[1]).num_rows)" "$DATA/sft.parquet")
BATCH="${BATCH:-$((ROWS < 32 ? ROWS : 32))}" # sft.parquet has the rows of train.parquet
STEPS=$((ROWS * 20 / BATCH)) # 20 epochs of the warm start's batches
SFT_STEPS="${SFT_STEPS:-$((STEPS < 200 ? 200 : STEPS > 600 ? 600 : STEPS))}"
stage model timemaster tiny "$OUT/tiny" --text-from "$DATA/sft.parquet"
export MODEL_PATH="$OUT/tiny"
stage sft bash "example/sft_trainer/run_$DATASET.sh" "${TINY[@]}" data.train_batch_size="$BATCH" actor.optim.lr=7e-4 \
    trainer.default_local_dir="$OUT/sft" trainer.total_training_steps="$SFT_STEPS" ${SHARED[@]+"${SHARED[@]}"}
export MODEL_PATH="$OUT/sft/global_step_$SFT_STEPS/huggingface"
GRPO=("${TINY[@]}" "${GRPO[@]}" data.train_batch_size="$BATCH" actor.ppo_mini_batch_size="$BATCH"
    ${SETTINGS[@]+"${SETTINGS[@]}"})
stage grpo bash "example/grpo_trainer/run_$DATASET.sh" "${GRPO[@]}"
stage evaluation env EVAL=True bash "example/grpo_trainer/run_$DATASET.sh" "${GRPO[@]}" \
    'eval.checkpoint=[base,latest]' eval.blank_images="$BLANK"
stage summary timemaster summary "$OUT"
