# Sourced by run_<dataset>.sh: GRPO with the settings published for CTU at 3B on 4 GPUs (batch 64, 5 answers, 300
# steps).
#
#   NUM_GPUS=4 bash example/grpo_trainer/run_ecg.sh                  # RL from the base model
#   MODEL_PATH=checkpoints/TimeMaster_ECG/qwen2.5_vl_3b_sft/global_step_<N>/huggingface NAME=qwen2.5_vl_3b_grpo_sft_rl \
#       NUM_GPUS=4 bash example/grpo_trainer/run_ecg.sh              # RL after SFT
#   EVAL=True bash example/grpo_trainer/run_ecg.sh                   # evaluation of the run's latest checkpoint
#   bash example/grpo_trainer/run_ecg.sh rollout.n=8                 # further settings at the end
#
# Variables:
#   MODEL_PATH            model to train: a folder or a hub id
#   NAME, VARIANT         the run's folder is checkpoints/TimeMaster_<DATASET>/<NAME>_<VARIANT>/. VARIANT=paper (default)
#                         takes the KL coefficient of the paper, VARIANT=script that of the released script
#   DATA                  folder made by example/data_preprocess/<dataset>.sh
#   NUM_GPUS, NUM_NODES   GPUs of each machine, number of machines
#   EVAL                  True: evaluate on test.parquet instead of training

EVAL="${EVAL:-False}"
MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
NAME="${NAME:-qwen2.5_vl_3b_grpo_rl}"
VARIANT="${VARIANT:-paper}"
NUM_GPUS="${NUM_GPUS:-1}"
NUM_NODES="${NUM_NODES:-1}"
case "$VARIANT" in paper) KL=0.001 ;; script) KL=0.01 ;; *) stop "VARIANT=$VARIANT; paper and script are known" ;; esac

grpo() { # dataset, settings (the last one of a key counts). Does not return: exec, so that signals reach the program
    local dataset="$1" data="${DATA:-data/$1_image}"
    shift
    exec timemaster grpo \
        data.recipes="recipes.$dataset" \
        data.train_files="$data/train.parquet" \
        data.val_files="$data/validation.parquet" \
        data.test_files="$data/test.parquet" \
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
        trainer.project_name="TimeMaster_$(echo "$dataset" | tr '[:lower:]' '[:upper:]')" \
        trainer.experiment_name="${NAME}_$VARIANT" \
        trainer.n_gpus_per_node="$NUM_GPUS" \
        trainer.nnodes="$NUM_NODES" \
        trainer.save_freq=100 \
        trainer.test_freq=5 \
        trainer.val_before_train=True \
        trainer.total_training_steps=300 \
        trainer.val_only="$EVAL" \
        "$@"
}
