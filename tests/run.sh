#!/usr/bin/env bash
# Sets up the environment if needed, then style, types and tests. Arguments go to pytest: bash tests/run.sh -k losses
set -euo pipefail
source "$(dirname "$0")/../example/setup_env.sh"
cd "$ROOT"
ruff check .
ruff format --check .
mypy
python -m pytest tests "$@"
