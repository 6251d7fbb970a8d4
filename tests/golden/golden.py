"""Golden runs: short real runs whose figures must not change when code is only moved or renamed.

    python tests/golden/golden.py record    writes figures.json beside this file (only where numbers are meant to change)
    python tests/golden/golden.py check     runs again and compares; ends with an error where a figure differs

On CPU in float32 with the tiny model on ItalyPowerDemand: 40 SFT steps (the first 3 and the last are kept), from their
checkpoint 3 GRPO steps with a KL term and an evaluation at temperature 1, with engine hf and with vLLM. The runs start
from the command line, as a user's do. Figures of times and memory are left out. Another CPU may round otherwise: record
on the machine that checks. Takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FIGURES = Path(__file__).with_name("figures.json")
LEFT_OUT = ("seconds", "throughput", "memory")
# Relative. Two recordings on one machine were equal to the last digit, those of vLLM too.
TOLERANCE = 1e-6

SHARED = [
    "data.recipes=recipes.italy_power",
    "data.max_prompt_length=64",
    "data.max_response_length=48",
    "data.min_pixels=784",
    "model.dtype=float32",
    "model.enable_gradient_checkpointing=false",
    "actor.ppo_max_token_len_per_gpu=600",
    "trainer.save_freq=0",
    "trainer.logger=[console]",
    "trainer.device=cpu",
]
SFT = ["data.train_batch_size=32", "actor.optim.lr=5e-4", "trainer.total_training_steps=40", "trainer.test_freq=20"]
GRPO = [
    "data.train_batch_size=8",
    "actor.ppo_mini_batch_size=4",
    "actor.optim.lr=3e-4",
    "actor.use_kl_loss=true",
    "rollout.n=4",
    "rollout.cpu_kv_cache_gib=0.25",
    "trainer.total_training_steps=3",
]


def run(*command: object) -> None:
    """A command of the library, from the project's root. Raises CalledProcessError with its output printed."""
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()


def metrics(folder: Path) -> list[dict[str, float]]:
    """The steps of a run, without times and memory."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(LEFT_OUT)} for line in lines]


def texts(path: Path) -> str:
    """A digest of all answers of a file of rollouts or predictions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return hashlib.sha256(json.dumps([row["response"] for row in rows]).encode()).hexdigest()[:16]


def figures(folder: Path) -> dict[str, Any]:
    """All runs in `folder`; their figures by run."""
    data = folder / "italy_power_image"
    run("timemaster.tasks.prepare", "recipes.italy_power", "--out", folder)
    run("timemaster.models.tiny", folder / "tiny", "--text-from", data / "sft.parquet")
    files = [f"data.train_files={data}/sft.parquet", f"data.val_files={data}/sft.parquet"]
    sft = folder / "sft"
    where = [f"model.path={folder}/tiny", f"trainer.default_local_dir={sft}"]
    run("timemaster.sft", *SHARED, *files, *SFT, *where)
    steps = metrics(sft)
    out: dict[str, Any] = {"sft": {"steps": [*steps[:3], steps[-1]]}}
    files = [f"data.train_files={data}/train.parquet", f"data.test_files={data}/test.parquet"]
    for engine in ("hf", "vllm"):
        grpo = folder / engine
        where = [f"model.path={sft}/global_step_40/huggingface", f"trainer.default_local_dir={grpo}"]
        settings = [*SHARED, *files, *GRPO, *where, f"rollout.name={engine}"]
        run("timemaster.grpo", *settings)
        run("timemaster.grpo", *settings, "trainer.val_only=true", "eval.temperature=1")
        (evaluation,) = (grpo / "eval").iterdir()
        found = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
        names = ("n", "accuracy", "macro_f1", "format_rate", "unparsed", "reward_mean", "response_tokens_mean")
        out[engine] = {
            "steps": metrics(grpo),
            "texts": [texts(grpo / "rollouts" / f"step_{step}.jsonl") for step in (1, 2, 3)],
            "evaluation": {name: found[name] for name in names} | {"parts": found["parts"]},
            "evaluation_texts": texts(evaluation / "predictions.jsonl"),
        }
    return out


def differences(golden: Any, found: Any, at: str) -> list[str]:
    """Where two figures differ by more than TOLERANCE."""
    if isinstance(golden, dict) and isinstance(found, dict):
        names = sorted(golden.keys() | found.keys())
        return [d for name in names for d in differences(golden.get(name), found.get(name), f"{at}/{name}")]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        pairs = enumerate(zip(golden, found, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{at}/{i}")]
    both = isinstance(golden, int | float) and isinstance(found, int | float)
    # Differences of log-probs are themselves rounding errors: their size is kept, not their digits.
    noise = 1e-5 if "logprob_diff" in at else 1e-9
    if golden == found or (both and math.isclose(golden, found, rel_tol=TOLERANCE, abs_tol=noise)):
        return []
    return [f"{at}: {golden!r}, now {found!r}"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "check"])
    action = parser.parse_args().action
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        found = figures(Path(folder))
    if action == "record":
        FIGURES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"written to {FIGURES}\n")
        return
    golden = json.loads(FIGURES.read_text(encoding="utf-8"))
    wrong = [d for name in golden for d in differences(golden[name], found[name], name)]
    sys.stdout.write("\n".join(wrong or ["all figures are equal"]) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
