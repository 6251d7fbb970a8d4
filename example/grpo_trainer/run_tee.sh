#!/usr/bin/env bash
# GRPO on TEE with the published settings, but half the batch size: there are only 63 training rows.
# Variables and examples: published.sh in this folder.
set -euo pipefail
source "$(dirname "$0")/../setup_env.sh"
source example/grpo_trainer/published.sh

grpo tee data.train_batch_size=32 actor.ppo_mini_batch_size=16 "$@"
