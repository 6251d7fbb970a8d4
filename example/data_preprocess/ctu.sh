#!/usr/bin/env bash
# CTU: one day of a computer's electricity use, plotted -> desktop or laptop. Makes data/ctu_image/.
#
#   bash example/data_preprocess/ctu.sh                 # fetches Computers.zip from the UCR archive
#   bash example/data_preprocess/ctu.sh --source DIR    # reads Computers_TRAIN.ts and Computers_TEST.ts in DIR
#   bash example/data_preprocess/ctu.sh --plot small    # for the tiny model, into data/ctu_small/
#   bash example/data_preprocess/ctu.sh --help          # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.ctu "$@"
