#!/usr/bin/env bash
# ItalyPowerDemand: one day of electricity demand, plotted -> winter or summer. Makes data/italy_power_image/.
#
#   bash example/data_preprocess/italy_power.sh           # sktime brings the series: no download
#   bash example/data_preprocess/italy_power.sh --help    # all options
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.italy_power "$@"
