"""A run's folder: one process at a time, nothing twice after a crash, signals, a full disk."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import picture, question
from timemaster.config import Config
from timemaster.judge import ChatRefused
from timemaster.run import checkpoints
from timemaster.run.folder import ResumePoint, Run, StepPlan, is_done, save, saved_when_judge_refuses
from timemaster.run.sinks import TensorBoard
from timemaster.run.step_names import by_step, step_of
from timemaster.system.files import replacing
from timemaster.system.locks import folder_lock
from timemaster.types import Group, InputError, Rollout

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with replacing(path) as temporary:
        temporary.write_text("old", encoding="utf-8")
        assert not path.exists()
    with suppress(OSError), replacing(path) as temporary:
        temporary.write_text("ne", encoding="utf-8")
        raise OSError("full")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_steps_are_read_from_names_and_ordered_as_numbers(tmp_path: Path) -> None:
    for name in ("step_10", "step_9", "step_9_blank", "step_x", "tmp_step_3"):
        (tmp_path / name).mkdir()
    assert by_step(tmp_path, "*") == {9: tmp_path / "step_9", 10: tmp_path / "step_10"}
    assert list(by_step(tmp_path, "*")) == [9, 10]
    assert (step_of(Path("global_step_40")), step_of(Path("step_7.jsonl"))) == (40, 7)


def plan(done: int, total: int) -> StepPlan:
    return StepPlan(num_rows=80, total=total, resume=ResumePoint(step=done))


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    config = Config()
    config.trainer.default_local_dir, config.trainer.logger = str(tmp_path / "run"), ["tensorboard"]
    return config


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_in_a_folder_changes_nothing_there(cfg: Config) -> None:
    with Run(cfg, "grpo") as run:
        run.resume_point({"rows": 1})
        for step in (1, 2, 3):
            run.log_step(step, {"reward/mean": 0.5}, ())
        run.write_rollouts(3, [answered()], [[None]])
        before = contents(run.folder)
        for mode in ("grpo", "sft"):
            for resume in ("auto", "disable"):
                cfg.trainer.resume_mode = resume
                with (
                    pytest.raises(InputError, match=rf"in use by a training run: process {os.getpid()} "),
                    Run(cfg, mode),
                ):
                    pass
        assert contents(run.folder) == before
    assert contents(run.folder).keys() == before.keys() - {str(run.folder / ".lock")}


def answered() -> Group:
    rollout = Rollout(
        id="r",
        token_ids=[1],
        mask=[1],
        logprobs=[0.0],
        versions=[0],
        media=[picture(1)],
        text="a",
        finish_reason="stop",
    )
    return Group(question("r", [picture(1)]), [rollout])


@pytest.mark.parametrize("folder", ["run", "run/eval/step_0"])
def test_the_command_refuses_a_folder_in_use_before_it_starts_anything(
    tiny: str, cfg: Config, tmp_path: Path, folder: str
) -> None:
    """Before Ray, and before the judge, who is not there, is asked."""
    pq.write_table(pa.table({"prompt": ["which?"], "answer": ["A"]}), tmp_path / "test.parquet")
    (tmp_path / "mine.py").write_text("def score(rollout, example):\n    return 1.0\n", encoding="utf-8")
    settings = [
        f"trainer.default_local_dir={tmp_path}/run", f"model.path={tiny}", "judge.model=m",
        "judge.base_url=http://127.0.0.1:9", f"reward.path={tmp_path}/mine.py:score", "rollout.name=hf",
        f"data.train_files={tmp_path}/test.parquet", f"data.test_files={tmp_path}/test.parquet",
        f"trainer.val_only={folder != 'run'}",
    ]  # fmt: skip
    with folder_lock(tmp_path / folder, "another"):
        before = contents(tmp_path / "run")
        command = [sys.executable, "-m", "timemaster.grpo", *settings]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert out.returncode == 2, out.stderr
        assert f"{tmp_path}/{folder} is in use by another: process {os.getpid()} on host" in out.stderr + out.stdout
        assert contents(tmp_path / "run") == before


def test_after_a_crash_no_step_and_no_row_is_there_twice(cfg: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(cfg.trainer.default_local_dir)

    def steps() -> list[int]:
        events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False, size_guidance={"tensors": 0})
        events.Reload()
        return [event.step for event in events.Tensors("reward/mean")]

    with Run(cfg, "grpo") as run:
        run.resume_point({"rows": 1})
        for step in range(1, 8):
            run.log_step(step, {"reward/mean": 0.5}, ())
            if step == 5:
                names = ("state/.metadata", "huggingface/config.json")
                half = checkpoints.begin(folder, 5, 1)
                for name in names:
                    (half / name).parent.mkdir()
                    (half / name).write_text("w", encoding="utf-8")
                checkpoints.commit(
                    half, {"step": 5, "updates_done": 5, **run.identity}, dict.fromkeys(names, 1), keep=1
                )
    (event_file,) = (folder / "tensorboard").iterdir()
    event_file.write_bytes(event_file.read_bytes() + b"\x20\0\0\0")  # a kill cut the last event
    (folder / "skipped_rows.jsonl").write_text("{}\n", encoding="utf-8")
    (folder / "dropped_rows.jsonl").write_text("{}\n", encoding="utf-8")
    with Run(cfg, "grpo") as run:
        assert not list(folder.glob("*_rows.jsonl"))
        assert run.resume_point({"rows": 1}).step == 5
        assert steps() == [1, 2, 3, 4, 5]
        for step in (6, 7, 8):
            run.log_step(step, {"reward/mean": 0.25}, ())
    assert steps() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open(encoding="utf-8")] == steps()


def test_nothing_to_do_names_the_setting_that_decides(cfg: Config, caplog) -> None:
    run = Run(cfg, "sft")
    caplog.set_level(logging.INFO)
    logging.getLogger("timemaster").setLevel(logging.INFO)
    assert not is_done(run, plan(9, 10))
    assert is_done(run, plan(10, 10))
    assert "10 steps are done, and trainer.total_epochs=1, which is 10 steps. Raise it" in caplog.text
    cfg.trainer.total_training_steps = 7
    assert is_done(run, plan(10, 7))
    assert "10 steps are done, and trainer.total_training_steps=7. Raise it" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_step_and_a_second_one_at_once(cfg: Config, caplog, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Run(cfg, "sft") as run:
        run.start_bar(plan(0, 10))
        os.kill(os.getpid(), number)
        assert run.stop_requested
        assert f"{number.name}: this step is finished and saved" in caplog.text
        limited = "if it takes no more than trainer.stop_seconds=300" in caplog.text
        assert limited == (number == signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match=number.name):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


class Workers:
    checkpoint_bytes = updates_done = 1

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.num_saves = seconds, 0

    def save(self, folder: str) -> dict[str, int]:
        time.sleep(self.seconds)
        self.num_saves += 1
        for name in ("state", "huggingface"):
            Path(folder, name).mkdir()
        return {}


def test_when_the_judge_refuses_the_steps_that_are_done_are_saved_once(cfg: Config) -> None:
    for num_steps, num_saves in ((0, 0), (2, 1)):
        workers: Any = Workers()
        with Run(cfg, "grpo") as run:
            guard = saved_when_judge_refuses(run, workers)
            with pytest.raises(ChatRefused, match="no money"), guard:
                refuse_after(run, num_steps)
            assert [step for step, _ in checkpoints.checkpoints(run.folder)] == [num_steps] * num_saves
            with pytest.raises(ChatRefused, match="no money"), saved_when_judge_refuses(run, workers):
                refuse_after(run, 0)  # in the next rollout, with the last step saved
            assert workers.num_saves == num_saves


def refuse_after(run: Run, num_steps: int) -> None:
    for step in range(1, num_steps + 1):
        run.log_step(step, {}, [])
    raise ChatRefused("no money")


def test_a_step_that_outlasts_the_limit_is_not_waited_for_and_a_save_is(cfg: Config) -> None:
    cfg.trainer.stop_seconds = 0.2
    with Run(cfg, "sft") as run:
        run.start_bar(plan(0, 10))
        os.kill(os.getpid(), signal.SIGTERM)
        save(run, Workers(seconds=0.4), 1)  # type: ignore[arg-type]
        assert checkpoints.checkpoints(run.folder)[-1][0] == 1
    with Run(cfg, "sft") as run:
        run.start_bar(plan(0, 10))
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="SIGALRM"):
            time.sleep(20)


def test_before_the_first_step_there_is_nothing_to_wait_for(cfg: Config) -> None:
    with Run(cfg, "sft"), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


WAITING = """
import sys, time
from timemaster.cli import launch
def main(cfg):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
launch(main, "sft")
"""
RECIPE = """
import time
def load(source):
    print("ready", flush=True)
    time.sleep(60)
from dataclasses import replace
from recipes.italy_power import TASK
TASK = replace(TASK, load=load)
"""


@pytest.mark.parametrize(("command", "code"), [("a program", 143), ("data preparation", 130)])
def test_sigterm_ends_what_has_nothing_to_save_with_a_clean_up(tmp_path: Path, command: str, code: int) -> None:
    (tmp_path / "waits.py").write_text(RECIPE, encoding="utf-8")
    arguments = ["-m", "timemaster.tasks.prepare", "waits", "--out", str(tmp_path / "data")]
    if command == "a program":
        arguments = ["-c", WAITING, "data.train_files=x", "model.path=y"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert ("cleaned up" in said) == (command == "a program")
    assert not list((tmp_path / "data").glob("*")), "data preparation left something"


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond `num_bytes`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_until_full(cfg: Config, name: str) -> None:
    with Run(cfg, "grpo") as run:
        run.resume_point({"rows": 1})
        if name in ("tensorboard", "picture"):
            with small_files(2000):
                for step in range(1, 9):
                    run.log_step(step, {f"reward/{k}": 0.5 for k in range(10)}, ())
                    run.write_rollouts(step, [answered()], [[None]])
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).symlink_to("/dev/full")
        run.write_rollouts(1, [answered()], [[None]])
        run.log_step(1, {"reward/mean": 0.5}, ())


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts/step_1.jsonl", "tensorboard", "picture"])
def test_a_full_disk_is_said_in_words_and_leaves_no_half_picture(cfg: Config, name: str) -> None:
    cfg.trainer.logger = ["tensorboard"] if name == "tensorboard" else []
    with pytest.raises(InputError, match=r"run cannot be written any more: .*no checkpoint yet; free some space"):
        write_until_full(cfg, name)
    pictures = Path(cfg.trainer.default_local_dir).glob(f"rollouts/media/{picture(1).uid}")
    assert all(path.read_bytes() == picture(1).data for path in pictures)


def test_events_before_the_step_are_kept_as_they_are(tmp_path: Path) -> None:
    board = TensorBoard(Config(), tmp_path)
    board.write(1, {"a": 1.0})
    board.close()
    before = contents(tmp_path)
    TensorBoard(Config(), tmp_path).forget_after(1)
    assert contents(tmp_path) == before
