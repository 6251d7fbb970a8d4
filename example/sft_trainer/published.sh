# Sourced by run_<dataset>.sh: a supervised warm start of the 3B model with the explainer's demonstrations.
#
#   MODEL_PATH      the model that is trained: a folder or a hub id
#   DATA            the folder of example/data_preprocess/<dataset>.sh
#   NUM_GPUS, NUM_NODES   GPUs of a machine, machines

MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-VL-3B-Instruct}"
NUM_GPUS="${NUM_GPUS:-1}"
NUM_NODES="${NUM_NODES:-1}"

sft() { # dataset, settings: those given last count. Does not return: python takes the place, and signals, of bash
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
