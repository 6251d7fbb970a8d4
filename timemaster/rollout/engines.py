"""Choosing an engine by name: vLLM, or transformers' generate where vLLM does not install."""

from __future__ import annotations

import importlib.util
import logging
from pkgutil import resolve_name

from timemaster.config.registries import ENGINES
from timemaster.rollout.engine import Engine, EngineSpec
from timemaster.types import InputError

log = logging.getLogger(__name__)


def resolve_engine(name: str) -> str:
    """rollout.name as "vllm" or "hf"; `auto` falls back to hf with a warning. InputError if "vllm" is not installed."""
    have_vllm = importlib.util.find_spec("vllm") is not None
    if name == "auto":
        if not have_vllm:
            log.warning("rollout.name=auto: vLLM is not installed, sampling with transformers' generate (hf), slower.")
        return "vllm" if have_vllm else "hf"
    if name == "vllm" and not have_vllm:
        raise InputError(
            "rollout.name=vllm, but vLLM is not installed. Install it (uv pip install -r requirements-cpu.txt, or "
            "requirements-gpu.txt), or set rollout.name=auto to sample with transformers where it does not install."
        )
    return name


def preload(name: str, device: str) -> None:
    """Import what the engine needs. It takes up to half a minute, in which the driver can read data."""
    if name == "vllm":
        from timemaster.rollout.vllm import quiet_environment

        quiet_environment()
        if device == "cpu":  # never import this one on a GPU: it replaces parts of torch.cuda by stand-ins
            import vllm.v1.worker.cpu_worker
        else:
            import vllm  # noqa: F401
    resolve_name(ENGINES[name])


def make_engine(name: str, spec: EngineSpec) -> Engine:
    """Start the engine that `ENGINES` has under `name`."""
    return resolve_name(ENGINES[name])(spec)
