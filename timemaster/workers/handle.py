"""The driver's handle on the processes of a run: trainer ranks and engines. Ray is imported in this folder only.

`TrainerRank` is one FSDP2 rank, `EngineRank` (timemaster/workers/engine.py) one rollout engine. Remote methods are
called by name, so that grep finds each call. When a process dies or raises, the error names it and the cause.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from timemaster.backends.spec import TrainerSpec
from timemaster.config import Config, world_size
from timemaster.config.keys import with_settings
from timemaster.models.family import family_of
from timemaster.models.folder import load_model_config, local_folder
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.progress import Request
from timemaster.system.process import check_visible_gpus, peak_memory_gib, use_cores
from timemaster.tokens.plan import micro_batch_tokens, spread
from timemaster.types import Group, InputError, Prompt, PromptRow, Sample, Sampling
from timemaster.workers.calls import EngineClient, first_result, gather
from timemaster.workers.dispatch import Dispatcher
from timemaster.workers.engine import EngineRank
from timemaster.workers.placement import place_engines, place_trainers, session_folder, start_ray
from timemaster.workers.reaper import start_reaper, stop_reaper

if TYPE_CHECKING:
    import torch


class TrainerRank:
    """The remote methods of one trainer rank. For methods without a docstring, see the backend."""

    def __init__(self, cfg: Config, rank: int, device: str) -> None:
        self.cfg, self.rank, self.device = cfg, rank, device
        use_cores(world_size(cfg) if device == "cpu" else cfg.trainer.n_gpus_per_node, device)

    def gpu_gib(self) -> float:
        """Total memory of this rank's GPU."""
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
        """The node and the GPUs of this rank. Raises InputError when it would see GPUs of other ranks."""
        check_visible_gpus(1)
        return ray.get_runtime_context().get_node_id(), [str(gpu) for gpu in ray.get_gpu_ids()]

    def start(self, spec: TrainerSpec, address: tuple[str, int]) -> dict[str, tuple[int, bool]]:
        """Join the other ranks at `address`, load the model, resume if `spec` says so. Returns the parameter table."""
        from timemaster.backends.fsdp import FsdpBackend, init_distributed
        from timemaster.backends.state import load_rank

        local = local_folder(self.cfg.model.path, self.cfg.model.revision)
        self.cfg = with_settings(self.cfg, {"model.path": local})
        init_distributed(self.rank, world_size(self.cfg), *address, self.device, local_rank=0)
        self.backend = FsdpBackend(self.cfg, self.device, spec.num_updates, spec.with_reference)
        if spec.checkpoint:
            load_rank(self.backend, spec.checkpoint, spec.updates_done)
        return self.backend.parameter_table()

    def logprobs(self, micro_batches: list[list[Sample]], which: str) -> list[list[list[float]]]:
        return self.backend.logprobs(micro_batches, which)

    def update(self, micro_batches: list[list[Sample]], denominator: float) -> dict[str, float]:
        return self.backend.update(micro_batches, denominator)

    def update_sft(self, micro_batches: list[list[Sample]], denominator: float) -> dict[str, float]:
        return self.backend.update_sft(micro_batches, denominator)

    def evaluate_sft(self, micro_batches: list[list[Sample]], denominator: float) -> dict[str, float]:
        return self.backend.evaluate_sft(micro_batches, denominator)

    def open_wire(self, wire: str, client: EngineClient, init: dict[str, Any], tied_head: bool) -> None:
        """Prepare to send weights: by vLLM's own sender on GPU, else by Ray's object store.

        `tied_head`: the engines keep their own copy of a tied head, so it must be sent too.
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
        from timemaster.backends.state import save_rank

        return save_rank(self.backend, folder)

    def release(self) -> None:
        """Colocated on GPU: give memory that torch only caches back to the device, before an engine takes its own."""
        self.backend.release()

    def offload(self) -> None:
        """Colocated on GPU: move parameters and optimizer state to host memory while the engines run."""
        self.backend.offload()

    def onload(self) -> None:
        self.backend.onload()

    def peak_memory(self) -> tuple[float, float]:
        """Peak memory so far in GiB: resident in host memory, allocated on this rank's GPU."""
        return peak_memory_gib(), self.backend.peak_gpu_gib()


class Workers:
    """The driver's handle on both pools. Colocated GPUs are used in turns: engines sleep while the trainer works."""

    def __init__(self, cfg: Config, engine: str, trainers: bool) -> None:
        """Start Ray and the actors (`engine`: "vllm", "hf" or "" for none). They import while the driver reads data."""
        self.cfg, self.device = cfg, start_ray(cfg)
        # A cluster that this run joined is not cleaned up by this run.
        self._reaper = None if cfg.trainer.ray_address else start_reaper(session_folder())
        both = trainers and bool(engine)
        self.shares_gpus = both and self.device == "cuda" and cfg.rollout.placement == "colocated"
        self._turn = "engines"  # who may use shared GPUs: "engines", "trainer", or "changing" (neither of them yet)
        self._loaded_checksums: list[dict[str, str]] = []  # of each engine's weights as it loaded them
        self._probes: list[Prompt] = []
        self._loaded_answers: list[list[list[int]]] = []  # each engine's answers to the probes before its first sleep
        self.updates_done, self._updates_sent = 0, 0
        self.checkpoint_bytes = 0  # estimate of what a checkpoint takes on disk
        self.engines: list[Any] = []
        self.trainers = place_trainers(cfg, self.device, TrainerRank) if trainers else []
        self._names = {actor._actor_id.hex(): f"trainer rank {k}" for k, actor in enumerate(self.trainers)}
        gpus = self._get([t.place.remote() for t in self.trainers]) if self.device == "cuda" else []
        if engine:
            self.engines = place_engines(cfg, self.device, EngineRank, engine, gpus if self.shares_gpus else [])
            self.client = EngineClient(self.engines, cfg.rollout.tensor_model_parallel_size)
        self._names |= {actor._actor_id.hex(): f"engine {k}" for k, actor in enumerate(self.engines)}
        for trainer in self.trainers:
            trainer.preload.remote()

    def start(
        self, spec: EngineSpec | None, training: TrainerSpec | None, probes: Sequence[Prompt] = ()
    ) -> dict[str, tuple[int, bool]]:
        """Start the engines and the trainer ranks that were placed.

        Engines that drop their weights in sleep answer the `probes` now and again after the first push of weights.
        Returns the table of parameters of the trained model, {} without trainers.
        """
        started = [e.start.remote(spec, len(self.engines)) for e in self.engines]
        self._probes = list(probes)
        if self.shares_gpus:  # an engine measures free memory when it starts: the trainer must not be there yet
            self._get(started)
            self._loaded_checksums, self._loaded_answers = self._checksums(), self._probe_answers()
            self._turn = "changing"
            self._get([e.sleep.remote() for e in self.engines])
        table: dict[str, tuple[int, bool]] = {}
        if training:
            address = self._get([self.trainers[0].address.remote()])[0]
            table = self._get([t.start.remote(training, address) for t in self.trainers])[0]
            self.checkpoint_bytes = sum(size * (16 if trained else 4) for size, trained in table.values())
            self.updates_done = self._updates_sent = training.updates_done  # both pools loaded the same weights
            self._turn = "trainer"
        self._get(started)
        if spec and training:
            self._open_wire(spec.wire)
        return table

    def _open_wire(self, wire: str) -> None:
        init: dict[str, Any] = {}
        if wire == "nccl":
            address, port = self._get([self.trainers[0].address.remote()])[0]
            num_workers = len(self.engines) * self.client.tensor_parallel
            init = {"master_address": address, "master_port": port, "world_size": 1 + num_workers}
        tied_head = any(self._get([e.own_head.remote() for e in self.engines]))
        self._get([t.open_wire.remote(wire, self.client, init, tied_head) for t in self.trainers])

    # ---- the verbs of a step

    def rollout(
        self, rows: Sequence[PromptRow], sampling: Sampling, version: int, seed: str
    ) -> Iterator[tuple[int, Group]]:
        """Answer and score prompts on all engines. Yields (position in `rows`, group) as each group is complete.

        Engines are given prompts as they have room; results do not depend on which engine answers which prompt. At the
        first failure, and when the caller stops early, all engines give up their open requests.
        """
        self._engines_turn()
        requests = [
            Request(key=i, example=row.example, prompt=row.prompt, sampling=sampling, version=version, seed=seed)
            for i, row in enumerate(rows)
        ]
        # Twice what an engine decodes at once, so that it always has the next sequences at hand.
        dispatcher = Dispatcher(requests, len(self.engines), capacity=2 * self.cfg.rollout.max_num_seqs)
        calls: list[deque[Any]] = [deque() for _ in self.engines]  # open calls of each engine, oldest first
        try:
            for k, share in dispatcher.first_calls():
                calls[k].append(self.engines[k].advance.remote(share))
            while working := [k for k, open_calls in enumerate(calls) if open_calls]:
                position, report = first_result([calls[k][0] for k in working], self._names)
                engine = working[position]
                calls[engine].popleft()
                next_requests = dispatcher.next_call(engine, report)
                if next_requests is not None:
                    calls[engine].append(self.engines[engine].advance.remote(next_requests))
                yield from report.groups
        finally:
            if any(calls):
                for e in self.engines:
                    e.abandon.remote()

    def logprobs(self, samples: Sequence[Sample], which: str) -> list[list[float]]:
        """Log-probs of the trained tokens of each sample under "policy" or "reference"."""
        if not samples:
            return []
        plan = self._plan(samples)
        self._trainer_turn()
        shares = _micro_batches(plan, samples)
        results = self._get([t.logprobs.remote(share, which) for t, share in zip(self.trainers, shares, strict=True)])
        out: list[list[float]] = [[] for _ in samples]
        for micros, values in zip(plan, results, strict=True):
            for micro, rows in zip(micros, values, strict=True):
                for i, row in zip(micro, rows, strict=True):
                    out[i] = row
        return out

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step of the policy on a mini-batch. Returns per-token means, by name and name@data_source."""
        self.updates_done += 1
        self._trainer_turn()
        count = _num_trained_tokens(samples)
        return self._get([t.update.remote(micros, count) for t, micros in self._shares(samples)])[0]

    def update_sft(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One supervised optimizer step. Returns what `update` returns."""
        self.updates_done += 1
        self._trainer_turn()
        count = _num_trained_tokens(samples)
        return self._get([t.update_sft.remote(micros, count) for t, micros in self._shares(samples)])[0]

    def evaluate_sft(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The supervised loss, without an update."""
        self._trainer_turn()
        count = _num_trained_tokens(samples)
        return self._get([t.evaluate_sft.remote(micros, count) for t, micros in self._shares(samples)])[0]

    def sync_weights(self, verify: bool = False) -> None:
        """Push the trained weights to every engine.

        `verify` (the first push of a run): engines hold the same weights already, are wiped, and must hold them again
        after the push. Raises RuntimeError when they do not.
        """
        self._trainer_turn()
        if verify:
            self._loaded_checksums = self._loaded_checksums or self._checksums()
        self._wake_weights()
        if verify:
            self._get([e.wipe_weights.remote() for e in self.engines])
        self._get([t.push_weights.remote() for t in self.trainers])
        if verify and self._checksums() != self._loaded_checksums:
            raise RuntimeError("the first push of weights did not reproduce the engine's own: the wire is broken")
        self._updates_sent = self.updates_done
        self._wake_caches()
        if verify and self._probe_answers() != self._loaded_answers:
            raise InputError(
                "rollout.sleep_level=2: after sleep, wake and a push of equal weights an engine gives other answers "
                "than before, so it lost more than its weights. Set rollout.sleep_level=1."
            )

    def load_engines(self, layers: Iterable[list[tuple[str, torch.Tensor]]]) -> None:
        """Give the engines other weights, from the driver (evaluation of several checkpoints)."""
        self.client.init_weight_transfer_engine({})
        self.client.send(layers)

    def save(self, folder: str) -> dict[str, int]:
        """Write every rank's part of a checkpoint. Returns the size in bytes of every file by name."""
        self._trainer_turn()
        parts = self._get([t.save.remote(folder) for t in self.trainers])
        return {name: size for part in parts for name, size in part.items()}

    def gpu_gib(self) -> float:
        """Total memory of the trainer's smallest GPU, in GiB."""
        return min(self._get([t.gpu_gib.remote() for t in self.trainers]))

    def peak_memory(self) -> dict[str, float]:
        """memory/gib: sum of the peak resident memory of all actors. memory/gpu_gib: peak memory of the fullest GPU.

        memory/gpu_gib counts what the trainer allocated: an engine's share of a GPU is a setting.
        """
        ranks = self._get([t.peak_memory.remote() for t in self.trainers])
        host = sum(gib for gib, _ in ranks) + sum(self._get([e.peak_memory.remote() for e in self.engines]))
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

    # ---- turns on shared GPUs: each verb first asks for its turn. Without shared GPUs nothing happens.

    def _trainer_turn(self) -> None:
        """Give the GPUs to the trainer: engines sleep, and offloaded tensors come back from host memory."""
        if not self.shares_gpus or self._turn == "trainer":
            return
        self._turn = "changing"  # until the change is complete: an interrupted change starts again
        self._get([e.sleep.remote() for e in self.engines])
        if self.cfg.actor.offload:
            self._get([t.onload.remote() for t in self.trainers])
        self._turn = "trainer"

    def _engines_turn(self) -> None:
        """Give the GPUs to the engines: they wake, with the weights of the last update."""
        if not self.shares_gpus or self._turn == "engines":
            return
        if self.cfg.rollout.sleep_level == 1 and self._updates_sent == self.updates_done:
            self._wake_weights()
            self._wake_caches()
        else:
            self.sync_weights()

    def _wake_weights(self) -> None:
        if self.shares_gpus:
            self._turn = "changing"
            self._get([t.release.remote() for t in self.trainers])
            self._get([e.wake.remote(["weights"]) for e in self.engines])

    def _wake_caches(self) -> None:
        if self.shares_gpus:  # the trainer frees its memory first: the caches take the rest of the engine's share
            if self.cfg.actor.offload:
                self._get([t.offload.remote() for t in self.trainers])
            else:
                self._get([t.release.remote() for t in self.trainers])
            self._get([e.wake.remote(["kv_cache"]) for e in self.engines])
            self._turn = "engines"

    def _probe_answers(self) -> list[list[list[int]]]:
        """Each engine's greedy answers to the probes; [] unless sleep drops the weights: only then they are needed."""
        if not self.shares_gpus or self.cfg.rollout.sleep_level != 2:
            return []
        return self._get([e.greedy.remote(self._probes) for e in self.engines])

    def _checksums(self) -> list[dict[str, str]]:
        return self._get([e.checksums.remote() for e in self.engines])

    # ---- shares of a batch, results

    def _plan(self, samples: Sequence[Sample]) -> list[list[list[int]]]:
        """Positions in `samples`, by rank and micro-batch."""
        max_tokens, padded = micro_batch_tokens(self.cfg, self.device), not self.cfg.actor.use_remove_padding
        return spread(samples, len(self.trainers), max_tokens, padded)

    def _shares(self, samples: Sequence[Sample]) -> list[tuple[Any, list[list[Sample]]]]:
        """Each trainer rank with its micro-batches."""
        return list(zip(self.trainers, _micro_batches(self._plan(samples), samples), strict=True))

    def _get(self, calls: list[Any]) -> list[Any]:
        """Results in the order of `calls`. Raises at the first failure, and names the process and the cause."""
        return gather(calls, self._names)


def _micro_batches(plan: list[list[list[int]]], samples: Sequence[Sample]) -> list[list[list[Sample]]]:
    return [[[samples[i] for i in micro] for micro in micros] for micros in plan]


def _num_trained_tokens(samples: Sequence[Sample]) -> float:
    return float(sum(sum(sample.mask) for sample in samples))
