#!/usr/bin/env bash
# EMG: 0.375 seconds of a needle electromyogram -> healthy, myopathy or neuropathy. Makes data/emg_image/.
# Fetches three recordings from PhysioNet, or reads --source.
# Options: --help. Sources: recipes/emg.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.emg "$@"
