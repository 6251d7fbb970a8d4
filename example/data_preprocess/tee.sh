#!/usr/bin/env bash
# TEE: 800 microseconds of lightning, seen by a satellite -> one of seven kinds. Makes data/tee_image/.
# Fetches Lightning7.zip from the UCR archive, or reads --source.
# Options: --help. Sources: recipes/tee.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.tee "$@"
