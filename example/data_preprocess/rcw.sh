#!/usr/bin/env bash
# RCW: 2 seconds of underwater sound -> the call of a right whale, or none. Makes data/rcw_image/.
#
#   bash example/data_preprocess/rcw.sh --source whale_data.zip                 # from Kaggle, with a login; or its folder
#   bash example/data_preprocess/rcw.sh --source whale_data.zip --plot small    # for the tiny model, into data/rcw_small/
#   bash example/data_preprocess/rcw.sh --help                                  # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.rcw "$@"
