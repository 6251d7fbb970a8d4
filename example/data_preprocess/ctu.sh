#!/usr/bin/env bash
# CTU: one day of a computer's electricity use -> desktop or laptop. Makes data/ctu_image/.
# Fetches Computers.zip from the UCR archive, or reads --source.
# Options: --help. Sources: recipes/ctu.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.ctu "$@"
