#!/usr/bin/env bash
# TEE: 800 microseconds of lightning, seen by a satellite -> one of seven kinds. Makes data/tee_image/.
#
#   bash example/data_preprocess/tee.sh                 # fetches Lightning7.zip from the UCR archive
#   bash example/data_preprocess/tee.sh --source DIR    # reads Lightning7_TRAIN.ts and Lightning7_TEST.ts in DIR
#   bash example/data_preprocess/tee.sh --plot small    # for the tiny model, into data/tee_small/
#   bash example/data_preprocess/tee.sh --help          # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.tee "$@"
