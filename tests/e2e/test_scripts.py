"""The scripts a user types: CTU from the archive's files to EVAL, on the tiny model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHARED_DATA

COMPUTERS = SHARED_DATA / "Computers"
SMALL = (
    "data.train_batch_size=8 actor.ppo_mini_batch_size=4 rollout.n=4 data.max_response_length=32 actor.optim.lr=1e-4 "
    "model.enable_gradient_checkpointing=False rollout.cpu_kv_cache_gib=0.5 trainer.total_training_steps=4 "
    "trainer.val_before_train=False trainer.test_freq=4 rollout.limit_logprob_diff=1e-4"
)


def bash(script: str, *arguments: str, **environment: str) -> str:
    out = subprocess.run(
        ["bash", str(ROOT / "example" / script), *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    return out.stdout + out.stderr


@pytest.mark.skipif(not COMPUTERS.is_dir(), reason=f"no folder {COMPUTERS}: see CONTRIBUTING.md, Tests")
def test_ctu_from_the_archives_files_to_eval(tmp_path: Path) -> None:
    from timemaster.models.tiny import texts_of, write_tiny

    here = tmp_path / "a b=1,(ü)#'日[x]&{};!~$y"  # the worst letters of a path
    bash("data_preprocess/ctu.sh", "--source", str(COMPUTERS), "--out", str(here))
    data = here / "ctu_image"
    model = write_tiny(here / "tiny", texts_of(data / "sft.parquet"))
    run = f"trainer.default_local_dir={here}/run"
    temporary = here / ("t" * 80)  # too long for sockets
    temporary.mkdir()
    names = {"DATA": str(data), "MODEL_PATH": str(model), "TMPDIR": str(temporary)}
    said = bash("grpo_trainer/run_ctu.sh", *SMALL.split(), run, **names)
    assert "resuming" not in said
    assert f"TMPDIR={temporary}" in said
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["rollout/logprob_diff_mean"] for row in rows) <= 1e-4
    assert max(row["rollout/logprob_diff_max"] for row in rows) <= 1e-2
    assert {"reward/mean", "reward/accuracy", "reward/format", "actor/kl", "actor/entropy"} <= rows[0].keys()
    assert "val/accuracy" in rows[3]

    names["HOME"] = "/dev/null/none"  # for one of the two runs: without its cache there vLLM starts more slowly
    said = bash("grpo_trainer/run_ctu.sh", *SMALL.split(), run, EVAL="True", **names)
    assert "global_step_4/huggingface" in said
    folder = here / "run" / "eval" / "step_4"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    wanted = {"n", "accuracy", "accuracy_ci95", "macro_f1", "format_rate", "unparsed", "per_class", "reward_mean"}
    assert wanted | {"response_tokens_mean"} <= metrics.keys()
    assert metrics["n"] == 250
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"id", "prompt", "response", "prediction", "truth", "parts"} <= lines[0].keys()
    assert metrics["unparsed"] == sum(line["prediction"] is None for line in lines)
    assert (folder / "confusion.png").exists()


def test_a_failed_stage_stops_the_script_with_its_code() -> None:
    out = subprocess.run(
        ["bash", str(ROOT / "example/grpo_trainer/run_ctu.sh"), "data.train_files=nowhere.parquet"],
        cwd=ROOT, env=os.environ | {"MODEL_PATH": "nowhere"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert out.returncode == 2
    assert "nowhere" in out.stdout + out.stderr
    assert "Traceback" not in out.stdout + out.stderr
