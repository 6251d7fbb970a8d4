"""How much of a judge's time hides behind decoding: the rollouts of a step, decoded by vLLM, scored by a slow judge.

    python benchmarks/judge_overlap.py [--prompts 64] [--answers 5] [--seconds 1.0] [--repeats 3]

The tiny model decodes answers of random length, the same ones each time, --at-once at a time, in three ways in turn:
alone; with the judge asked afterwards; with the judge asked as each prompt's answers are done, as `RolloutLoop` does in
a training step. The judge is a process of its own that waits --seconds and then grades; 64 calls at once, no reply
cached. Printed are the seconds of each repetition, and the medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conftest import spec_for
from tests.helpers import picture, question, settled
from tests.servers import ChatServer, says
from timemaster.judge import Budget, Chat, Endpoint, Judge, Store, set_judge, the_judge
from timemaster.models.folder import load_model_config
from timemaster.models.tiny import write_tiny
from timemaster.models.vision import vision_spec
from timemaster.rewards import RewardPart, Scorer
from timemaster.rewards.extension import ADVICE
from timemaster.rollout.engines import make_engine, preload
from timemaster.rollout.loop import RolloutLoop
from timemaster.tokens.render import Renderer
from timemaster.types import Example, Group, Rollout, Sampling, Score

logger = logging.getLogger(__name__)

CONCURRENCY = 64
MAX_TOKENS = 512


async def graded(rollout: Rollout, example: Example) -> dict[str, Any]:
    """The judge's opinion of every answer, whatever it says."""
    found = await the_judge().grade(ADVICE, example, {"advice": rollout.text})
    return {"score": found.score, "reason": found.reason}


class Step:
    """The rollouts of one training step, again and again."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self.options = options
        self.scorer = Scorer(lambda _: [RewardPart("graded", 1.0, graded)], "raise", num_threads=8)
        self.renderer = Renderer(model, vision_spec(load_model_config(model), 784, 50176))
        spec = spec_for(model, self.renderer.end_of_turn)
        self.engine = make_engine("vllm", replace(spec, max_model_len=640, max_num_seqs=options.at_once))
        self.rows = [question(f"row {i}", [picture(i)]) for i in range(options.prompts)]

    def decode(self, score: Any) -> tuple[float, list[Group]]:
        """Seconds, and what was answered."""
        jobs = [(row, self.renderer.prompt(row)) for row in self.rows]
        loop = RolloutLoop(
            engine=self.engine, renderer=self.renderer, score=score, environment=lambda _: None, max_model_len=640
        )
        sampling = Sampling(n=self.options.answers, temperature=1.0, max_tokens=MAX_TOKENS)
        begin = time.perf_counter()
        groups = loop.run(jobs, sampling, 0, "step")
        return time.perf_counter() - begin, groups

    def judge(self, groups: list[Group]) -> float:
        """Seconds to score all answers, none decoded meanwhile."""
        begin = time.perf_counter()
        waiting: list[Future[Score | None]] = [
            self.scorer.submit(r, group.example) for group in groups for r in group.rollouts
        ]
        for one in waiting:
            one.result()
        return time.perf_counter() - begin


def ask_afresh(url: str, folder: Path) -> None:
    """Make the judge one that has no reply yet; `folder` holds those of before."""
    store = Store(folder / f"judge_{len(list(folder.glob('judge_*.sqlite')))}.sqlite")
    set_judge(Judge(chats=[Chat(Endpoint(base_url=url, model="judge"), Budget(), store, "benchmark", CONCURRENCY)]))


def measure(step: Step, url: str, folder: Path, repeats: int) -> dict[str, float]:
    """Median seconds of each way."""
    unscored = settled(Score(total=0.0, parts={}))
    seconds: dict[str, list[float]] = {"decode": [], "judge": [], "together": []}
    step.decode(unscored)  # the first one warms up
    for _ in range(repeats):
        took, groups = step.decode(unscored)
        seconds["decode"].append(took)
        ask_afresh(url, folder)
        seconds["judge"].append(step.judge(groups))
        ask_afresh(url, folder)
        seconds["together"].append(step.decode(step.scorer.start_group)[0])
        logger.info("  ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items()))
    return {name: median(values) for name, values in seconds.items()}


def serve(urls: Queue[str], seconds: float) -> None:
    """The judge, until it is killed."""
    with ChatServer(says(json.dumps(dict.fromkeys(ADVICE.criteria, 8)), seconds)) as server:
        urls.put(server.url)
        Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="How much of a judge's time hides behind decoding.")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--answers", type=int, default=5, help="to each prompt")
    parser.add_argument("--at-once", type=int, default=64, help="sequences that the engine decodes together")
    parser.add_argument("--seconds", type=float, default=1.0, help="that the judge takes for an answer")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    preload("vllm", "cpu")
    spawn = multiprocessing.get_context("spawn")
    urls = spawn.Queue()
    spawn.Process(target=serve, args=(urls, options.seconds), daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step = Step(str(write_tiny(folder / "tiny")), options)
        found = measure(step, urls.get(), folder, options.repeats)
    one_after_the_other = found["decode"] + found["judge"]
    hidden = (one_after_the_other - found["together"]) / min(found["decode"], found["judge"])
    logger.info("decoding alone %.1f s, judging alone %.1f s, one after the other %.1f s", found["decode"],
                found["judge"], one_after_the_other)  # fmt: skip
    logger.info("together %.1f s: %.0f %% of the shorter is hidden", found["together"], 100 * hidden)


if __name__ == "__main__":
    main()
