"""The vLLM engine. vllm is imported here and in vllm_plugins.py only.

In-process `LLM` (no second engine process), one request per prompt with `n` answers, log-probs of the policy that
really sampled (`processed_logprobs`), vision tokens banned, weights through vLLM's weight-transfer interface.
Run on CPU: everything with wire "object_store". Written from vLLM's documentation and not yet run on a GPU: wires
"ipc" and "nccl", sleep, tensor parallel.
"""

from __future__ import annotations

import glob
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from timemaster.media.images import load_image
from timemaster.models.folder import load_model_config
from timemaster.models.vision import vision_spec
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.wire import Arrivals
from timemaster.types import Completion, Prompt, Sampling


def quiet_environment() -> None:
    """Set the environment variables that vLLM reads at import. It logs errors only, so that our log stays readable."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    warnings.filterwarnings("ignore", module="vllm|transformers|torch")


@contextmanager
def without_odd_modules() -> Iterator[None]:
    """Hide modules that hold an object whose `__dict__` is not a dict, such as llvmlite's library, loaded by numba.

    When vLLM starts, it inspects the values of all modules and fails on such an object.
    """
    hidden = {name: module for name, module in list(sys.modules.items()) if any(map(_is_odd, _values(module)))}
    for name in hidden:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(hidden)


def _values(module: Any) -> list[Any]:
    names = getattr(module, "__dict__", None)
    return list(names.values()) if isinstance(names, Mapping) else []


def _is_odd(value: Any) -> bool:
    return hasattr(value, "__dict__") and not hasattr(vars(value), "get")


def without_wildcards(path: str, link_folder: str) -> str:
    """`path`, or a link to it in `link_folder` if it has *, ? or [, because vLLM finds weights by a glob pattern."""
    if not os.path.isdir(path) or glob.escape(path) == path:
        return path
    link = os.path.join(link_folder, "model")
    os.symlink(os.path.abspath(path), link)
    return link


class VllmEngine:
    """See `timemaster.rollout.engine.Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        quiet_environment()
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        self._spec = spec
        self._link_folder = tempfile.TemporaryDirectory(prefix="timemaster-")  # for as long as the engine lives
        self._vision = vision_spec(load_model_config(spec.model_path), spec.min_pixels, spec.max_pixels)
        device_args: dict[str, Any] = {"gpu_memory_utilization": spec.gpu_memory_utilization}
        if spec.device == "cpu":
            device_args = {"kv_cache_memory_bytes": int(spec.cpu_kv_cache_gib * 2**30)}
        if spec.sleep_level:
            device_args |= {"enable_sleep_mode": True, "sleep_preserve_parameter_names": spec.preserve}
        if spec.tensor_parallel > 1:
            device_args |= {"tensor_parallel_size": spec.tensor_parallel, "distributed_executor_backend": "mp"}
        start = partial(
            LLM,
            model=without_wildcards(spec.model_path, self._link_folder.name),
            dtype=spec.dtype,
            hf_overrides={"head_dtype": spec.head_dtype},
            max_model_len=spec.max_model_len,
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=max(spec.max_num_batched_tokens, spec.max_model_len),
            enforce_eager=spec.enforce_eager or spec.device == "cpu",
            enable_chunked_prefill=spec.device
            != "cpu",  # vLLM's CPU build cannot rewind the generator of a seeded request
            limit_mm_per_prompt={"image": max(spec.max_images, 1), "video": 0},
            mm_processor_kwargs={"size": self._vision.family.processor_size(spec.min_pixels, spec.max_pixels)},
            mm_device_do_normalize=False,
            logprobs_mode="processed_logprobs",
            logits_processors=["timemaster.rollout.vllm_plugins:BanVisionTokens"],
            worker_extension_cls="timemaster.rollout.vllm_plugins.WorkerExtension",
            weight_transfer_config=WeightTransferConfig(backend=spec.wire),
            generation_config="vllm",
            disable_log_stats=True,
        )
        with without_odd_modules():
            self._llm = start(**device_args)
        logging.getLogger("vllm").setLevel(logging.ERROR)
        self._prompts: dict[str, list[int]] = {}
        self._arrivals = Arrivals(spec.model_path, self.own_head(), spec.preserve)

    def submit(self, key: str, prompt: Prompt, sampling: Sampling) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self._llm.llm_engine.is_sleeping():
            raise RuntimeError(f"{key}: vLLM sleeps and would never answer")
        params = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop_token_ids=self._spec.stop_token_ids,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,  # the tokens of the stop string, too
            logprobs=0,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request: dict[str, Any] = {"prompt_token_ids": self._collapse(prompt.token_ids)}
        if prompt.media:
            request["multi_modal_data"] = {"image": [load_image(item) for item in prompt.media]}
            request["multi_modal_uuids"] = {"image": [item.uid for item in prompt.media]}
        self._prompts[key] = prompt.token_ids
        self._llm.llm_engine.add_request(key, request, params)

    def _collapse(self, token_ids: list[int]) -> list[int]:
        """One placeholder per image, as vLLM expects; it expands them again."""
        out: list[int] = []
        for token in token_ids:
            if token != self._vision.image_token_id or not out or out[-1] != token:
                out.append(token)
        return out

    def step(self) -> list[tuple[str, list[Completion]]]:
        finished = []
        for output in self._llm.llm_engine.step():
            if not output.finished:
                continue
            expected = self._prompts.pop(output.request_id)
            if output.prompt_token_ids != expected:
                raise RuntimeError(
                    f"{output.request_id}: vLLM sees {len(output.prompt_token_ids)} prompt tokens, the trainer "
                    f"{len(expected)}: image sizes or pixel limits differ between them"
                )
            finished.append((output.request_id, [_completion(answer) for answer in output.outputs]))
        return finished

    def busy(self) -> bool:
        return self._llm.llm_engine.has_unfinished_requests()

    def abort(self, keys: Sequence[str]) -> None:
        self._llm.llm_engine.abort_request(list(keys))
        for key in keys:
            del self._prompts[key]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def own_head(self) -> bool:
        return any(self._llm.collective_rpc("own_head", args=(self._vision.family.vllm_language_model,)))

    def start_weight_update(self) -> None:
        self._llm.start_weight_update()
        self._arrivals.begin()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._arrivals.add(update_info)
        self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self) -> None:
        self._arrivals.check()
        self._llm.finish_weight_update()
        # All three are needed: scheduler and worker must both drop what was computed with the old weights.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache after an update of weights: requests are still running")
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def checksums(self) -> dict[str, str]:
        parts = self._llm.collective_rpc("compute_weight_checksums")
        return {name: digest for part in parts for name, digest in part.items()}

    def wipe_weights(self) -> None:
        self._llm.collective_rpc("wipe_weights", args=(self._spec.preserve,))

    def sleep(self) -> None:
        if self._spec.sleep_level:
            self._llm.sleep(level=self._spec.sleep_level)

    def wake(self, tags: list[str]) -> None:
        if self._spec.sleep_level and not self._llm.wake_up(tags) and "kv_cache" in tags:
            raise RuntimeError("vLLM has not woken up: its weights must be woken before its KV cache")


def _completion(answer: Any) -> Completion:
    token_ids = list(answer.token_ids)
    logprobs = [step[token].logprob for step, token in zip(answer.logprobs, token_ids, strict=True)]
    stop = answer.stop_reason if isinstance(answer.stop_reason, str) else ""  # else the id of a token, or None
    reason = "stop_string" if stop else answer.finish_reason
    return Completion(token_ids=token_ids, logprobs=logprobs, finish_reason=reason, stop=stop)


def gpu_sender(wire: str, rank: int, client: Any, weights: Any, meta: list[Any], init: dict[str, Any]) -> Any:
    """vLLM's own sender for wires "ipc" and "nccl" on a trainer rank; call `send_weights()` on every rank together.

    `weights()` yields layers of (name, full tensor); `meta` lists (name, dtype, shape) in the same order.
    """
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    class Source(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, dtype, shape) for name, dtype, shape in meta]

        def __iter__(self) -> Any:
            for layer in weights():
                yield from layer

    # The packed buffer must hold the largest tensor: the default of 1 GiB is too small for the 7B model's embeddings.
    largest = max(dtype.itemsize * math.prod(shape) for _, dtype, shape in meta)
    sizes = {"packed": True, "packed_buffer_size_bytes": max(1 << 30, largest)}
    info_cls = IPCTrainerInitInfo if wire == "ipc" else NCCLTrainerInitInfo
    return WeightTransferTrainerFactory.trainer_init(
        info_cls(**init, **sizes, rank=rank), client=client, source=Source()
    )
