"""A made-up run of another kind of task: heights are read off plots, in several turns, after zooming in. For the report."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean, pstdev

from tests.e2e.height import HIGHEST, MeanError
from tests.e2e.report_run import plot
from timemaster.media.images import image_media
from timemaster.metrics.answers import Answer, to_row
from timemaster.metrics.evaluation import answers_of
from timemaster.metrics.summary import summarise, training_numbers, validation_metrics
from timemaster.results.plot_evaluation import draw_evaluation
from timemaster.types import Example, Group, Media, Message, Part, Rollout, Score, Turn

EVALUATIONS = {"heights": MeanError()}


def make_heights_run(folder: Path, num_steps: int = 8, num_prompts: int = 3, group: int = 4) -> Path:
    """8 steps x 3 prompts x 4 answers; with metrics, two evaluations, and plots."""
    rng = random.Random(2)
    pictures = [image_media(plot(rng)) for _ in range(12)]
    media = folder / "rollouts" / "media"
    media.mkdir(parents=True)
    for picture in pictures:
        assert picture.data is not None
        (media / picture.uid).write_bytes(picture.data)
    metrics = []
    for step in range(1, num_steps + 1):
        spread = 0.4 - 0.35 * step / num_steps
        groups = [answered(rng, pictures, f"train.parquet:{step}-{i}", spread, group) for i in range(num_prompts)]
        rows = [row | {"step": step} for one in groups for row in rows_of(one)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rollouts" / f"step_{step}.jsonl").write_text(lines, encoding="utf-8")
        out = {"step": step, "reward/mean": fmean(row["score"] for row in rows)} | training_numbers(groups, EVALUATIONS)
        if step % 4 == 0:
            out |= validation_metrics(figures(rng, pictures, spread)[0])
        metrics.append(out)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
    for step, spread in ((0, 0.4), (num_steps, 0.05)):
        write_evaluation(folder / "eval" / f"step_{step}", rng, pictures, step, spread)
    return folder


def answered(rng: random.Random, pictures: list[Media], name: str, spread: float, n: int) -> Group:
    """A prompt and its rollouts: each zooms in once or twice, then answers."""
    first, *zooms = rng.sample(pictures, 3)
    parts = [Part("image", media=first), Part("text", text="How high is the last peak? Zoom in with <zoom>.")]
    example = Example(
        id=name, messages=[Message("user", parts)], answer=f"{HIGHEST * rng.random():.1f}", data_source="heights"
    )
    return Group(example, [rollout(rng, example, [first, *zooms[: rng.randint(1, 2)]], spread) for _ in range(n)])


def rollout(rng: random.Random, example: Example, media: list[Media], spread: float) -> Rollout:
    turns = []
    for picture in media[1:]:
        turns.append(Turn(kind="sampled", text="<think>It may be higher.</think><zoom>end</zoom>", stop="</zoom>",
                          finish_reason="stop_string"))  # fmt: skip
        turns.append(Turn(kind="environment", text="[image]Here it is.", media=[picture]))
    value = min(max(float(example.answer) + HIGHEST * rng.gauss(0, spread), 0.0), HIGHEST)
    is_readable = rng.random() > 0.15
    last = f"<think>Near the top.</think><value>{value:.1f}</value>" if is_readable else "<think>Near the top, or"
    turns.append(Turn(kind="sampled", text=last, finish_reason="stop" if is_readable else "length"))
    text = "\n".join(turn.text for turn in turns if turn.kind == "sampled")
    closeness = 1 - abs(value - float(example.answer)) / HIGHEST if is_readable else 0.0
    return Rollout(
        id=example.id, token_ids=[5] * 40, mask=[0] * 10 + [1] * 30, logprobs=[0.0] * 40, versions=[0] * 40,
        media=media, text=text, finish_reason="stop" if is_readable else "length", turns=turns,
        score=Score(total=closeness, parts={"closeness": closeness}),
    )  # fmt: skip


def rows_of(group: Group) -> list[dict[str, object]]:
    answers = answers_of(group, EVALUATIONS["heights"])
    scores = [answer.score or 0.0 for answer in answers]
    spread = pstdev(scores) or 1.0
    return [to_row(one) | {"advantage": ((one.score or 0.0) - fmean(scores)) / spread} for one in answers]


def figures(rng: random.Random, pictures: list[Media], spread: float) -> tuple[dict[str, object], list[list[Answer]]]:
    groups = [answered(rng, pictures, f"test.parquet:{i}", spread, 1) for i in range(60)]
    items = [answers_of(group, EVALUATIONS["heights"]) for group in groups]
    return summarise(items, EVALUATIONS), items


def write_evaluation(folder: Path, rng: random.Random, pictures: list[Media], step: int, spread: float) -> None:
    """metrics.json, predictions.jsonl and the picture, of 60 answers."""
    summary, items = figures(rng, pictures, spread)
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": -1}
    about = {"model": f"step {step}", "step": step, "blank_images": False, "rows": "test", "files": ["test.parquet"]}
    about |= {"rows_left_out": 0, "sampling": sampling}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(about | summary), encoding="utf-8")
    drawn = draw_evaluation(EVALUATIONS["heights"], summary, items, about)
    assert drawn is not None
    (folder / drawn.file).write_bytes(drawn.png)
