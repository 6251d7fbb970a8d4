"""One rank of the trainer: policy, optimizer and reference model, sharded with FSDP2 also when the rank is alone.

The driver gives each rank its micro-batches, the same number to every rank, and the global denominator. A rank knows
nothing of rewards, engines, prompts or Ray.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from timemaster.algo.losses import LossConfig, LossInputs, difference, policy_loss, sft_loss
from timemaster.algo.schedule import lr_factor
from timemaster.algo.token_metrics import add_up, means
from timemaster.backends.offload import HostCopies
from timemaster.backends.policy import Policy
from timemaster.config import Config, attention, compute_dtype, head_dtype
from timemaster.models.folder import load_model_config
from timemaster.models.vision import vision_spec
from timemaster.models.weights import check_weights
from timemaster.tokens.batch import Batch, Collator
from timemaster.types import Sample

MicroBatches = Sequence[Sequence[Sample]]  # of this rank; for an empty one, the rank only takes part in the collectives
STAND_IN = Sample(id="", token_ids=[0, 0], mask=[0, 1], media=[])  # the sample for empty micro-batches; never counted


def init_distributed(rank: int, world_size: int, address: str, port: int, device: str, local_rank: int) -> None:
    """Join the process group of the trainer ranks: gloo on CPU, NCCL on GPU."""
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ["LOCAL_RANK"] = str(local_rank)
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(minutes=30))


class FsdpBackend:
    """The trained policy of one rank, its optimizer, and the reference model when a KL term is on."""

    def __init__(self, cfg: Config, device: str, num_updates: int, with_reference: bool) -> None:
        self.cfg = cfg
        self.device = torch.device(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._mesh = init_device_mesh(device, (self.world_size,))
        dtype = compute_dtype(cfg, device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        sizes = cfg.data.min_pixels, cfg.data.max_pixels
        self.spec = vision_spec(load_model_config(cfg.model.path), *sizes, clock_dtype=dtype)
        self.family = self.spec.family
        self.policy = self._load(trained=True)
        self.reference = self._load(trained=False) if with_reference else None
        padded = not cfg.actor.use_remove_padding
        self.collate = Collator(cfg.model.path, self.spec, pad_token_id=0, padded=padded)
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        optim = cfg.actor.optim
        betas = (optim.betas[0], optim.betas[1])
        # fused=True: other implementations need another copy of the gradients, or are many times slower (on CPU).
        self.optimizer = torch.optim.AdamW(trained, optim.lr, betas, weight_decay=optim.weight_decay, fused=True)
        self._host, self._is_offloaded = HostCopies(), False
        self.num_updates, self.updates_done = max(num_updates, 1), 0

    def _load(self, trained: bool) -> Policy:
        cfg = self.cfg.model
        if trained:
            check_weights(cfg.path)
        model = self.family.model_class().from_pretrained(
            cfg.path,
            dtype="auto",  # the stored dtype, while every rank holds the whole model
            attn_implementation=attention(self.cfg, self.device.type),
        )
        if trained and cfg.enable_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        frozen = cfg.freeze_vision_tower
        policy = Policy(
            model,
            self.spec,
            train_vision=trained and not frozen,
            vision_is_sharded=not frozen,
            float32_logits=head_dtype(self.cfg, self.device.type) == "float32",
        )
        policy.requires_grad_(trained).train(trained)
        if frozen:
            model.get_submodule(self.family.vision_tower).requires_grad_(False)
        self._shard(policy, trained)
        if trained:
            policy.float()  # master weights for the optimizer, sharded by now; forward passes cast to self.dtype
        if frozen:
            # Buffers keep their dtype: rotary frequencies need it.
            for parameter in model.get_submodule(self.family.vision_tower).parameters():
                parameter.data = parameter.data.to(self.dtype, copy=True)  # a view would keep the whole file
        return policy.to(self.device)

    def _shard(self, policy: Policy, trained: bool) -> None:
        model = policy.model
        mixed = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
        args: dict[str, Any] = {"mesh": self._mesh, "mp_policy": mixed}
        if self.cfg.model.freeze_vision_tower:  # whole on every rank: a rank without images skips the tower
            args["ignored_params"] = set(model.get_submodule(self.family.vision_tower).parameters())
        else:
            for block in model.get_submodule(self.family.vision_blocks):
                fully_shard(block, **args)
        for layer in model.get_submodule(self.family.layers):
            fully_shard(layer, **args)
        fully_shard(policy, **args, reshard_after_forward=None if trained else True)

    # ---- forward passes

    @torch.no_grad()
    def logprobs(self, micro_batches: MicroBatches, which: str) -> list[list[list[float]]]:
        """Log-probs of the trained tokens under "policy" or "reference", per micro-batch and sample."""
        model = self.policy if which == "policy" else self.reference
        if model is None:
            raise RuntimeError("no reference model was loaded: set actor.use_kl_loss=true")
        out = []
        for micro in micro_batches:
            batch = self._batch(micro)
            values, _ = model(batch, self.cfg.rollout.temperature)
            out.append([row.tolist() for row in values.cpu().split(batch.counts)] if micro else [])
        return out

    def _batch(self, micro: Sequence[Sample]) -> Batch:
        assert not self._is_offloaded, "the trainer's tensors are offloaded to host memory: call onload first"
        return self.collate(micro or [STAND_IN]).to(self.device)

    # ---- updates

    def update(self, micro_batches: MicroBatches, denominator: float) -> dict[str, float]:
        """One optimizer step of the policy loss. `denominator` counts the trained tokens of all ranks.

        Returns global per-token means by name and by name@data_source, `grad_norm`, `lr` and the log-prob difference
        to the engine.
        """
        return self._step(micro_batches, denominator, self.cfg.rollout.temperature, self.cfg.actor)

    def update_sft(self, micro_batches: MicroBatches, denominator: float) -> dict[str, float]:
        """One optimizer step of supervised training."""
        return self._step(micro_batches, denominator, 1.0, None)

    @torch.no_grad()
    def evaluate_sft(self, micro_batches: MicroBatches, denominator: float) -> dict[str, float]:
        """The supervised loss without an update."""
        metric_sums: dict[str, torch.Tensor] = {}
        for micro in micro_batches:
            self._loss(micro, denominator, 1.0, None, metric_sums)
        return self._reduce(metric_sums)

    def _step(
        self, micro_batches: MicroBatches, denominator: float, temperature: float, loss_cfg: LossConfig | None
    ) -> dict[str, float]:
        started = time.perf_counter()
        metric_sums: dict[str, torch.Tensor] = {}
        for micro in micro_batches:
            loss = self._loss(micro, denominator, temperature, loss_cfg, metric_sums)
            (loss * self.world_size).backward()  # FSDP averages over ranks, the denominator is already global
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.cfg.actor.grad_clip)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not math.isfinite(grad_norm):
            self.optimizer.zero_grad()
            raise FloatingPointError(
                f"gradient norm {grad_norm} at update {self.updates_done + 1}; weights are unchanged"
            )
        self._schedule()
        self.optimizer.step()
        self.optimizer.zero_grad()  # now, not before the next backward pass: engines may need the memory
        self.updates_done += 1
        lr = self.optimizer.param_groups[0]["lr"]
        seconds = time.perf_counter() - started
        return self._reduce(metric_sums) | {"grad_norm": grad_norm, "lr": lr, "update_seconds": seconds}

    def _loss(
        self, micro: Sequence[Sample], denominator: float, temperature: float, loss_cfg: LossConfig | None,
        metric_sums: dict[str, torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        batch = self._batch(micro)
        logprobs, entropy = self.policy(batch, temperature, train_entropy=bool(loss_cfg and loss_cfg.entropy_coeff))
        if not micro:
            return 0.0 * logprobs.sum()
        inputs = LossInputs(
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=batch.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            advantages=batch.advantages,
        )
        loss, metrics = policy_loss(inputs, loss_cfg, denominator) if loss_cfg else sft_loss(inputs, denominator)
        if batch.old_logprobs is not None:
            metrics |= difference(logprobs, batch.old_logprobs)
        add_up(metric_sums, metrics, [sample.data_source for sample in micro], batch.counts)
        return loss

    def _schedule(self) -> None:
        optim = self.cfg.actor.optim
        factor = lr_factor(optim, self.updates_done, self.num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * factor

    def _reduce(self, metric_sums: dict[str, torch.Tensor]) -> dict[str, float]:
        gathered: list[dict[str, float]] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(gathered, {key: float(value) for key, value in metric_sums.items()})
        return means(gathered)

    def offload(self) -> None:
        """Move parameters, reference and optimizer state to host memory. Does nothing if they are there.

        No forward pass is possible until `onload`.
        """
        if self._is_offloaded:
            return
        tensors = self._movable()
        frozen = [n for n, t in tensors.items() if isinstance(t, torch.nn.Parameter) and not t.requires_grad]
        self._host.park(tensors, constant=frozen)
        self._is_offloaded = True
        self.release()

    def onload(self) -> None:
        """Move back what `offload` moved. Does nothing if it is back: the driver repeats an interrupted switch."""
        if self._is_offloaded:
            self._host.restore(self._movable())
            self._is_offloaded = False

    def _models(self) -> dict[str, Policy]:
        return {"policy": self.policy} | ({"reference": self.reference} if self.reference is not None else {})

    def _reshard(self) -> None:
        """Free gathered weights: the root module keeps its own after a forward pass without a backward pass."""
        for model in self._models().values():
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def _movable(self) -> dict[str, torch.Tensor]:
        """The tensors that take device memory between steps, by name."""
        self._reshard()
        tensors: dict[str, torch.Tensor] = {}
        for which, model in self._models().items():
            tensors |= {f"{which}.{name}": parameter for name, parameter in model.named_parameters()}
        for i, state in enumerate(self.optimizer.state.values()):
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items() if value.ndim}
        return tensors

    def release(self) -> None:
        """Free device memory that holds gathered weights, or that torch keeps for its next allocation."""
        self._reshard()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def peak_gpu_gib(self) -> float:
        """Highest memory allocated on this rank's GPU so far, in GiB; 0.0 on CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0

    # ---- weights

    def weights(self, tied_head: bool) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Trained weights as full tensors in the compute dtype, one sharded module at a time. All ranks call together.

        `tied_head`: also yields a head that is tied to the embeddings, under its own name.
        """
        model = self.policy.model
        for unit, names in self._units(tied_head):
            unit.unshard()
            layer = [(name, model.get_parameter(name).detach().clone()) for name in names]
            unit.reshard()  # frees the gathered memory even where a sender still holds tensors: hence the clones
            yield layer

    def weight_shapes(self, tied_head: bool) -> list[tuple[str, tuple[int, ...]]]:
        """(name, shape) of what `weights` yields, in its order."""
        model = self.policy.model
        return [(name, tuple(model.get_parameter(name).shape)) for _, names in self._units(tied_head) for name in names]

    def _units(self, tied_head: bool) -> list[tuple[FSDPModule, list[str]]]:
        """The sharded modules, each with the names of the trained weights that it gathers itself."""
        units = {name: module for name, module in self.policy.named_modules() if isinstance(module, FSDPModule)}
        names: dict[str, list[str]] = {}
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                owner = max((unit for unit in units if not unit or name.startswith(f"{unit}.")), key=len)
                names.setdefault(owner, []).append(name.removeprefix("model."))
        if tied_head and self.policy.model.config.tie_word_embeddings:
            names[""].append(self.family.head)
        return [(units[owner], own_names) for owner, own_names in names.items()]

    def parameter_table(self) -> dict[str, tuple[int, bool]]:
        """(number of parameters, trained) of each part of the model."""
        model = self.policy.model
        parts = {name: model.get_submodule(path) for name, path in self.family.parts.items()}
        parts["embeddings"] = model.get_input_embeddings()
        if not model.config.tie_word_embeddings:
            parts["head"] = model.get_output_embeddings()
        return {
            name: (sum(p.numel() for p in part.parameters()), any(p.requires_grad for p in part.parameters()))
            for name, part in parts.items()
        }
