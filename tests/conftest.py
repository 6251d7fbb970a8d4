"""Shared pieces: a tiny model, small data, one process group and one vLLM engine for the whole session."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as in the engines' processes on CPU
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import pytest

from timemaster.config import Config
from timemaster.rollout.engine import EngineSpec

ROOT = Path(__file__).resolve().parent.parent
# Real recordings, see CONTRIBUTING.md. Tests that need them skip where they are not there.
SOURCES = ROOT / "data" / "sources"
SHARED_DATA = Path(
    os.environ.get("TIMEMASTER_TEST_DATA") or (SOURCES if SOURCES.is_dir() else ROOT.parent / "shared" / "data")
)
MIN_PIXELS, MAX_PIXELS = 784, 50176


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded default model with random weights, and with sampling defaults as published models have them."""
    from timemaster.models.tiny import write_tiny

    folder = write_tiny(tmp_path_factory.mktemp("model") / "tiny")
    path = folder / "generation_config.json"
    defaults = {"repetition_penalty": 1.3, "temperature": 0.1, "top_p": 0.5, "top_k": 5, "do_sample": True}
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | defaults), encoding="utf-8"
    )  # an engine must not follow them
    return str(folder)


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """A gloo group of one rank in this process. A vLLM engine takes the group down with it when it goes."""
    import torch.distributed as dist

    from timemaster.backends.fsdp import init_distributed

    if dist.is_initialized():
        dist.destroy_process_group()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    init_distributed(0, 1, "127.0.0.1", port, "cpu", 0)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def cfg(tiny: str) -> Config:
    """A configuration for the tiny model."""
    config = Config()
    config.model.path = tiny
    config.model.enable_gradient_checkpointing = False
    config.data.min_pixels, config.data.max_pixels = MIN_PIXELS, MAX_PIXELS
    config.actor.optim.lr = 1e-3
    return config


def spec_for(model: str, stop: int) -> EngineSpec:
    """Engine settings for a tiny model on CPU."""
    return EngineSpec(
        model_path=model,
        dtype="float32",
        head_dtype="model",
        device="cpu",
        wire="object_store",
        stop_token_ids=[stop],
        max_model_len=256,
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
        max_images=2,
        tensor_parallel=1,
        gpu_memory_utilization=0.5,
        cpu_kv_cache_gib=0.25,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        enforce_eager=True,
        sleep_level=0,
        preserve=[],
    )
