#!/usr/bin/env bash
# EMG with advice, graded by a judge: the series of emg.sh with another question. Makes data/emg_soft_image/.
#
#   bash example/data_preprocess/emg_soft.sh                 # fetches the three recordings from PhysioNet
#   bash example/data_preprocess/emg_soft.sh --source DIR    # or TF-C's .pt files, or EMG_TRAIN.ts and _TEST.ts
#   bash example/data_preprocess/emg_soft.sh --plot small    # for the tiny model, into data/emg_soft_small/
#   bash example/data_preprocess/emg_soft.sh --help          # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.emg_soft "$@"
