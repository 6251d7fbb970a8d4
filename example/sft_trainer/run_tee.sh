#!/usr/bin/env bash
# Supervised warm start on TEE: demonstrations of the deterministic explainer (data/tee_image/sft.parquet).
#
#   bash example/sft_trainer/run_tee.sh
#   MODEL_PATH=... NUM_GPUS=4 bash example/sft_trainer/run_tee.sh data.train_batch_size=64   # further overrides last
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
DATA="${DATA:-data/tee_image}"
NUM_GPUS="${NUM_GPUS:-1}"
NUM_NODES="${NUM_NODES:-1}"

python -m timemaster.sft \
    data.recipes=recipes.tee \
    data.train_files="$DATA/sft.parquet" \
    data.train_batch_size=32 \
    data.max_prompt_length=1024 \
    data.max_response_length=1024 \
    model.path="$MODEL_PATH" \
    actor.optim.lr=1e-5 \
    actor.optim.lr_scheduler_type=cosine \
    trainer.project_name=TimeMaster_TEE \
    trainer.experiment_name=qwen2.5_vl_3b_sft \
    trainer.n_gpus_per_node="$NUM_GPUS" \
    trainer.nnodes="$NUM_NODES" \
    trainer.total_epochs=3 \
    "$@"
