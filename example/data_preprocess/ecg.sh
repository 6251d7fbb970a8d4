#!/usr/bin/env bash
# ECG: 5 seconds of an electrocardiogram -> normal rhythm, atrial fibrillation, other, noise. Makes data/ecg_image/.
# Fetches training2017.zip from PhysioNet, or reads --source.
# Options: --help. Sources: recipes/ecg.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.ecg "$@"
