#!/usr/bin/env bash
# GRPO on RCW with the settings published for CTU at 3B on 4 GPUs, for as many steps. VARIANT=paper takes the paper's KL
# coefficient, VARIANT=script that of the released script. EVAL=True evaluates data/rcw_image/test.parquet with the
# latest checkpoint of the run, or with MODEL_PATH itself: eval.checkpoint=base.
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_rcw.sh                      # RL from the base model
#   MODEL_PATH=checkpoints/TimeMaster_RCW/qwen2.5_vl_3b_sft/global_step_<N>/huggingface NUM_GPUS=4 \
#       bash example/grpo_trainer/run_rcw.sh \
#       trainer.experiment_name=qwen2.5_vl_3b_grpo_sft_rl                # SFT, then RL, in a folder of its own
#   EVAL=True bash example/grpo_trainer/run_rcw.sh
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

EVAL="${EVAL:-False}"
MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
DATA="${DATA:-data/rcw_image}"
NUM_GPUS="${NUM_GPUS:-1}"
NUM_NODES="${NUM_NODES:-1}"
VARIANT="${VARIANT:-paper}"
case "$VARIANT" in paper) KL=0.001 ;; script) KL=0.01 ;; *) stop "VARIANT=$VARIANT; paper and script are known" ;; esac

python -m timemaster.grpo \
    data.recipes=recipes.rcw \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/validation.parquet" \
    data.test_files="$DATA/test.parquet" \
    data.train_batch_size=64 \
    data.max_prompt_length=1024 \
    data.max_response_length=1024 \
    model.path="$MODEL_PATH" \
    actor.optim.lr=1e-6 \
    actor.ppo_mini_batch_size=32 \
    actor.use_kl_loss=True \
    actor.kl_loss_coef="$KL" \
    actor.entropy_coeff=0.001 \
    rollout.name=auto \
    rollout.n=5 \
    rollout.gpu_memory_utilization=0.6 \
    trainer.project_name=TimeMaster_RCW \
    trainer.experiment_name="qwen2.5_vl_3b_grpo_rl_$VARIANT" \
    trainer.n_gpus_per_node="$NUM_GPUS" \
    trainer.nnodes="$NUM_NODES" \
    trainer.save_freq=100 \
    trainer.test_freq=5 \
    trainer.val_before_train=True \
    trainer.total_training_steps=300 \
    trainer.val_only="$EVAL" \
    "$@"
