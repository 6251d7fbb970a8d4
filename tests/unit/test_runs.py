"""Metrics, checkpoints on disk, the turn loop: without Ray, engines or a model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import answer_of, picture, question
from tests.servers import ChatServer, says
from timemaster.config import Config, RewardConfig
from timemaster.judge import Budget, Chat, Endpoint, Judge, Rubric, Store, set_judge, the_judge
from timemaster.metrics.answers import Answer
from timemaster.metrics.classification import UNPARSED
from timemaster.metrics.intervals import wilson
from timemaster.metrics.summary import summarise as summarise_items
from timemaster.metrics.summary import validation_metrics
from timemaster.models.family import default_family
from timemaster.rewards import RewardPart, Scorer
from timemaster.rollout.loop import RolloutLoop
from timemaster.rollout.progress import stable_seed
from timemaster.run import checkpoints
from timemaster.run.folder import ResumePoint, Run
from timemaster.run.inputs import rows_identity
from timemaster.tasks.scorer import make_scorer
from timemaster.types import Completion, Example, InputError, Prompt, Rollout, Sampling, Score

LABELS = ["Desktop", "Laptop"]
RUBRIC = Rubric("an answer", {"depth": "gives reasons"})


def answered(truth: str, predicted: str | None, source: str = "computer_dataset") -> Answer:
    right = float(truth == predicted)
    parts = {"accuracy": right, "format": float(predicted is not None)}
    return answer_of(source, truth, predicted, LABELS, score=right, parts=parts, tokens=10)


def summarise(answers: list[Answer]) -> dict[str, Any]:
    return summarise_items([[answer] for answer in answers], {})


def test_summary_by_hand() -> None:
    answers = [
        answered("Desktop", "Desktop"),
        answered("Desktop", "Laptop"),
        answered("Laptop", "Laptop"),
        answered("Laptop", None),
    ]
    got = summarise(answers)
    assert got["n"] == 4
    assert got["accuracy"] == 0.5
    assert got["unparsed"] == 1
    assert got["format_rate"] == 0.75
    # Desktop: said 1, true 2, hit 1 -> f1 2/3; Laptop: said 2, true 2, hit 1 -> f1 1/2
    assert got["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got["confusion"]["Laptop"] == {"Desktop": 0, "Laptop": 1, UNPARSED: 1}
    assert got["per_class"]["Laptop"]["unparsed"] == 1


def test_what_a_judge_could_not_settle_is_left_out_of_the_reward_and_counted() -> None:
    graded = [
        replace(answered("Desktop", "Desktop"), score=1.4, parts={"accuracy": 1.0, "extension": 0.8}),
        replace(answered("Desktop", "Desktop"), score=1.0, unknown=["extension"], parts={"accuracy": 1.0}),
        replace(answered("Laptop", None), score=0.0, parts={"accuracy": 0.0, "extension": 0.0}),
    ]
    got = summarise(graded)
    assert (got["reward_mean"], got["unknown"]) == (0.7, 1)
    assert got["parts"] == {"accuracy": pytest.approx(2 / 3), "extension": 0.4}
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert summarise([graded[1]])["reward_mean"] is None


def test_an_unparsed_answer_is_no_class() -> None:
    got = summarise([answered("Desktop", None), answered("Laptop", None)])
    assert got["accuracy"] == 0.0
    assert all(figures["precision"] == 0.0 for figures in got["per_class"].values())
    assert sum(row[UNPARSED] for row in got["confusion"].values()) == 2


def test_free_text_is_never_unparsed_while_training() -> None:
    free = replace(answered("4.5", None), choices=())
    assert "val/unparsed" not in validation_metrics(summarise([free]))
    assert validation_metrics(summarise([answered("Laptop", None)]))["val/unparsed"] == 1.0


def test_several_sources_are_also_counted_apart() -> None:
    got = summarise([answered("Desktop", "Desktop", "a"), answered("Laptop", "Desktop", "b")])
    assert got["by_data_source"]["a"]["accuracy"] == 1.0
    assert got["by_data_source"]["b"]["accuracy"] == 0.0


def test_wilson_interval_by_hand() -> None:
    # p = 0.8, n = 100: centre (0.8 + 3.8416/200) / 1.038416 = 0.788902,
    # half = 1.96 / 1.038416 * sqrt(0.0016 + 3.8416 / 40000) = 0.077739
    assert wilson(80, 100) == pytest.approx((0.711163, 0.866641), abs=2e-5)


# ---- checkpoints


def finished(run: Path, step: int, keep: int = 2) -> Path:
    folder = checkpoints.begin(run, step, needed_bytes=1)
    names = ("state/.metadata", "huggingface/config.json", "rng_0.pt")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("w" * 100, encoding="utf-8")
    return checkpoints.commit(folder, {"step": step, "updates_done": step}, dict.fromkeys(names, 100), keep=keep)


def test_older_checkpoints_are_pruned_after_the_new_one_is_there(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        finished(tmp_path, step)
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == [10, 15]
    assert checkpoints.read_state(tmp_path / "global_step_15") == {"step": 15, "updates_done": 15}


def test_a_kill_while_saving_leaves_the_older_checkpoint_as_latest(tmp_path: Path) -> None:
    finished(tmp_path, 5)
    half = checkpoints.begin(tmp_path, 10, needed_bytes=1)
    (half / "weights").write_text("half", encoding="utf-8")  # and then the process is killed
    assert checkpoints.latest(tmp_path) == tmp_path / "global_step_5"
    finished(tmp_path, 10)
    assert checkpoints.latest(tmp_path) == tmp_path / "global_step_10"
    assert not list(tmp_path.glob("tmp_*"))


def test_a_full_disk_is_said_before_anything_is_lost(tmp_path: Path) -> None:
    finished(tmp_path, 5)
    with pytest.raises(InputError, match=r"no space left to save step 10 .* The last checkpoint is .*global_step_5"):
        checkpoints.begin(tmp_path, 10, needed_bytes=1 << 60)
    assert checkpoints.latest(tmp_path) == tmp_path / "global_step_5"
    assert not list(tmp_path.glob("tmp_*"))


def test_a_checkpoint_that_lacks_a_ranks_part_is_refused_and_prunes_nothing(tmp_path: Path, monkeypatch) -> None:
    for step in (5, 10):
        finished(tmp_path, step)
    hollow = checkpoints.begin(tmp_path, 15, needed_bytes=1)  # the second rank wrote to another disk
    (hollow / "rng_0.pt").write_text("w", encoding="utf-8")
    monkeypatch.setattr(checkpoints, "SECONDS_TO_APPEAR", 0.0)
    with pytest.raises(InputError, match=r"rng_1.pt is missing\. Every node must see .*shared disk"):
        checkpoints.commit(hollow, {"step": 15}, {"rng_0.pt": 1, "rng_1.pt": 1}, keep=1)
    assert [step for step, _ in checkpoints.checkpoints(tmp_path)] == [5, 10]


def test_what_another_node_wrote_may_appear_late_on_a_shared_disk(tmp_path: Path) -> None:
    folder = checkpoints.begin(tmp_path, 5, needed_bytes=1)
    (folder / "rng_1.pt").write_text("", encoding="utf-8")  # there, and not of its size yet

    def appear() -> None:
        time.sleep(0.2)
        (folder / "rng_1.pt").write_text("w", encoding="utf-8")
        (folder / "state").mkdir()
        (folder / "state" / "__1_0.distcp").write_text("w", encoding="utf-8")

    threading.Thread(target=appear).start()
    checkpoints.commit(folder, {"step": 5}, {"rng_1.pt": 1, "state/__1_0.distcp": 1}, keep=1)
    assert checkpoints.latest(tmp_path) == tmp_path / "global_step_5"


@pytest.mark.parametrize("name", ["visual.merger.mlp.0.weight", "model.layers.3.mlp.up_proj.weight", "lm_head.weight"])
def test_published_and_live_names_are_inverse(name: str) -> None:
    family = default_family()
    assert family.published_name(family.live_name(name)) == name
    assert family.live_name(family.live_name(name)) == family.live_name(name)


# ---- the turn loop, with an engine of ten lines


class EchoEngine:
    """Answers with the tokens it is told to, one request a step, last in first out."""

    def __init__(self, answer: list[int], stop: int) -> None:
        self.answer, self.stop, self.queue, self.seen = answer, stop, [], []

    def submit(self, key: str, prompt: Prompt, sampling: Sampling) -> None:
        self.queue.append((key, prompt, sampling))
        self.seen.append((prompt, sampling))

    def busy(self) -> bool:
        return bool(self.queue)

    def abort(self, keys: Sequence[str]) -> None:
        self.queue = [item for item in self.queue if item[0] not in keys]

    def step(self) -> list[tuple[str, list[Completion]]]:
        key, _, sampling = self.queue.pop()
        answer = [*self.answer, self.stop]
        one = Completion(token_ids=answer, logprobs=[-0.5] * len(answer), finish_reason="stop")
        return [(key, [one] * sampling.n)]


@pytest.fixture(scope="module")
def renderer(tiny: str):
    from timemaster.models.folder import load_model_config
    from timemaster.models.vision import vision_spec
    from timemaster.tokens.render import Renderer

    return Renderer(tiny, vision_spec(load_model_config(tiny), 784, 50176))


def loop(renderer, engine) -> RolloutLoop:
    def length(rollout: Rollout, example) -> float:
        return float(len(rollout.text))

    scorer = Scorer(lambda example: [RewardPart("length", 1.0, length)], "raise", num_threads=2)
    return RolloutLoop(
        engine=engine, renderer=renderer, score=scorer.start_group, environment=lambda example: None, max_model_len=256
    )


def test_groups_come_back_in_order_and_scored(renderer) -> None:
    engine = EchoEngine(renderer.encode("yes"), renderer.end_of_turn)
    examples = [question(f"row {i}", [picture(i)]) for i in range(3)]
    jobs = [(example, renderer.prompt(example)) for example in examples]
    groups = loop(renderer, engine).run(jobs, Sampling(n=2, max_tokens=8), version=7, seed="1/3")
    assert [group.example.id for group in groups] == ["row 0", "row 1", "row 2"]
    rollout = groups[1].rollouts[1]
    assert rollout.text == "yes"
    assert rollout.score == Score(total=3.0, parts={"length": 3.0})
    sampled = [t for t, m in zip(rollout.token_ids, rollout.mask, strict=True) if m]
    assert sampled == [*renderer.encode("yes"), renderer.end_of_turn]
    assert {v for v, m in zip(rollout.versions, rollout.mask, strict=True) if m} == {7}
    seeds = [sampling.seed for _, sampling in engine.seen]
    assert len(set(seeds)) == 3
    assert seeds[0] == stable_seed("1/3/row 0")


def test_the_judge_is_asked_while_others_still_decode(renderer, tmp_path: Path) -> None:
    """The engine's next answer waits for the judge to be asked about the one before: it would wait in vain if scoring
    came after decoding."""

    async def graded(rollout: Rollout, example: Example) -> dict[str, float | None]:
        found = await the_judge().grade(RUBRIC, example, {"answer": rollout.text})
        return {"score": found.score}

    class Waiting(EchoEngine):
        def step(self) -> list[tuple[str, list[Completion]]]:
            asked = 3 - len(self.queue)
            for _ in range(1000):
                if len(server.requests) >= asked:
                    return super().step()
                time.sleep(0.01)
            raise AssertionError(f"the judge was asked {len(server.requests)} times, not {asked}")

    with ChatServer(says('{"depth": 8}', seconds=0.2)) as server:
        endpoint = Endpoint(base_url=server.url, model="m")
        set_judge(Judge(chats=[Chat(endpoint, Budget(), Store(tmp_path / "judge.sqlite"), "run", 8)]))
        engine = Waiting(renderer.encode("yes"), renderer.end_of_turn)
        examples = [question(f"row {i}", [picture(i)], f"Which of {i}?") for i in range(3)]
        scorer = Scorer(lambda example: [RewardPart("graded", 1.0, graded)], "raise", num_threads=2)
        graded_loop = loop(renderer, engine)
        graded_loop.score = scorer.start_group
        groups = graded_loop.run(
            [(example, renderer.prompt(example)) for example in examples], Sampling(n=1, max_tokens=8), 0, "s"
        )
        set_judge(None)
    assert [rollout.score.total for group in groups for rollout in group.rollouts if rollout.score] == [0.8] * 3


def test_a_row_of_an_unknown_source_says_what_to_add() -> None:
    rollout = Rollout(id="r", token_ids=[], mask=[], logprobs=[], versions=[], media=[], text="", finish_reason="stop")
    with pytest.raises(InputError, match=r"no task for data_source='power_demand' .* data\.recipes"):
        make_scorer({}, RewardConfig()).submit(rollout, question("r", []))


def test_the_users_own_reward_replaces_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(data_source, solution_str, ground_truth, extra_info):\n    return 0.25\n", encoding="utf-8"
    )
    rollout = Rollout(id="r", token_ids=[], mask=[], logprobs=[], versions=[], media=[], text="", finish_reason="stop")
    scorer = make_scorer({}, RewardConfig(path=f"{tmp_path}/mine.py:score"))
    assert scorer.submit(rollout, question("r", [])).result().total == 0.25


def test_metrics_of_undone_steps_are_dropped_on_resume(tmp_path: Path) -> None:
    config = Config()
    config.trainer.default_local_dir = str(tmp_path)
    rows = "".join(json.dumps({"step": s}) + "\n" for s in range(1, 8))
    (tmp_path / "metrics.jsonl").write_text(
        rows + '{"step": 8, "los', encoding="utf-8"
    )  # a full disk cut the last line
    (tmp_path / "rollouts").mkdir()
    for step in (5, 6, 7):
        (tmp_path / "rollouts" / f"step_{step}.jsonl").write_text("{}", encoding="utf-8")
    finished(tmp_path, 5)
    assert Run(config, "grpo").resume_point({"rows": 100}) == ResumePoint(
        checkpoint=str(tmp_path / "global_step_5"), step=5, updates_done=5
    )
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step_5.jsonl"]
    assert [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ] == [
        1,
        2,
        3,
        4,
        5,
    ]
    config.trainer.resume_mode = "disable"
    with pytest.raises(InputError, match="resume_mode=disable"), Run(config, "grpo"):
        pass
    assert "resume_mode: auto" in (tmp_path / "config.yaml").read_text(encoding="utf-8")


def test_another_kind_of_run_or_order_of_rows_is_not_continued(tmp_path: Path) -> None:
    config = Config()
    config.trainer.default_local_dir = str(tmp_path)
    rows = [question(f"row {i}", [picture(i)]) for i in range(4)]
    run = Run(config, "sft")
    run.resume_point(rows_identity(rows))
    finished(tmp_path, 5)
    path = tmp_path / "global_step_5" / "trainer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(state | run.identity), encoding="utf-8")

    def resume(mode: str, rows: list[Example]) -> int:
        return Run(config, mode).resume_point(rows_identity(rows)).step

    assert resume("sft", rows) == 5
    with pytest.raises(InputError, match=r"written with mode 'sft', now 'grpo'; rows 4, now 3\. Restore"):
        resume("grpo", rows[:3])
    changed = {
        "answers": replace(rows[1], answer="another"),
        "ids": replace(rows[1], id="another"),
        "texts": replace(rows[1], messages=question("", [picture(1)], "another").messages),
        "images": replace(rows[1], messages=question("", [picture(9)]).messages),
    }
    for what, row in changed.items():
        with pytest.raises(InputError, match=f"written with other {what} in its rows\\. Restore"):
            resume("sft", [rows[0], row, *rows[2:]])
    with pytest.raises(InputError, match=r"written with its rows in another order\. Restore"):
        resume("sft", rows[::-1])
    with pytest.raises(InputError, match=r"written with other answers in its rows\. Restore"):
        resume("sft", [replace(rows[0], answer="b"), replace(rows[1], answer="a"), *rows[2:]])
    config.data.seed, config.model.path = 2, "Qwen/other"
    with pytest.raises(InputError, match="seed 1, now 2; model '', now 'Qwen/other'"):
        resume("sft", rows)


def test_a_checkpoint_of_an_older_version_is_continued_with_a_warning(tmp_path: Path, caplog) -> None:
    config = Config()
    config.trainer.default_local_dir = str(tmp_path)
    path = finished(tmp_path, 5) / "trainer.json"
    path.write_text(json.dumps({"step": 5, "updates_done": 5, "mode": "sft", "rows": 1}), encoding="utf-8")
    assert Run(config, "sft").resume_point(rows_identity([question("row", [])])).step == 5
    assert "no list of its files" in caplog.text
    assert "no digest of its rows" in caplog.text
    with pytest.raises(InputError, match="rows 1, now 0"):
        Run(config, "sft").resume_point(rows_identity([]))


def test_an_evaluation_leaves_the_runs_record_alone(tmp_path: Path) -> None:
    config = Config()
    config.trainer.default_local_dir = str(tmp_path)
    with Run(config, "eval"):
        pass
    assert list(tmp_path.iterdir()) == []
