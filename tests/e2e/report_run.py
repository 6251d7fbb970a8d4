"""A made-up run's folder, as run.py and evaluate.py write it, and a browser, for tests and benchmark of the report."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import yaml
from PIL import Image, ImageDraw

from tests.helpers import answer_of
from timemaster.config import Config
from timemaster.metrics.classification import UNPARSED
from timemaster.metrics.summary import summarise

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SOURCES = {"power_demand": ("Winter", "Summer"), "computer_dataset": ("Desktop", "Laptop")}
QUESTION = "[image]\nWhich class? Reason in <think></think>, answer in <class></class>."


def chromium() -> str | None:
    """$CHROMIUM, else a Chromium on the PATH; None leaves the search to Playwright, which may have its own."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def plot(rng: random.Random) -> bytes:
    """A random walk in a frame."""
    picture = Image.new("RGB", (560, 240), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((40, 10, 550, 210), outline="black")
    points, y = [], 110.0
    for x in range(40, 550, 4):
        y = min(max(y + rng.gauss(0, 9), 14), 206)
        points.append((x, y))
    draw.line(points, fill="navy", width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def answer(rng: random.Random, truth: str, labels: tuple[str, ...], skill: float) -> tuple[str, dict[str, float]]:
    """A text and its reward parts: right with probability `skill`, now and then without a readable class."""
    if rng.random() < 0.3 * (1 - skill):
        return "<think>The line rises, and then", {"accuracy": 0.0, "format": 0.0}
    said = truth if rng.random() < skill else next(label for label in labels if label != truth)
    text = f"<think>Low at {rng.randint(1, 9)}, highest near {rng.randint(10, 23)}.</think><class>{said}</class>"
    return text, {"accuracy": float(said == truth), "format": 1.0}


def make_run(folder: Path, num_steps: int = 50, num_prompts: int = 10, group: int = 4) -> Path:
    """50 steps x 10 prompts x 4 answers = 2,000 rollouts over 120 plots of two data sources."""
    rng = random.Random(1)
    media = folder / "rollouts" / "media"
    media.mkdir(parents=True)
    rows = []  # (id, data source, truth, name of the plot)
    for k in range(120):
        png = plot(rng)
        name = hashlib.sha256(png).hexdigest()[:32]
        (media / name).write_bytes(png)
        source = sorted(SOURCES)[k % 2]
        rows.append((f"{source}.parquet:{k}", source, rng.choice(SOURCES[source]), name))
    metrics = []
    for step in range(1, num_steps + 1):
        skill = 0.45 + 0.5 * step / num_steps
        written: list[dict[str, Any]] = []
        for row in rng.sample(rows, num_prompts):
            written += one_group(rng, row, group, skill, step)
        (folder / "rollouts" / f"step_{step}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in written), encoding="utf-8"
        )
        metrics.append(measures(rng, written, step, num_steps))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
    write_config(folder, num_steps)
    for name, skill, step in (("step_0", 0.5, 0), (f"step_{num_steps}", 0.9, num_steps)):
        write_evaluation(folder / "eval" / name, rng, skill, {"step": step, "blank_images": False})
    blank = folder / "eval" / f"step_{num_steps}_blank"
    write_evaluation(blank, rng, 0.5, {"step": num_steps, "blank_images": True})
    return folder


def one_group(rng: random.Random, row: tuple[str, ...], group: int, skill: float, step: int) -> list[dict[str, Any]]:
    name, source, truth, plot_name = row
    answers = [answer(rng, truth, SOURCES[source], skill) for _ in range(group)]
    scores = [0.9 * parts["accuracy"] + 0.1 * parts["format"] for _, parts in answers]
    spread = pstdev(scores)
    return [
        {
            "id": name, "data_source": source, "prompt": QUESTION, "media": [plot_name], "response": text,
            "truth": truth, "score": score, "parts": parts, "error": "", "unknown": [], "tokens": len(text) // 3,
            "finish_reason": "stop" if parts["format"] else "length", "step": step,
            "advantage": (score - fmean(scores)) / spread if spread else 0.0,
        }
        for (text, parts), score in zip(answers, scores, strict=True)
    ]  # fmt: skip


def measures(rng: random.Random, rows: list[dict[str, Any]], step: int, last: int) -> dict[str, float]:
    out = {
        "step": step,
        "reward/errors": 0.0,
        "reward/unknown": 0.0,
        "reward/mean": fmean(row["score"] for row in rows),
    }
    for name in ("accuracy", "format"):
        out[f"reward/{name}"] = fmean(row["parts"][name] for row in rows)
        for source in SOURCES:
            own = [row["parts"][name] for row in rows if row["data_source"] == source]
            out |= {f"reward/{name}@{source}": fmean(own)} if own else {}
    out["response/tokens_mean"] = fmean(row["tokens"] for row in rows)
    out["response/tokens_max"] = max(row["tokens"] for row in rows)
    out["response/cut_off"] = fmean(row["finish_reason"] == "length" for row in rows)
    out["reward/zero_spread_groups"] = 0.2 + 0.5 * step / last
    out["actor/entropy"] = 1.1 - 0.6 * step / last + rng.gauss(0, 0.02)
    out["actor/kl"] = 0.002 * step + rng.random() * 0.003
    out["actor/grad_norm"] = 0.5 + rng.random() * 0.3
    out["actor/lr"] = 3e-4 * (1 - step / last)
    out["rollout/logprob_diff_mean"] = 5e-7 * (1 + rng.random())
    out["rollout/logprob_diff_max"] = 9e-6 * (1 + rng.random())
    out["throughput/tokens_per_second"] = 8000 + rng.gauss(0, 400)
    out |= {"seconds/rollout": 1.3 + rng.random() / 5, "seconds/update": 2.5, "seconds/sync": 0.1, "seconds/step": 4.0}
    return out | ({"val/accuracy": 0.45 + 0.45 * step / last} if step % 10 == 0 else {})


def write_config(folder: Path, num_steps: int) -> None:
    cfg = Config()
    cfg.trainer.project_name, cfg.trainer.experiment_name = "made_up", "report"
    cfg.trainer.total_training_steps = num_steps
    cfg.data.recipes = ["recipes.italy_power", "recipes.ctu"]
    cfg.model.path, cfg.rollout.limit_logprob_diff = "checkpoints/tiny", 1e-4
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(cfg), sort_keys=False), encoding="utf-8")


def write_evaluation(folder: Path, rng: random.Random, skill: float, about: dict[str, Any]) -> None:
    """metrics.json of 200 answers."""
    predictions = []
    for _ in range(200):
        source = rng.choice(sorted(SOURCES))
        truth = rng.choice(SOURCES[source])
        text, parts = answer(rng, truth, SOURCES[source], skill)
        said = next((label for label in SOURCES[source] if f"<class>{label}<" in text), None)
        labels = list(SOURCES[source])
        predictions.append([answer_of(source, truth, said, labels, score=parts["accuracy"], parts=parts, tokens=24)])
    summary = summarise(predictions, {})
    assert UNPARSED in next(iter(summary["confusion"].values()))
    folder.mkdir(parents=True)
    text = json.dumps(
        {"model": f"step {about['step']}", "files": ["test.parquet"], "rows_left_out": 0} | about | summary
    )
    (folder / "metrics.json").write_text(text, encoding="utf-8")
