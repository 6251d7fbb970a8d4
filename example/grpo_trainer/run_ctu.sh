#!/usr/bin/env bash
# GRPO on CTU with the published settings (3B on 4 GPUs, batch 64, 5 answers). VARIANT=paper takes the paper's KL
# coefficient, VARIANT=script that of the released script. EVAL=True evaluates data/ctu_image/test.parquet with the
# latest checkpoint of the run, or with MODEL_PATH itself: eval.checkpoint=base.
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_ctu.sh                                  # SFT (the released model), then RL
#   MODEL_PATH=Qwen/Qwen2.5-VL-3B-Instruct NUM_GPUS=4 bash example/grpo_trainer/run_ctu.sh \
#       trainer.experiment_name=qwen2.5_vl_3b_grpo_rl                                 # RL alone, in a folder of its own
#   EVAL=True bash example/grpo_trainer/run_ctu.sh
#   bash example/grpo_trainer/run_ctu.sh rollout.n=8                                  # further overrides at the end
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

EVAL="${EVAL:-False}"
MODEL_PATH="${MODEL_PATH:-checkpoints/TimeMaster-SFT-Qwen2.5-VL-3B-CTU}"
DATA="${DATA:-data/ctu_image}"
NUM_GPUS="${NUM_GPUS:-1}"
NUM_NODES="${NUM_NODES:-1}"
VARIANT="${VARIANT:-paper}"
case "$VARIANT" in paper) KL=0.001 ;; script) KL=0.01 ;; *) stop "VARIANT=$VARIANT; paper and script are known" ;; esac

python -m timemaster.grpo \
    data.recipes=recipes.ctu \
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
    trainer.project_name=TimeMaster_CTU \
    trainer.experiment_name="qwen2.5_vl_3b_grpo_sft_rl_$VARIANT" \
    trainer.n_gpus_per_node="$NUM_GPUS" \
    trainer.nnodes="$NUM_NODES" \
    trainer.save_freq=100 \
    trainer.test_freq=5 \
    trainer.val_before_train=True \
    trainer.total_epochs=100 \
    trainer.val_only="$EVAL" \
    "$@"
