"""The hf engine: transformers' own `generate` on a copy of the model, for machines where vLLM does not install.

Slower than vLLM and one process only, but the same records, the same bans, the same weight-transfer verbs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch

from timemaster.models.folder import load_model_config
from timemaster.models.vision import PixelCache, vision_spec
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.wire import Arrivals, unpack
from timemaster.tokens.render import Renderer
from timemaster.types import Completion, Prompt, Sampling


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One answer while it is sampled."""

    sampling: Sampling
    generator: torch.Generator  # its own: the answer does not depend on the rows beside it
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""  # "" while it goes on
    stop: str = ""

    def completion(self) -> Completion:
        return Completion(
            token_ids=self.token_ids, logprobs=self.logprobs, finish_reason=self.finish_reason, stop=self.stop
        )


class RowSampler:
    """Samples the next token of every row with the row's own generator and temperature, and sees where rows end.

    A logits processor for transformers' greedy search: it leaves only the sampled token in each row.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        banned: Sequence[int],
        stop_token_ids: Sequence[int],
        decode: Callable[[list[int]], str],
    ) -> None:
        self.rows, self._banned, self._stops, self._decode = rows, list(banned), stop_token_ids, decode
        self.warpers: list[Callable[[Any, torch.Tensor], torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores`: logits [rows, vocabulary], float32."""
        scores[:, self._banned] = float("-inf")
        greedy = torch.tensor([row.sampling.temperature == 0 for row in self.rows], device=scores.device)
        scale = [row.sampling.temperature or 1.0 for row in self.rows]
        scores = scores / torch.tensor(scale, device=scores.device)[:, None]
        for warp in self.warpers:
            scores = warp(input_ids, scores)
        logprobs = scores.log_softmax(-1)
        noise = torch.ones_like(logprobs)
        for row, row_noise in zip(self.rows, noise, strict=True):
            if row.sampling.temperature and not row.finish_reason:
                row_noise.exponential_(generator=row.generator)
        # The largest p / Exp(1) is a sample of p.
        tokens = torch.where(greedy[:, None], logprobs, logprobs - noise.log()).argmax(-1)
        picked = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
        for row, token, logprob in zip(self.rows, tokens.tolist(), picked, strict=True):
            if not row.finish_reason:
                self._append(row, token, logprob)
        return torch.full_like(scores, float("-inf")).scatter_(-1, tokens[:, None], 0.0)

    def _append(self, row: Row, token: int, logprob: float) -> None:
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        if token in self._stops:
            row.finish_reason = "stop"
        elif row.sampling.stop and (stop := self._completed(row)):
            row.finish_reason, row.stop = "stop_string", stop
        elif len(row.token_ids) == row.sampling.max_tokens:
            row.finish_reason = "length"

    def _completed(self, row: Row) -> str:
        """The stop string that the last token completed, "" for none: the one that ends first, as in vLLM."""
        longest = max(map(len, row.sampling.stop))
        tail = self._decode(row.token_ids[-4 * (longest + 1) :])  # a character has at most 4 tokens
        ends = [(tail.index(stop) + len(stop), stop) for stop in row.sampling.stop if stop in tail]
        return min(ends, key=lambda end: end[0])[1] if ends else ""

    def are_finished(self, input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        """A stopping criterion of transformers: [rows], bool."""
        return torch.tensor([bool(row.finish_reason) for row in self.rows], device=input_ids.device)


def warping(sampling: Sampling) -> tuple[int, float]:
    """top_k (0: all tokens) and top_p, which leave out tokens; greedy sampling leaves out none."""
    return (0, 1.0) if sampling.temperature == 0 else (max(sampling.top_k, 0), sampling.top_p)


def warpers(sampling: Sampling) -> list[Callable[[Any, torch.Tensor], torch.Tensor]]:
    """What top_k and top_p do to scores [rows, vocabulary], in this order."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    top_k, top_p = warping(sampling)
    out: list[Callable[[Any, torch.Tensor], torch.Tensor]] = []
    if top_k:
        out.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        out.append(TopPLogitsWarper(top_p))
    return out


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
        self._renderer: Renderer | None = None  # made for the first stop string
        self._queue: list[tuple[str, Prompt, Sampling]] = []
        self._arrivals = Arrivals(spec.model_path, self.own_head(), spec.preserve)

    def submit(self, key: str, prompt: Prompt, sampling: Sampling) -> None:
        self._queue.append((key, prompt, sampling))

    def busy(self) -> bool:
        return bool(self._queue)

    def abort(self, keys: Sequence[str]) -> None:
        self._queue = [item for item in self._queue if item[0] not in keys]

    def step(self) -> list[tuple[str, list[Completion]]]:
        """Answer one batch: the first request and those after it with the same top_k and top_p."""
        first = self._queue[0][2]
        batch: list[tuple[str, Prompt, Sampling]] = []
        num_rows = 0
        for item in self._queue:
            sampling = item[2]
            num_rows += sampling.n
            is_full = batch and num_rows > self._spec.max_num_seqs
            if is_full or warping(sampling) != warping(first):
                break
            batch.append(item)
        self._queue = self._queue[len(batch) :]
        rows = [[self._row(sampling, k) for k in range(sampling.n)] for _, _, sampling in batch]
        prompts = [prompt for (_, prompt, sampling) in batch for _ in range(sampling.n)]
        self._generate(prompts, [row for answers in rows for row in answers], first)
        return [(key, [row.completion() for row in answers]) for (key, _, _), answers in zip(batch, rows, strict=True)]

    def _row(self, sampling: Sampling, answer: int) -> Row:
        generator = torch.Generator(self._spec.device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed + answer)
        return Row(sampling=sampling, generator=generator)

    @torch.no_grad()
    def _generate(self, prompts: list[Prompt], rows: list[Row], shared: Sampling) -> None:
        """Sample the rows, one for each prompt. `shared`: its top_k and top_p are those of all rows."""
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
        sampler = RowSampler(rows, self._vision.banned_token_ids, self._spec.stop_token_ids, self._decode)
        sampler.warpers = warpers(shared)
        self._model.generate(
            input_ids=ids.to(self._spec.device),
            attention_mask=attention.to(self._spec.device),
            do_sample=False,  # the sampler leaves only one token
            max_new_tokens=max(row.sampling.max_tokens for row in rows),
            pad_token_id=pad,
            logits_processor=[sampler],
            stopping_criteria=[sampler.are_finished],
            **inputs,
        )

    def _decode(self, token_ids: list[int]) -> str:
        self._renderer = self._renderer or Renderer(self._spec.model_path, self._vision)
        return self._renderer.decode(token_ids, skip_special_tokens=False)

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
        """Does nothing: this engine keeps its memory."""

    def wake(self, tags: list[str]) -> None:
        """See `sleep`."""
