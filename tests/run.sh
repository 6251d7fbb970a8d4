#!/usr/bin/env bash
# Sets up the environment if needed, then style, types and tests. Arguments go to pytest: -k losses, tests/unit
set -euo pipefail
source "$(dirname "$0")/../example/setup_env.sh"
bash tests/chromium.sh
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
