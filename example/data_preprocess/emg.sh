#!/usr/bin/env bash
# EMG: 0.375 seconds of a needle electromyogram -> healthy, myopathy or neuropathy. Makes data/emg_image/.
#
#   bash example/data_preprocess/emg.sh                 # fetches the three recordings from PhysioNet
#   bash example/data_preprocess/emg.sh --source DIR    # or TF-C's .pt files, or EMG_TRAIN.ts and _TEST.ts
#   bash example/data_preprocess/emg.sh --plot small    # for the tiny model, into data/emg_small/
#   bash example/data_preprocess/emg.sh --help          # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.emg "$@"
