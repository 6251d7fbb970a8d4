# Sourced by run_<dataset>.sh: supervised warm start of the 3B model with demonstrations
# (data/<dataset>_image/sft.parquet).
#
#   bash example/sft_trainer/run_ctu.sh
#   MODEL_PATH=... NUM_GPUS=4 bash example/sft_trainer/run_ctu.sh data.train_batch_size=64   # further settings at the end
#
# Variables:
#   MODEL_PATH            model to train: a folder or a hub id
#   DATA                  folder made by example/data_preprocess/<dataset>.sh
#   NUM_GPUS, NUM_NODES   GPUs of each machine, number of machines

MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
NUM_GPUS="${NUM_GPUS:-1}"
NUM_NODES="${NUM_NODES:-1}"

sft() { # dataset, settings (the last one of a key counts). Does not return: exec, so that signals reach the program
    local dataset="$1" data="${DATA:-data/$1_image}"
    shift
    exec timemaster sft \
        data.recipes="recipes.$dataset" \
        data.train_files="$data/sft.parquet" \
        data.train_batch_size=32 \
        data.max_prompt_length=1024 \
        data.max_response_length=1024 \
        model.path="$MODEL_PATH" \
        actor.optim.lr=1e-5 \
        actor.optim.lr_scheduler_type=cosine \
        trainer.project_name="TimeMaster_$(echo "$dataset" | tr '[:lower:]' '[:upper:]')" \
        trainer.experiment_name=qwen2.5_vl_3b_sft \
        trainer.n_gpus_per_node="$NUM_GPUS" \
        trainer.nnodes="$NUM_NODES" \
        trainer.total_epochs=3 \
        "$@"
}
