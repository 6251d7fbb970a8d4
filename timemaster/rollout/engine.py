"""What every engine can do: tokens in, tokens out, load weights, sleep, wake.

An engine knows nothing of text, rewards, groups or training. It is driven by steps, so that a caller can score finished
answers and submit next turns while other sequences are still being decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from timemaster.types import Completion, Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything an engine needs to start. Example: EngineSpec(model_path="checkpoints/tiny", dtype="float32", ...)"""

    model_path: str
    dtype: str  # "float32" or "bfloat16"
    head_dtype: str  # of logits: "float32", or "model" for that of the weights
    device: str  # "cpu" or "cuda"
    wire: str  # how weights arrive: "object_store", "ipc" or "nccl"
    stop_token_ids: list[int]  # end of turn
    max_model_len: int  # tokens, prompt and answer
    min_pixels: int
    max_pixels: int
    max_images: int  # most images in one sequence
    tensor_parallel: int
    gpu_memory_utilization: float
    cpu_kv_cache_gib: float
    max_num_seqs: int
    max_num_batched_tokens: int
    enforce_eager: bool
    sleep_level: int  # colocated on GPU: 1 keeps the weights in host memory, 2 drops them; 0 never sleeps
    preserve: list[str]  # names of weights that are never sent and must survive sleep


class Engine(Protocol):
    """The protocol. `init_weight_transfer_engine` to `finish_weight_update` are vLLM's own weight-transfer verbs."""

    def submit(self, key: str, prompt: Prompt, sampling: Sampling) -> None:
        """Queue a prompt; its `sampling.n` answers come back together under `key`.

        Answer k is sampled with seed `sampling.seed` + k, whatever else the engine decodes at the time.
        """

    def step(self) -> list[tuple[str, list[Completion]]]:
        """Decode a little. Returns the requests that are finished, by key. Call it while `busy`."""

    def busy(self) -> bool:
        """Whether any request is unfinished."""

    def abort(self, keys: Sequence[str]) -> None:
        """Drop unfinished requests: nothing comes back for them."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Open the connection by which weights arrive."""

    def start_weight_update(self) -> None:
        """Begin to receive a full set of weights."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one chunk."""

    def finish_weight_update(self) -> None:
        """Sample with the received weights from now on; all caches of the old weights are dropped.

        Raises InputError, and leaves the update unfinished, when a weight has not arrived.
        """

    def own_head(self) -> bool:
        """Whether updates must bring the head's weight even when it is tied to the embeddings."""

    def checksums(self) -> dict[str, str]:
        """A digest per weight, to compare before and after an update."""

    def wipe_weights(self) -> None:
        """Set all weights that updates bring to zero, to prove that the next update brings all of them."""

    def sleep(self) -> None:
        """Give device memory back."""

    def wake(self, tags: list[str]) -> None:
        """Allocate device memory again. `tags`: "weights", "kv_cache" or both; weights first."""
