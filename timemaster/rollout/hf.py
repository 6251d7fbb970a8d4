"""The hf engine: transformers' own `generate` on a copy of the model, for machines where vLLM does not install.

Slower than vLLM and one process only, but the same records, the same bans, the same weight-transfer verbs.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from typing import Any

import torch

from timemaster.models.folder import load_model_config
from timemaster.models.vision import PixelCache, vision_spec
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.wire import Arrivals, unpack
from timemaster.types import Completion, Prompt, Sampling


class HfEngine:
    """See `timemaster.rollout.engine.Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        from transformers import GenerationConfig

        self._spec = spec
        self._vision = vision_spec(load_model_config(spec.model_path), spec.min_pixels, spec.max_pixels)
        self._pixels = PixelCache(spec.model_path, self._vision)
        dtype = getattr(torch, spec.dtype)
        model: Any = self._vision.family.model_class().from_pretrained(spec.model_path, dtype=dtype)
        self._model = model.to(spec.device).eval()
        if spec.head_dtype == "float32":
            head = self._model.get_output_embeddings()
            head.forward = lambda hidden: torch.nn.functional.linear(hidden.float(), head.weight.float())
        self._model.generation_config = GenerationConfig()  # the folder's own may hold a repetition penalty
        self._queue: list[tuple[str, Prompt, Sampling]] = []
        self._arrivals = Arrivals(spec.model_path, self.own_head(), spec.preserve)

    def submit(self, key: str, prompt: Prompt, sampling: Sampling) -> None:
        self._queue.append((key, prompt, sampling))

    def busy(self) -> bool:
        return bool(self._queue)

    def step(self) -> list[tuple[str, list[Completion]]]:
        """Answer one batch: the head of the queue and what follows with the same sampling, seeds aside."""
        first = self._queue[0][2]
        same = (first.n, first.temperature, first.top_p, first.top_k, first.max_tokens)
        room = max(self._spec.max_num_seqs // first.n, 1)
        batch: list[tuple[str, Prompt, Sampling]] = []
        for item in self._queue[:room]:
            s = item[2]
            if (s.n, s.temperature, s.top_p, s.top_k, s.max_tokens) != same:
                break
            batch.append(item)
        self._queue = self._queue[len(batch) :]
        if first.seed is not None:
            torch.manual_seed(first.seed)
        answers = self._generate([prompt for _, prompt, _ in batch], first)
        return [(key, answers[i * first.n : (i + 1) * first.n]) for i, (key, _, _) in enumerate(batch)]

    @torch.no_grad()
    def _generate(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion]:
        pad = self._spec.stop_token_ids[0]
        longest = max(len(p.token_ids) for p in prompts)
        ids = torch.tensor([[pad] * (longest - len(p.token_ids)) + p.token_ids for p in prompts])
        attention = torch.tensor([[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts])
        media = [item for prompt in prompts for item in prompt.media]
        inputs = self._vision.family.generate_inputs(ids, self._vision)
        if media:
            pixels = [self._pixels.get(item) for item in media]
            inputs |= self._vision.family.image_inputs(pixels, media, self._vision)
        inputs = {name: value.to(self._spec.device) for name, value in inputs.items()}
        greedy = sampling.temperature == 0
        warp = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if not greedy:
            warp["top_k"] = max(sampling.top_k, 0)
        out = self._model.generate(
            input_ids=ids.to(self._spec.device),
            attention_mask=attention.to(self._spec.device),
            do_sample=not greedy,
            num_return_sequences=sampling.n,
            max_new_tokens=sampling.max_tokens,
            suppress_tokens=list(self._vision.banned_token_ids),
            eos_token_id=self._spec.stop_token_ids,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_scores=True,
            **warp,
            **inputs,
        )
        sampled = out.sequences[:, longest:]
        scores = torch.stack([torch.log_softmax(step.float(), -1) for step in out.scores], 1)
        logprobs = scores.gather(-1, sampled[..., None])[..., 0]
        return [self._completion(row.tolist(), values.tolist()) for row, values in zip(sampled, logprobs, strict=True)]

    def _completion(self, token_ids: list[int], logprobs: list[float]) -> Completion:
        stops = [i for i, token in enumerate(token_ids) if token in self._spec.stop_token_ids]
        length = stops[0] + 1 if stops else len(token_ids)
        reason = "stop" if stops else "length"
        return Completion(token_ids=token_ids[:length], logprobs=logprobs[:length], finish_reason=reason)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        if self._spec.wire != "object_store":
            raise RuntimeError(f"the hf engine receives weights by object_store only, not {self._spec.wire}")

    def own_head(self) -> bool:
        return self._model.get_output_embeddings().weight is not self._model.get_input_embeddings().weight

    def start_weight_update(self) -> None:
        self._targets = self._model.state_dict()
        self._arrivals.begin()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._arrivals.add(update_info)
        for name, tensor in unpack(update_info["chunk"]):
            self._targets[name].copy_(tensor)

    def finish_weight_update(self) -> None:
        self._arrivals.check()
        del self._targets

    def checksums(self) -> dict[str, str]:
        state = self._model.state_dict()
        return {
            name: hashlib.sha256(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
            for name, t in state.items()
        }

    def wipe_weights(self) -> None:
        for name, tensor in self._model.named_parameters():
            if not any(fnmatch(name, pattern) for pattern in self._spec.preserve):
                tensor.data.zero_()

    def sleep(self) -> None:
        """Nothing to give back: this engine is for machines that take turns in time, not in memory."""

    def wake(self, tags: list[str]) -> None:
        """See `sleep`."""
