#!/usr/bin/env bash
# HAR: 2.56 seconds of a phone's acceleration -> one of six activities. Makes data/har_image/.
#
#   bash example/data_preprocess/har.sh                 # fetches the archive from UCI
#   bash example/data_preprocess/har.sh --source DIR    # or its folder or zip
#   bash example/data_preprocess/har.sh --plot small    # for the tiny model, into data/har_small/
#   bash example/data_preprocess/har.sh --help          # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.har "$@"
