#!/usr/bin/env bash
# ECG: 5 seconds of an electrocardiogram -> normal rhythm, atrial fibrillation, other, noise. Makes data/ecg_image/.
#
#   bash example/data_preprocess/ecg.sh                 # fetches training2017.zip from PhysioNet
#   bash example/data_preprocess/ecg.sh --source DIR    # or its folder, or TF-C's .pt files
#   bash example/data_preprocess/ecg.sh --plot small    # for the tiny model, into data/ecg_small/
#   bash example/data_preprocess/ecg.sh --help          # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.ecg "$@"
