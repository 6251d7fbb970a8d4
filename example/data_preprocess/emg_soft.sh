#!/usr/bin/env bash
# EMG with advice that a judge grades: the series of emg.sh with another question. Makes data/emg_soft_image/.
# Fetches three recordings from PhysioNet, or reads --source.
# Options: --help. Sources: recipes/emg.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.emg_soft "$@"
