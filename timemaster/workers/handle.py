"""The actors of a run and the driver's handle on them. Ray is imported in this room only.

`TrainerRank` is one FSDP2 rank, `EngineRank` (timemaster/workers/engine.py) one rollout engine. Every remote method is
written by hand, so that a call can be found by grep. When a process dies or raises, the error says which and why.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from timemaster.config import Config, world_size
from timemaster.models.family import family_of
from timemaster.models.folder import load_model_config, local_folder
from timemaster.rollout.engine import EngineSpec
from timemaster.system.process import check_visible_gpus, peak_memory_gib, use_cores
from timemaster.tokens.plan import micro_batch_tokens, spread
from timemaster.types import Example, Group, InputError, Prompt, Sample, Sampling
from timemaster.workers.calls import EngineClient, gather
from timemaster.workers.engine import EngineRank
from timemaster.workers.placement import place_engines, place_trainers, session_folder, start_ray
from timemaster.workers.reaper import start_reaper, stop_reaper

if TYPE_CHECKING:
    import torch


class TrainerRank:
    """One rank of the trainer. Methods named like the backend's do what they do there."""

    def __init__(self, cfg: Config, rank: int, device: str) -> None:
        self.cfg, self.rank, self.device = cfg, rank, device
        use_cores(world_size(cfg) if device == "cpu" else cfg.trainer.n_gpus_per_node, device)

    def gpu_gib(self) -> float:
        """Memory of this rank's GPU in all."""
        import torch

        return torch.cuda.get_device_properties(0).total_memory / 2**30

    def preload(self) -> None:
        """Import what `start` needs, while the driver still reads data."""
        family_of(load_model_config(self.cfg.model.path, self.cfg.model.revision)).model_class()

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def place(self) -> tuple[str, list[str]]:
        """The node and the GPUs of this rank. InputError when it would see the GPUs of others."""
        check_visible_gpus(1)
        return ray.get_runtime_context().get_node_id(), [str(gpu) for gpu in ray.get_gpu_ids()]

    def start(self, address: tuple[str, int], num_updates: int, with_reference: bool, resume: str) -> tuple[Any, int]:
        """Join the others, load the model, resume if a checkpoint is given. Returns (parameter table, updates done)."""
        from timemaster.backends.checkpoint import load_rank
        from timemaster.backends.fsdp import FsdpBackend, init_distributed

        self.cfg.model.path = local_folder(self.cfg.model.path, self.cfg.model.revision)
        init_distributed(self.rank, world_size(self.cfg), *address, self.device, local_rank=0)
        self.backend = FsdpBackend(self.cfg, self.device, num_updates, with_reference)
        if resume:
            load_rank(self.backend, resume)
        return self.backend.parameter_table(), self.backend.updates_done

    def logprobs(self, micro_batches: list[list[Sample]], which: str) -> list[list[list[float]]]:
        return self.backend.logprobs(micro_batches, which)

    def update(self, micro_batches: list[list[Sample]], denominator: float) -> dict[str, float]:
        return self.backend.update(micro_batches, denominator)

    def update_sft(self, micro_batches: list[list[Sample]], denominator: float) -> dict[str, float]:
        return self.backend.update_sft(micro_batches, denominator)

    def evaluate_sft(self, micro_batches: list[list[Sample]], denominator: float) -> dict[str, float]:
        return self.backend.evaluate_sft(micro_batches, denominator)

    def open_wire(self, wire: str, client: EngineClient, init: dict[str, Any], tied_head: bool) -> None:
        """Get ready to send weights: vLLM's own sender on GPU, Ray's object store otherwise.

        `tied_head`: the engines keep a copy of a tied head, which must be sent too.
        """
        self.wire, self.client, self.tied_head = wire, client, tied_head
        if wire == "object_store":
            if self.rank == 0:
                self.client.init_weight_transfer_engine({})
            return
        from timemaster.rollout.vllm import gpu_sender

        meta = [(name, self.backend.dtype, shape) for name, shape in self.backend.weight_shapes(tied_head)]
        weights = partial(self.backend.weights, tied_head)
        self.sender = gpu_sender(wire, self.rank, self.client, weights, meta, init)

    def push_weights(self) -> None:
        """Send all trained weights to every engine. All ranks call it together; rank 0 talks to the engines."""
        if self.wire != "object_store":
            self.sender.send_weights()
            return
        layers = self.backend.weights(self.tied_head)
        if self.rank == 0:
            self.client.send(layers)
        else:
            for _ in layers:  # the gathers are collective
                pass

    def save(self, folder: str) -> dict[str, int]:
        from timemaster.backends.checkpoint import save_rank

        return save_rank(self.backend, folder)

    def release(self) -> None:
        """Colocated on GPU: give memory that only caches hold back to the device, before an engine takes its own."""
        self.backend.release()

    def offload(self) -> None:
        """Colocated on GPU: parameters and optimizer state wait in host memory while the engines run."""
        self.backend.offload()

    def onload(self) -> None:
        self.backend.onload()

    def peak_memory(self) -> tuple[float, float]:
        """Highest GiB so far: resident in host memory, allocated on this rank's GPU."""
        return peak_memory_gib(), self.backend.peak_gpu_gib()


class Workers:
    """The driver's handle on both pools. Colocated GPUs are taken in turns: engines sleep while the trainer works."""

    def __init__(self, cfg: Config, engine: str, trainers: bool) -> None:
        """Start Ray and the actors (`engine`: "vllm", "hf" or "" for none); they import while the driver reads on."""
        self.cfg, self.device = cfg, start_ray(cfg)
        # A cluster that was joined is not this run's to clean up.
        self._reaper = None if cfg.trainer.ray_address else start_reaper(session_folder())
        both = trainers and bool(engine)
        self.turns = both and self.device == "cuda" and cfg.rollout.placement == "colocated"
        self._turn = "engines"  # who has the GPUs where they are shared: engines or trainer; changing: neither, yet
        self._digests: list[dict[str, str]] = []  # of the engines' weights as they were loaded
        self._answers: list[list[list[int]]] = []  # of the engines as they were loaded, before they first slept
        self.updates_done, self._updates_sent = 0, 0
        self.checkpoint_bytes = 0  # about what one needs on disk
        self.engines: list[Any] = []
        self.trainers = place_trainers(cfg, self.device, TrainerRank) if trainers else []
        self._names = {actor._actor_id.hex(): f"trainer rank {k}" for k, actor in enumerate(self.trainers)}
        gpus = self._get(self._trainer_calls("place")) if self.device == "cuda" else []
        if engine:
            self.engines = place_engines(cfg, self.device, EngineRank, engine, gpus if self.turns else [])
            self.client = EngineClient(self.engines, cfg.rollout.tensor_model_parallel_size)
        self._names |= {actor._actor_id.hex(): f"engine {k}" for k, actor in enumerate(self.engines)}
        self._trainer_calls("preload")

    def start(
        self, spec: EngineSpec | None, training: tuple[int, bool, str] | None, probes: Sequence[Prompt] = ()
    ) -> dict[str, Any]:
        """Start engines and trainer ranks (num_updates, with_reference, resume folder), those that were placed.

        Engines that drop their weights in sleep answer the `probes`, to be asked again after the first push.
        Returns the table of parameters of the trained model, {} without trainers.
        """
        ready = self._engine_calls("start", spec, len(self.engines))
        self._probes = list(probes)
        if self.turns:  # an engine measures free memory when it starts: the trainer must not be there yet
            self._get(ready)
            self._digests, self._answers = self._checksums(), self._probe()
            self._turn = "changing"
            self._get(self._engine_calls("sleep"))
        table: dict[str, Any] = {}
        if training:
            address = self._get({"trainer rank 0": self.trainers[0].address.remote()})[0]
            table, self.updates_done = self._get(self._trainer_calls("start", address, *training))[0]
            self.checkpoint_bytes = sum(size * (16 if trained else 4) for size, trained in table.values())
            self._turn, self._updates_sent = "trainer", self.updates_done  # both loaded the same weights
        self._get(ready)
        if spec and training:
            self._open_wire(spec.wire)
        return table

    def _open_wire(self, wire: str) -> None:
        init: dict[str, Any] = {}
        if wire == "nccl":
            address, port = self._get({"trainer rank 0": self.trainers[0].address.remote()})[0]
            num_workers = len(self.engines) * self.client.tensor_parallel
            init = {"master_address": address, "master_port": port, "world_size": 1 + num_workers}
        tied_head = any(self._get(self._engine_calls("own_head")))
        self._get(self._trainer_calls("open_wire", wire, self.client, init, tied_head))

    # ---- the verbs of a step

    def rollout(
        self, jobs: Sequence[tuple[Example, Prompt]], sampling: Sampling, version: int, seed: str
    ) -> list[Group]:
        """Answer and score prompts on all engines; groups come back in the order of `jobs`."""
        self._engines_turn()
        shares = [list(jobs[k :: len(self.engines)]) for k in range(len(self.engines))]
        calls = {
            f"engine {k}": self.engines[k].rollout.remote(share, sampling, version, seed)
            for k, share in enumerate(shares)
            if share
        }
        parts = [iter(part) for part in self._get(calls)]
        return [next(parts[i % len(self.engines)]) for i in range(len(jobs))]

    def logprobs(self, samples: Sequence[Sample], which: str) -> list[list[float]]:
        """Log-probs of the trained tokens of each sample under "policy" or "reference"."""
        if not samples:
            return []
        plan = self._plan(samples)
        self._trainer_turn()
        results = self._get(self._each_trainer("logprobs", plan, samples, which))
        out: list[list[float]] = [[] for _ in samples]
        for micros, values in zip(plan, results, strict=True):
            for micro, rows in zip(micros, values, strict=True):
                for i, row in zip(micro, rows, strict=True):
                    out[i] = row
        return out

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step of the policy on a mini-batch. Returns per-token means, by name and name@data_source."""
        self.updates_done += 1
        return self._train("update", samples)

    def update_sft(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One supervised optimizer step. Returns as `update`."""
        self.updates_done += 1
        return self._train("update_sft", samples)

    def evaluate_sft(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The supervised loss, without an update."""
        return self._train("evaluate_sft", samples)

    def sync_weights(self, verify: bool = False) -> None:
        """Push the trained weights to every engine.

        `verify` (the first push of a run): engines hold the same weights already, are wiped, and must come back equal.
        """
        self._trainer_turn()
        if verify:
            self._digests = self._digests or self._checksums()
        self._wake_weights()
        if verify:
            self._get(self._engine_calls("wipe_weights"))
        self._get(self._trainer_calls("push_weights"))
        if verify and self._checksums() != self._digests:
            raise RuntimeError("the first push of weights did not reproduce the engine's own: the wire is broken")
        self._updates_sent = self.updates_done
        self._wake_caches()
        if verify and self._probe() != self._answers:
            raise InputError(
                "rollout.sleep_level=2: after sleep, wake and a push of equal weights an engine answers otherwise than "
                "before, so it lost more than its weights. Set rollout.sleep_level=1."
            )

    def load_engines(self, layers: Iterable[list[tuple[str, torch.Tensor]]]) -> None:
        """Give the engines other weights, from the driver (evaluation of several checkpoints)."""
        self.client.init_weight_transfer_engine({})
        self.client.send(layers)

    def save(self, folder: str) -> dict[str, int]:
        """Write every rank's part of a checkpoint. Returns name and size of every file."""
        self._trainer_turn()
        parts = self._get(self._trainer_calls("save", folder))
        return {name: size for part in parts for name, size in part.items()}

    def gpu_gib(self) -> float:
        """Memory of the trainer's smallest GPU."""
        return min(self._get(self._trainer_calls("gpu_gib")))

    def peak_memory(self) -> dict[str, float]:
        """memory/gib: the sum over all actors of the highest resident memory of each; memory/gpu_gib: the fullest GPU.

        The GPU's is what the trainer allocated: an engine's share is a setting.
        """
        ranks = self._get(self._trainer_calls("peak_memory"))
        host = sum(gib for gib, _ in ranks) + sum(self._get(self._engine_calls("peak_memory")))
        return {"memory/gib": host} | ({"memory/gpu_gib": max(g for _, g in ranks)} if self.device == "cuda" else {})

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop every process this run started."""
        for actor in [*self.engines, *self.trainers]:
            ray.kill(actor)
        ray.shutdown()
        if self._reaper:
            stop_reaper(self._reaper)

    # ---- turns: each verb first asks for its side; nothing happens where engines and trainer have their own devices

    def _trainer_turn(self) -> None:
        """The GPUs are the trainer's: engines sleep, and what waited in host memory is back."""
        if not self.turns or self._turn == "trainer":
            return
        self._turn = "changing"  # until all of it is done: a change that was broken off is begun again
        self._get(self._engine_calls("sleep"))
        if self.cfg.actor.offload:
            self._get(self._trainer_calls("onload"))
        self._turn = "trainer"

    def _engines_turn(self) -> None:
        """The GPUs are the engines': awake, with the weights of the last update."""
        if not self.turns or self._turn == "engines":
            return
        if self.cfg.rollout.sleep_level == 1 and self._updates_sent == self.updates_done:
            self._wake_weights()
            self._wake_caches()
        else:
            self.sync_weights()

    def _wake_weights(self) -> None:
        if self.turns:
            self._turn = "changing"
            self._get(self._trainer_calls("release"))
            self._get(self._engine_calls("wake", ["weights"]))

    def _wake_caches(self) -> None:
        if self.turns:  # first what the trainer can give back: the caches take all that is promised to the engine
            self._get(self._trainer_calls("offload" if self.cfg.actor.offload else "release"))
            self._get(self._engine_calls("wake", ["kv_cache"]))
            self._turn = "engines"

    def _probe(self) -> list[list[list[int]]]:
        """Each engine's greedy answers to the probes, where sleep takes more than it should be trusted with."""
        asked = self.turns and self.cfg.rollout.sleep_level == 2
        return self._get(self._engine_calls("greedy", self._probes)) if asked else []

    # ---- how

    def _train(self, method: str, samples: Sequence[Sample]) -> dict[str, float]:
        denominator = float(sum(sum(sample.mask) for sample in samples))
        self._trainer_turn()
        return self._get(self._each_trainer(method, self._plan(samples), samples, denominator))[0]

    def _plan(self, samples: Sequence[Sample]) -> list[list[list[int]]]:
        max_tokens, padded = micro_batch_tokens(self.cfg, self.device), not self.cfg.actor.use_remove_padding
        return spread(samples, len(self.trainers), max_tokens, padded)

    def _each_trainer(
        self, method: str, plan: list[list[list[int]]], samples: Sequence[Sample], argument: Any
    ) -> dict[str, Any]:
        calls = {}
        for rank, micros in enumerate(plan):
            own = [[samples[i] for i in micro] for micro in micros]
            calls[f"trainer rank {rank}"] = getattr(self.trainers[rank], method).remote(own, argument)
        return calls

    def _trainer_calls(self, method: str, *args: Any) -> dict[str, Any]:
        return {f"trainer rank {k}": getattr(t, method).remote(*args) for k, t in enumerate(self.trainers)}

    def _engine_calls(self, method: str, *args: Any) -> dict[str, Any]:
        return {f"engine {k}": getattr(e, method).remote(*args) for k, e in enumerate(self.engines)}

    def _checksums(self) -> list[dict[str, str]]:
        return self._get(self._engine_calls("checksums"))

    def _get(self, calls: dict[str, Any]) -> list[Any]:
        """Results in the order of `calls`. The first failure stops waiting and names the process and the cause."""
        return gather(calls, self._names)
