"""Where a run's processes go and what they find there: GPUs that exist on paper only, and a hub of one model."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from timemaster.system.process import check_visible_gpus, use_cores
from timemaster.types import InputError

ROOT = Path(__file__).resolve().parents[2]


def python(script: str, **env: str) -> str:
    """What a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | env, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_gpus_are_waited_for_until_it_is_said_which_are_missing() -> None:
    """Real Ray with two GPUs and one core: trainer and engine reserve no core, a third GPU is not there."""
    out = python("""
        import ray
        from timemaster.workers import calls, placement
        from timemaster.config import Config
        from timemaster.system.process import check_visible_gpus
        from timemaster.types import InputError

        class Rank:
            def __init__(self, *_):
                pass

            def look(self):
                check_visible_gpus(1)
                return "sees one"

        ray.init(address="local", num_gpus=2, num_cpus=1, include_dashboard=False, log_to_driver=False)
        placement.WAIT_SECONDS = 3
        cfg = Config()
        cfg.rollout.placement = "separate"
        trainers = placement.place_trainers(cfg, "cuda", Rank)
        engines = placement.place_engines(cfg, "cuda", Rank, "vllm", [])
        print(ray.get([actor.look.remote() for actor in trainers + engines]))
        env = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
        ray.kill(engines[0])
        unset = ray.remote(Rank).options(num_cpus=0, runtime_env=env).remote()
        for ask in (
            lambda: placement.place_trainers(cfg, "cuda", Rank),
            lambda: placement.place_engines(cfg, "cuda", Rank, "vllm", []),
            lambda: calls._wait([unset.look.remote()]),
        ):
            try:
                ask()
            except InputError as error:
                print(type(error).__name__, error)
    """)
    lines = out.splitlines()
    assert lines[0] == "['sees one', 'sees one']"
    assert (
        "trainer.nnodes=1 x trainer.n_gpus_per_node=1 asks for 1 times 1 GPU(s), each time on another node" in lines[1]
    )
    assert "0 GPUs are free in the Ray cluster, whose nodes have 2 in all" in lines[1]
    assert (
        "1 engines (rollout.num_engines) x rollout.tensor_model_parallel_size=1 asks for 1 times 1 GPU(s)" in lines[2]
    )
    assert lines[3].startswith("InputError a process with 1 GPU(s) of its own sees")


@pytest.mark.parametrize(("seen", "says"), [(None, "sees all"), ("", "sees none"), ("0,1,2,3", "sees 0,1,2,3")])
def test_a_process_that_sees_the_gpus_of_others_is_refused(monkeypatch, seen: str | None, says: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    with pytest.raises(InputError, match=f"{says}.*RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES must not be set"):
        check_visible_gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    check_visible_gpus(2)


def test_actors_share_the_cores_and_on_cpu_their_threads_do_not_spin(monkeypatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    use_cores(5, "cuda")
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OMP_WAIT_POLICY" not in os.environ
    use_cores(16, "cpu")
    assert [os.environ[f"OMP_{name}"] for name in ("NUM_THREADS", "WAIT_POLICY")] == ["1", "passive"]
    assert os.environ["GOMP_SPINCOUNT"] == "0"


def test_a_hub_id_means_one_commit_for_all_processes_of_a_run(tmp_path: Path) -> None:
    """A hub's cache on disk, whose main branch moves between the driver's look and another process's."""
    hub = tmp_path / "hub" / "models--Qwen--tiny"
    for commit in ("a" * 40, "b" * 40):
        (hub / "snapshots" / commit).mkdir(parents=True)
        (hub / "snapshots" / commit / "config.json").write_text("{}", encoding="utf-8")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    out = python(
        f"""
        from pathlib import Path
        from timemaster.config import ModelConfig
        from timemaster.models.folder import local_folder, pinned

        model = ModelConfig(path="Qwen/tiny")
        model = pinned(model)
        Path({str(hub / "refs" / "main")!r}).write_text("b" * 40, encoding="utf-8")
        print(local_folder(model.path, model.revision))
        model = ModelConfig(path={str(tmp_path)!r})
        model = pinned(model)
        print(model.revision, local_folder(model.path, model.revision))
        """,
        HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert out.split() == [str(hub / "snapshots" / ("a" * 40)), "main", str(tmp_path)]
