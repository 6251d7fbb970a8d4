#!/usr/bin/env bash
# Supervised warm start on TEE. Variables and examples: published.sh in this folder.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/sft_trainer/published.sh

sft tee "$@"
