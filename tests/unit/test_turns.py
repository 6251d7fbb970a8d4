"""Turn-taking on shared GPUs, without a GPU: an engine that refuses to answer asleep, a trainer that works only alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import question
from timemaster.backends.spec import TrainerSpec
from timemaster.config import Config
from timemaster.rollout.progress import Request
from timemaster.types import Group, InputError, Prompt, PromptRow, Sample, Sampling
from timemaster.workers import handle as workers
from timemaster.workers.dispatch import EngineReport

ROW = PromptRow(question("row", []), Prompt(id="row", token_ids=[1], media=[]))
SAMPLE = Sample(id="one", token_ids=[1, 2], mask=[0, 1], media=[])
EVERYTHING = {"weights", "kv_cache"}


class Actor:
    """A Ray actor whose calls are answered at once."""

    _actor_id = b""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.target, name))


class Engine:
    """As vLLM: it answers only with all its memory there, and at level 2 forgets its weights in sleep."""

    trainer: Trainer

    def __init__(self) -> None:
        self.awake, self.weights, self.pushes, self.answer = set(EVERYTHING), 0, 0, 7

    def start(self, spec: Any, num_engines: int) -> None:
        self.level = spec.sleep_level

    def sleep(self) -> None:
        self.awake = set()
        self.weights = self.weights if self.level == 1 else -1

    def wake(self, tags: list[str]) -> None:
        assert not self.trainer.buffers, "the trainer's buffers are still on the GPU"
        if "kv_cache" in tags:
            assert "weights" in self.awake
            assert self.trainer.waits == self.trainer.offloads, "no room for the caches"
        self.awake |= set(tags)

    def advance(self, requests: list[Request]) -> EngineReport:
        assert self.awake == EVERYTHING, "asleep: it would spin for ever"
        assert self.weights == self.trainer.updates, "sampled from old or lost weights"
        return EngineReport([(request.key, Group(request.example, [])) for request in requests], num_unfinished=0)

    def abandon(self) -> None:
        pass

    def greedy(self, prompts: list[Any]) -> list[list[int]]:
        self.advance([])
        return [[self.answer] for _ in prompts]

    def own_head(self) -> bool:
        return False

    def checksums(self) -> dict[str, str]:
        assert "weights" in self.awake
        return {"all": str(self.weights)}

    def wipe_weights(self) -> None:
        assert "weights" in self.awake
        self.weights = -1


class Trainer:
    """It works only while the engine sleeps and its own state is on the GPU, and leaves buffers behind."""

    def __init__(self, engine: Engine, offloads: bool) -> None:
        self.engine, self.offloads, self.waits = engine, offloads, True  # waits: its state is in host memory
        self.updates = self.buffers = 0
        engine.trainer = self

    def preload(self) -> None:
        pass

    def place(self) -> tuple[str, list[str]]:
        return "node", ["0"]

    def address(self) -> tuple[str, int]:
        return "host", 1

    def start(self, *_: Any) -> dict[str, Any]:
        self.waits = False
        self.save("")
        return {}

    def open_wire(self, *_: Any) -> None:
        pass

    def save(self, folder: str) -> dict[str, int]:
        assert not self.engine.awake, "the engine holds the GPU"
        assert not self.waits, "its state is in host memory"
        self.buffers = 1
        return {"state/__0_0.distcp": 1}

    def logprobs(self, micros: list[list[Sample]], which: str) -> list[list[list[float]]]:
        self.save("")
        return [[[0.0] for _ in micro] for micro in micros]

    def update(self, *_: Any) -> dict[str, float]:
        self.save("")
        self.updates += 1
        return {}

    def push_weights(self) -> None:
        assert self.engine.awake == {"weights"}, "a push wants the engine's weights, and the room of its caches"
        assert not self.waits
        self.engine.weights, self.buffers = self.updates, 1
        self.engine.pushes += 1

    def release(self) -> None:
        self.buffers = 0

    def offload(self) -> None:
        self.waits, self.buffers = True, 0

    def onload(self) -> None:
        assert not self.engine.awake
        self.waits = False


class Rig:
    """Workers on one shared GPU. `cut_at`: the reply that a second Ctrl-C keeps from the driver, counted from here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, level: int, offloads: bool) -> None:
        self.engine, self.cut_at = Engine(), 0
        self.trainer = Trainer(self.engine, offloads)
        monkeypatch.setattr(workers, "start_ray", lambda cfg: "cuda")
        monkeypatch.setattr(workers, "session_folder", lambda: "no session")
        monkeypatch.setattr(workers, "start_reaper", lambda session: None)
        monkeypatch.setattr(workers, "place_trainers", lambda *_: [Actor(self.trainer)])
        monkeypatch.setattr(workers, "place_engines", lambda *_: [Actor(self.engine)])
        monkeypatch.setattr(workers, "gather", self.gather)
        monkeypatch.setattr(workers, "first_result", lambda calls, names: (0, self.gather(calls, names)[0]))
        cfg = Config()
        cfg.rollout.sleep_level, cfg.actor.offload = level, offloads
        self.workers = workers.Workers(cfg, "vllm", trainers=True)
        spec: Any = SimpleNamespace(sleep_level=level, wire="ipc")
        self.workers.start(spec, training=TrainerSpec(num_updates=1, with_reference=True), probes=[None])

    def gather(self, calls: list[Any], _: Any) -> list[Any]:
        self.cut_at -= 1
        if self.cut_at == 0:
            raise KeyboardInterrupt
        return calls

    def learn(self) -> None:
        self.workers.logprobs([SAMPLE], "reference")
        self.workers.update([SAMPLE])
        self.workers.sync_weights()

    def answer(self) -> None:
        assert list(self.workers.rollout([ROW], Sampling(), 0, "")) == [(0, Group(ROW.example, []))]

    def cut(self, after: int) -> None:
        self.cut_at = after


EVENTS: dict[str, Callable[[Rig], object]] = {
    "answers (a rollout or a validation)": Rig.answer,
    "a step": Rig.learn,
    "an update whose push never came": lambda rig: rig.workers.update([SAMPLE]),
    "reference log-probs, then nothing to learn": lambda rig: rig.workers.logprobs([SAMPLE], "reference"),
    "a checkpoint": lambda rig: rig.workers.save("folder"),
    "a push": lambda rig: rig.workers.sync_weights(),
    "Ctrl-C within the next one": lambda rig: rig.cut(1),
    "Ctrl-C later in the next one": lambda rig: rig.cut(3),
}


@pytest.mark.parametrize("offloads", [False, True])
@pytest.mark.parametrize("level", [1, 2])
def test_whatever_the_order_of_events_each_finds_the_gpu_its_own(monkeypatch, level: int, offloads: bool) -> None:
    """Answers come after each order, too: from awake engines with the newest weights."""
    for order in product(EVENTS, repeat=4):
        rig = Rig(monkeypatch, level, offloads)
        try:
            for event in order:
                with suppress(KeyboardInterrupt):
                    EVENTS[event](rig)
                if not event.startswith("Ctrl-C"):
                    rig.cut(0)  # it has been the next one
            rig.cut(0)
            rig.answer()
        except AssertionError as error:
            raise AssertionError(f"{error}: {', '.join(order)}") from error


def test_engines_that_kept_their_weights_are_not_sent_them_again(monkeypatch) -> None:
    for level, pushes in ((1, 0), (2, 3)):
        rig = Rig(monkeypatch, level, False)
        for _ in range(3):
            rig.workers.save("folder")
            rig.answer()
        assert rig.engine.pushes == pushes


def test_an_evaluation_and_a_supervised_run_have_the_gpu_to_themselves(monkeypatch) -> None:
    rig = Rig(monkeypatch, 1, True)
    rig.engine.awake = set(EVERYTHING)
    alone = workers.Workers(rig.workers.cfg, "vllm", trainers=False)
    for _ in ("latest", "base"):
        assert len(list(alone.rollout([ROW], Sampling(), 0, ""))) == 1
    rig.engine.sleep()  # there is none
    alone = workers.Workers(rig.workers.cfg, "", trainers=True)
    alone.update([SAMPLE])
    alone.save("folder")
    assert rig.engine.awake == set()


def test_nothing_to_ask_the_reference_leaves_the_engines_awake(monkeypatch) -> None:
    rig = Rig(monkeypatch, 1, False)
    rig.answer()
    assert rig.workers.logprobs([], "reference") == []
    assert rig.engine.awake == EVERYTHING


def test_level_2_is_refused_where_an_engine_answers_otherwise_after_its_first_sleep(monkeypatch) -> None:
    Rig(monkeypatch, 2, False).workers.sync_weights(verify=True)
    rig = Rig(monkeypatch, 2, False)
    rig.engine.answer = 8  # something that no push brings has changed
    with pytest.raises(InputError, match=r"rollout.sleep_level=2: .* Set rollout.sleep_level=1"):
        rig.workers.sync_weights(verify=True)
    rig = Rig(monkeypatch, 1, False)
    rig.engine.answer = 8  # what is not trusted only is asked
    rig.workers.sync_weights(verify=True)
