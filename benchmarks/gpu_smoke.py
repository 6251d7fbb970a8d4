"""Checks that need a GPU, each in a process of its own with a limit, so that none hides another. Prints a table.

    python benchmarks/gpu_smoke.py [--device cuda] [--model 3b] [--only NAME,...] [--limit 360] [--out FILE]

`--model`: 3b (the published sizes, random weights), tiny, or a folder or hub id. Random weights agree more easily than
trained ones: for rollout.limit_logprob_diff look at a trained model. GRPO and resume run on four layers of 3b's width,
since a checkpoint of the whole takes minutes. With `--device cpu --model tiny` all runs that can; the rest is skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_checks import CHECKS, FAILED, ROOT, SKIPPED, Place, Row, told

LAYERS = {"3b": (36, 32), "small": (4, 4)}  # of the language model and the vision tower


# ---- models


def write_random(folder: Path, layers: tuple[int, int], device: str) -> str:
    """A Qwen2.5-VL of 3B's width with random weights in bfloat16, and the tiny model's tokenizer."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from timemaster.models.tiny import write_tiny

    write_tiny(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = {
        "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2,
        "num_hidden_layers": layers[0], "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": layers[1], "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "fullatt_block_indexes": list(range(layers[1]))[layers[1] // 4 - 1 :: max(layers[1] // 4, 1)],
    }  # fmt: skip
    for section, values in (("text_config", text), ("vision_config", vision)):
        config[section] |= values
        config[section].pop("layer_types", None)  # one for each layer
        config[section]["dtype"] = "bfloat16"
    config["dtype"] = "bfloat16"
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return str(folder)


def models(name: str, device: str, folder: Path) -> tuple[str, str]:
    """The model of the checks and that of the GRPO runs."""
    from timemaster.models.tiny import write_tiny

    if name == "3b":
        whole, small = (write_random(folder / kind, LAYERS[kind], device) for kind in ("3b", "small"))
        return whole, small
    tiny = str(write_tiny(folder / "tiny")) if name == "tiny" else name
    return tiny, tiny


# ---- running them


def run_check(name: str, command: Sequence[str], rows_file: Path, limit: float) -> list[Row]:
    """Run a check's process. Whatever it does, rows come back: its own, or one that says what went wrong."""
    started = time.monotonic()
    log = rows_file.with_suffix(".log")
    with log.open("w", encoding="utf-8") as out:
        environment = os.environ | {"RAY_worker_niceness": "0"}  # Ray's own choice, 15, would slow its workers
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(limit, 0.1))
        except subprocess.TimeoutExpired:
            code = None
            stop(process)
    seconds = time.monotonic() - started
    if code == 0 and rows_file.exists():
        rows = [Row(**row) for row in json.loads(rows_file.read_text(encoding="utf-8"))]
        return [*rows, told(name, "seconds in all", f"{seconds:.0f}")]
    last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
    what = f"stopped after its limit of {limit:.0f} s" if code is None else f"exit code {code}"
    value = f"{what}: {last[0].strip() if last else 'no output'} ({log})"
    return [Row(check=name, figure="did not end", value=value, bar="", outcome=FAILED)]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a check and what it started."""
    for sent, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sent)
            process.wait(timeout=patience)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def table(rows: Sequence[Row]) -> str:
    """The rows as markdown."""
    head = ["check", "figure", "value", "asked", "outcome"]
    cells = [head, ["---"] * 5, *([r.check, r.figure, r.value, r.bar, r.outcome] for r in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in cells) + "\n"


def child(args: argparse.Namespace) -> None:
    """One check, in its own process: its rows go to a file."""
    logging.basicConfig(level=logging.INFO)
    folder = Path(args.child[1]).parent / f"files_{args.child[0]}"
    folder.mkdir(exist_ok=True)
    place = Place(device=args.device, model=args.model, small=args.small, folder=folder)
    rows = CHECKS[args.child[0]][0](place)
    Path(args.child[1]).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # engines and process groups may hang at exit; the rows are written


def main() -> int:
    """Run the checks; the exit code is 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="3b", help="3b, tiny, or a folder or hub id")
    parser.add_argument("--only", default=",".join(CHECKS), help="names out of " + ", ".join(CHECKS))
    parser.add_argument("--limit", type=float, default=360.0, help="seconds for all checks")
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints" / "gpu_smoke.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--small", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
    names = args.only.split(",")
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        parser.error(f"--only: no check named {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    ends = time.monotonic() + args.limit
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gpu_smoke_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        started = time.monotonic()
        model, small = models(args.model, args.device, folder)
        rows.append(told("models", "seconds to write them", f"{time.monotonic() - started:.0f}"))
        for check in names:
            left = ends - time.monotonic()
            limit = min(CHECKS[check][1], left) if args.device == "cuda" else left
            if limit < 5:
                reason = f"no time left of --limit {args.limit:.0f}"
                rows.append(Row(check=check, figure=reason, value="", bar="", outcome=SKIPPED))
                continue
            sys.stdout.write(f"{check} ...\n")
            sys.stdout.flush()
            file = folder / f"{check}.json"
            command = [sys.executable, __file__, "--device", args.device, "--model", model, "--small", small]
            rows += run_check(check, [*command, "--child", check, str(file)], file, limit)
    sys.stdout.write(table(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    return int(any(row.outcome == FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
