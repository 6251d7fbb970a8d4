#!/usr/bin/env bash
# GRPO on EMG with the published settings. Variables and examples: published.sh in this folder.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/grpo_trainer/published.sh

grpo emg "$@"
