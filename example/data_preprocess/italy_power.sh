#!/usr/bin/env bash
# ItalyPowerDemand: one day of electricity demand -> winter or summer. Makes data/italy_power_image/.
# The series are part of sktime: no download.
# Options: --help. Sources: recipes/italy_power.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.italy_power "$@"
