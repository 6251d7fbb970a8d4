#!/usr/bin/env bash
# What only a GPU can tell, in at most 6 minutes on one of 80 GB: log-prob differences with both heads, attention back
# ends, sleep and wake, a push of weights, memory against the estimate, two GRPO steps and a resume. Prints a table and
# writes checkpoints/gpu_smoke.json. Arguments: see benchmarks/gpu_smoke.py.
#
#   bash benchmarks/gpu_smoke.sh
#   bash benchmarks/gpu_smoke.sh --model Qwen/Qwen2.5-VL-3B-Instruct --only head_float32,head_model
#   bash benchmarks/gpu_smoke.sh --device cpu --model tiny
set -euo pipefail
source "$(dirname "$0")/../example/setup_env.sh"
exec python benchmarks/gpu_smoke.py "$@"
