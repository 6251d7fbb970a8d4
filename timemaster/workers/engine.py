"""What runs inside an engine's process: the engine, its rollout loop, its scoring threads. Knows nothing of Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from timemaster.config import Config
from timemaster.config.keys import with_settings
from timemaster.judge import set_judge
from timemaster.models.folder import load_model_config, local_folder
from timemaster.models.vision import vision_spec
from timemaster.models.weights import check_weights
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.engines import make_engine, preload
from timemaster.rollout.loop import RolloutLoop
from timemaster.rollout.progress import Request
from timemaster.system.process import check_visible_gpus, peak_memory_gib, use_cores
from timemaster.tasks import load_tasks
from timemaster.tasks.scorer import make_judge, make_scorer
from timemaster.tokens.render import Renderer
from timemaster.types import Group, Prompt, Sampling
from timemaster.workers.dispatch import EngineReport

SECONDS_PER_CALL = 0.2  # after which an engine tells the driver how much room it has


class EngineRank:
    """The remote methods of an engine. Those that update weights have vLLM's names and meanings."""

    def __init__(self, cfg: Config, name: str, device: str, sharers: int) -> None:
        """`sharers`: how many processes like this one share the cores of the node."""
        self.cfg, self.name = cfg, name
        use_cores(sharers, device)
        if device == "cpu":
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes seconds before the first answer and gains nothing
        preload(name, device)

    def start(self, spec: EngineSpec, num_engines: int) -> None:
        """Start the engine, one of `num_engines`."""
        local = local_folder(self.cfg.model.path, self.cfg.model.revision)
        cfg = self.cfg = with_settings(self.cfg, {"model.path": local})
        spec = replace(spec, model_path=local_folder(spec.model_path, cfg.model.revision))
        if spec.device == "cuda":
            check_visible_gpus(spec.tensor_parallel)
        tasks = load_tasks(cfg.data.recipes)
        environments = {source: task.environment for source, task in tasks.items()}
        vision = vision_spec(load_model_config(cfg.model.path), spec.min_pixels, spec.max_pixels)
        check_weights(spec.model_path)
        self.engine = make_engine(self.name, spec)
        set_judge(make_judge(cfg, num_engines))
        self.loop = RolloutLoop(
            engine=self.engine,
            renderer=Renderer(cfg.model.path, vision),
            score=make_scorer(tasks, cfg.reward).start_group,
            environment=lambda example: environments.get(example.data_source),
            max_model_len=spec.max_model_len,
        )

    def advance(self, requests: Sequence[Request]) -> EngineReport:
        """Take in `requests`, then work until a group is complete or SECONDS_PER_CALL have passed.

        Raises what a reward raises.
        """
        for request in requests:
            self.loop.add(request)
        until = time.monotonic() + SECONDS_PER_CALL
        groups: list[tuple[int, Group]] = []
        while self.loop.num_open() and not groups and (left := until - time.monotonic()) > 0:
            groups += self.loop.advance(left)
        return EngineReport(groups, self.loop.num_unfinished())

    def abandon(self) -> None:
        """Give up all open requests: the driver no longer wants their answers."""
        self.loop.abandon()

    def greedy(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The first tokens of the most likely answer to each prompt, to compare an engine with itself over time."""
        sampling = Sampling(temperature=0.0, max_tokens=min(self.cfg.data.max_response_length, 32))
        for k, prompt in enumerate(prompts):
            self.engine.submit(str(k), prompt, sampling)
        answers: dict[int, list[int]] = {}
        while self.engine.busy():
            answers |= {int(key): completions[0].token_ids for key, completions in self.engine.step()}
        return [answers[k] for k in range(len(prompts))]

    def own_head(self) -> bool:
        return self.engine.own_head()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.engine.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self.engine.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.engine.update_weights(update_info)

    def finish_weight_update(self) -> None:
        self.engine.finish_weight_update()

    def checksums(self) -> dict[str, str]:
        return self.engine.checksums()

    def wipe_weights(self) -> None:
        self.engine.wipe_weights()

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self, tags: list[str]) -> None:
        self.engine.wake(tags)

    def peak_memory(self) -> float:
        return peak_memory_gib()
