#!/usr/bin/env bash
# Sets up the environment if needed, then checks style and types and runs tests.
#
#   bash tests/run.sh              all tests, two at a time
#   bash tests/run.sh --quick      the tests to run after each edit. Left out are tests/e2e (whole runs on Ray, a judge's
#                                  server, the report in a browser), tests/engine (vLLM against the trainer), and the
#                                  tests marked `slow` (they start Ray or vLLM, or take many seconds)
#   bash tests/run.sh ARGUMENTS    the tests that pytest selects by these arguments, one at a time: -k losses, tests/unit
set -euo pipefail
if [ "${1:-}" = --help ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit
fi
source "$(dirname "$0")/../example/setup_env.sh"
# A file's tests stay in one process, because they share what its fixtures start. The longest file comes first.
two_at_a_time=(-n 2 --dist loadfile --no-loadscope-reorder)
if [ "${1:-}" = --quick ]; then
    set -- "${two_at_a_time[@]}" -m "not slow" tests/data tests/unit "${@:2}"
else
    bash tests/chromium.sh
    [ $# -gt 0 ] || set -- "${two_at_a_time[@]}" tests/e2e/test_training.py tests/e2e tests/engine tests/data tests/unit
fi
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
