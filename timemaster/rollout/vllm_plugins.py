"""What runs inside vLLM's own worker processes: the ban on vision tokens, and the wire that needs no GPU.

vLLM imports this module in every worker because `worker_extension_cls` names a class in it. The wire must be
registered at this import, before the model loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstRunnerProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondRunnerProcessor

from timemaster.models.vision import vision_spec
from timemaster.rollout.wire import Chunk, unpack


class WorkerExtension:
    """Methods added to vLLM's workers. Because vLLM is given its name, it imports this module in each worker."""

    model_runner: Any

    def own_head(self, language_model: str) -> bool:
        """Whether the head has a weight of its own. On CPU a tied head has one too: a copy, packed for the kernel.

        `language_model`: path of the module in vLLM's model that has the head, see `Family.vllm_language_model`.
        """
        model: Any = self.model_runner.get_model().get_submodule(language_model)
        return hasattr(model.lm_head, "cpu_linear") or model.lm_head.weight is not model.model.embed_tokens.weight

    @torch.no_grad()
    def wipe_weights(self, preserve: list[str]) -> None:
        """Set every parameter to zero whose name matches none of the patterns in `preserve`."""
        for name, parameter in self.model_runner.get_model().named_parameters():
            if not any(fnmatch(name, pattern) for pattern in preserve):
                parameter.zero_()


class BanVisionTokens(FirstRunnerProcessor, SecondRunnerProcessor):
    """Forbids sampling the vision tokens, in every request.

    vLLM has two model runners, each with its own interface; the second is used where Triton works, on GPUs. This
    class has both interfaces.
    """

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool = False) -> None:
        """`where`: the device (first runner), or the state of the requests (second)."""
        # A list, not a tensor: vLLM allocates tensors here in its pool for weights, which a level-2 sleep discards.
        self._banned = vision_spec(vllm_config.model_config.hf_config.to_dict(), 0, 0).banned_token_ids

    def apply(self, logits: torch.Tensor, context: Any = None) -> torch.Tensor:
        for token in self._banned:
            logits[..., token] = float("-inf")
        return logits

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        pass


@dataclass
class ChunkInfo(WeightTransferUpdateInfo):
    """One chunk of weights."""

    chunk: Chunk


class ObjectStoreEngine(WeightTransferEngine):
    """Receives chunks of tensors as plain arguments: through Ray's object store, or in process."""

    init_info_cls = WeightTransferInitInfo
    update_info_cls = ChunkInfo

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        pass  # nothing to open

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # the base would synchronise an accelerator

    def receive_weights(self, update_info: ChunkInfo) -> None:
        self.model.load_weights(unpack(update_info.chunk))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


if "object_store" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("object_store", ObjectStoreEngine)
