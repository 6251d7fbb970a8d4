"""Seconds to score a step's rollouts with a judge that takes a second for each.

    python benchmarks/judge_speed.py [--rollouts 320] [--concurrency 64] [--seconds 1.0]

320 rollouts (64 prompts of 5 answers, as CTU's script has them) go through `Scorer` with accuracy and `extension`, as
in an engine's process; the judge is a server on this machine that waits and then grades. One after the other, as the
published code asks, the same calls take rollouts x seconds: computed, not run. The bar is 8 seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.servers import ChatServer, says
from timemaster.judge import Budget, Chat, Endpoint, Judge, Store, set_judge
from timemaster.rewards import RewardPart, Scorer, accuracy, extension
from timemaster.rewards.extension import ADVICE
from timemaster.types import Example, Message, Part, Rollout

logger = logging.getLogger(__name__)

LABELS = ("Desktop", "Laptop")
PARTS = (
    RewardPart("accuracy", 0.9, accuracy(LABELS)),
    RewardPart("extension", 0.5, extension(), only_if="accuracy"),
)
ROW = Example(
    id="row", messages=[Message("user", [Part("text", text="Which?")])], answer="Laptop", data_source="computer_dataset"
)


def rollout(number: int) -> Rollout:
    text = f"<think>The line rests.</think><class>Laptop</class><extension>Unplug it at {number}.</extension>"
    return Rollout(id="row", token_ids=[], mask=[], logprobs=[], versions=[], media=[], text=text, finish_reason="stop")


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to score rollouts with a slow judge.")
    parser.add_argument("--rollouts", type=int, default=320)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="that the judge takes for an answer")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    verdict = json.dumps(dict.fromkeys(ADVICE.criteria, 8))
    with ChatServer(says(verdict, options.seconds)) as server, tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint(base_url=server.url, model="judge")
        chat = Chat(endpoint, Budget(), Store(Path(folder) / "judge.sqlite"), "benchmark", options.concurrency)
        set_judge(Judge(chats=[chat]))
        scorer = Scorer(lambda _: PARTS, "raise", num_threads=8)
        begin = time.perf_counter()
        scores = [future.result() for future in [scorer.submit(rollout(i), ROW) for i in range(options.rollouts)]]
        seconds = time.perf_counter() - begin
        known = sum(score is not None and not score.unknown for score in scores)
        most = server.most_in_flight
    logger.info("%d of %d scored in %.2f s, %d calls at once at most", known, len(scores), seconds, most)
    logger.info("one after the other: %.0f s (computed)", options.rollouts * options.seconds)


if __name__ == "__main__":
    main()
