#!/usr/bin/env bash
# HAR: 2.56 seconds of a phone's acceleration -> one of six activities. Makes data/har_image/.
# Fetches the archive from UCI, or reads --source.
# Options: --help. Sources: recipes/har.py. Examples: docs/data.md.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"

exec timemaster prepare recipes.har "$@"
