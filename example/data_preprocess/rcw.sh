#!/usr/bin/env bash
# RCW: 2 seconds of underwater sound -> the call of a right whale, or none. Makes data/rcw_image/.
# Kaggle requires a login, so name the file that you downloaded: --source whale_data.zip
# Options: --help. Sources: recipes/rcw.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.rcw "$@"
