"""One rollout engine with its scoring threads: what runs inside an engine's process. Knows nothing of Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from timemaster.config import Config
from timemaster.judge import set_judge
from timemaster.models.folder import load_model_config, local_folder
from timemaster.models.vision import vision_spec
from timemaster.models.weights import check_weights
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.engines import make_engine, preload
from timemaster.rollout.loop import RolloutLoop
from timemaster.system.process import check_visible_gpus, peak_memory_gib, use_cores
from timemaster.tasks import load_tasks
from timemaster.tasks.scorer import make_judge, make_scorer
from timemaster.tokens.render import Renderer
from timemaster.types import Example, Group, Prompt, Sampling


class EngineRank:
    """The remote methods of an engine. The weight verbs are vLLM's."""

    def __init__(self, cfg: Config, name: str, device: str, sharers: int) -> None:
        """`sharers`: as many processes like this one share the node's cores."""
        self.cfg, self.name = cfg, name
        use_cores(sharers, device)
        if device == "cpu":
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling costs seconds at the first answer and gains nothing
        preload(name, device)

    def start(self, spec: EngineSpec, num_engines: int) -> None:
        """Start the engine, one of `num_engines`."""
        cfg = self.cfg
        cfg.model.path = local_folder(cfg.model.path, cfg.model.revision)
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

    def rollout(self, jobs: list[tuple[Example, Prompt]], sampling: Sampling, version: int, seed: str) -> list[Group]:
        return self.loop.run(jobs, sampling, version, seed)

    def greedy(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The first tokens of the most likely answer to each prompt, to compare an engine with itself."""
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
