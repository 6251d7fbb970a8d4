"""Evaluation: answers to files of examples, their metrics, and the files that others need to check them.

EVAL=True in the scripts sets trainer.val_only=true, which starts `evaluate`. It writes in the run's folder:

    eval/step_<N>/metrics.json  predictions.jsonl  config.yaml  and a picture, such as confusion.png

The folder is step_<N>_t0.4/ for answers sampled at that temperature, step_<N>_t0.4_n8/ for 8 samples of each row (each
has a line in predictions.jsonl), step_<N>_blank/ for blanked images, and step_<N>_validation/ for validation.parquet.
Rows that were left out are listed in the first of the folders. Each folder is locked by one evaluation at a time. A run
that is still training may be evaluated.

The task defines how answers are read and measured: see metrics/evaluation.py. During training, `validate` answers
data.val_files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from timemaster.config import Config
from timemaster.data.store import count_rows
from timemaster.metrics.evaluation import answers_of
from timemaster.metrics.summary import in_words, pooled, samples_in_words, summarise, validation_metrics
from timemaster.models.folder import local_folder
from timemaster.models.weights import compare_weights, read_layers, stored_shapes
from timemaster.results.predictions import write_predictions
from timemaster.rollout.engines import resolve_engine
from timemaster.run.checkpoints import check_whole
from timemaster.run.folder import Run, full_disk, write_config
from timemaster.run.inputs import (
    check_inputs,
    engine_spec,
    forget_lists,
    load_prompts,
    make_renderer,
    most_images,
)
from timemaster.run.step_names import by_step
from timemaster.system.locks import folder_lock
from timemaster.tasks import evaluations_of, load_tasks
from timemaster.tasks.scorer import check_rewards
from timemaster.types import Group, InputError, PromptRow, Sampling

if TYPE_CHECKING:
    from timemaster.workers.handle import Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What one evaluation runs on. Example: Target(40, "checkpoints/…/global_step_40/huggingface", blank=False, …)"""

    step: int
    model: str  # folder or hub id
    blank: bool  # whether images are blanked
    temperature: float
    num_samples: int = 1  # of each row
    rows: str = "test"  # the names of the files, without .parquet

    @property
    def name(self) -> str:
        """The name of its folder."""
        sampled = f"_t{self.temperature:g}" if self.temperature else ""
        sampled += f"_n{self.num_samples}" if self.num_samples > 1 else ""
        rows = "" if self.rows == "test" else f"_{self.rows}"
        return f"step_{self.step}{sampled}{rows}" + ("_blank" if self.blank else "")


def validate(run: Run, workers: Workers, rows: Sequence[PromptRow], step: int) -> dict[str, float]:
    """Answer the validation rows with the current weights. Returns the metrics by name, such as val/reward_mean."""
    groups = answer_rows(run.cfg, workers, rows, version=step, title="validating", n=1)
    items = [answers_of(group, run.evaluations.get(group.example.data_source)) for group in groups]
    metrics = validation_metrics(summarise(items, run.evaluations, run.cfg.data.seed))
    run.say(f"validation after step {step}: " + ", ".join(f"{k[4:]} {v:.3f}" for k, v in metrics.items()))
    return metrics


def evaluate(cfg: Config) -> list[dict[str, Any]]:
    """Evaluate every checkpoint of eval.checkpoint on data.test_files: write the files, return the metrics of each."""
    from timemaster.media.images import blank
    from timemaster.workers.handle import Workers

    cfg = check_inputs(cfg, cfg.data.test_files)
    engine = resolve_engine(cfg.rollout.name)
    with ExitStack() as opened:
        run = opened.enter_context(Run(cfg, "eval"))
        targets = resolve_targets(cfg, run.folder)
        check_targets([local_folder(target.model, cfg.model.revision) for target in targets])
        folders = [run.folder / "eval" / target.name for target in targets]
        for folder in folders:
            opened.enter_context(folder_lock(folder, "an evaluation"))
        check_rewards(cfg)
        workers = opened.enter_context(Workers(cfg, engine, trainers=False))
        renderer = make_renderer(cfg)
        forget_lists(folders[0])
        rows = load_prompts(cfg, cfg.data.test_files, renderer, folders[0])
        run.say(f"starting the engine with {targets[0].model}")
        spec = engine_spec(cfg, workers.device, targets[0].model, most_images(cfg, rows), renderer.end_of_turn)
        workers.start(spec, training=None)
        blanks = [blank(row.example) for row in rows] if any(target.blank for target in targets) else []
        blank_rows = [PromptRow(example, renderer.prompt(example)) for example in blanks]
        results, loaded = [], targets[0].model
        for target, folder in zip(targets, folders, strict=True):
            if target.model != loaded:
                workers.load_engines(read_layers(local_folder(target.model, cfg.model.revision)))
                loaded = target.model
            target_rows = blank_rows if target.blank else rows
            groups = answer_rows(cfg, workers, target_rows, version=target.step, title=target.name, n=cfg.eval.n)
            results.append(write_results(folder, cfg, target, groups))
    return results


def resolve_targets(cfg: Config, folder: Path) -> list[Target]:
    """The targets of eval.checkpoint and eval.blank_images. InputError when a checkpoint is missing or incomplete."""
    saved = by_step(folder, "global_step_*")
    models: list[tuple[int, str]] = []  # step, folder
    for name in cfg.eval.checkpoint:
        if name == "base" or (name == "latest" and not saved):
            models.append((0, cfg.model.path))
            continue
        step = max(saved) if name == "latest" else int(name)
        if step not in saved:
            raise InputError(f"eval.checkpoint={name}: {folder} has {sorted(saved) or 'none'}; or latest, base.")
        check_whole(saved[step])
        models.append((step, str(saved[step] / "huggingface")))
    blanks = {"true": [True], "false": [False], "both": [False, True]}[cfg.eval.blank_images]
    rest = (cfg.eval.temperature, cfg.eval.n, "+".join(dict.fromkeys(Path(file).stem for file in cfg.data.test_files)))
    return [Target(step, model, is_blank, *rest) for step, model in dict.fromkeys(models) for is_blank in blanks]


def check_targets(folders: Sequence[str]) -> None:
    """InputError when the weights of a model differ in name or shape: a running engine would mix them."""
    first, *others = dict.fromkeys(folders)
    wanted = stored_shapes(first) if others else {}
    for model in others:
        compare_weights(model, stored_shapes(model), wanted)


def answer_rows(
    cfg: Config, workers: Workers, rows: Sequence[PromptRow], version: int, title: str, n: int
) -> list[Group]:
    """`n` answers per row, greedy unless eval.temperature says otherwise, with a progress bar."""
    e = cfg.eval
    sampling = Sampling(
        n=n, temperature=e.temperature, top_p=e.top_p, top_k=e.top_k, max_tokens=cfg.data.max_response_length
    )
    groups: dict[int, Group] = {}
    with tqdm(total=len(rows), desc=title, unit="row", leave=False, disable=None) as bar:
        for i, group in workers.rollout(rows, sampling, version, seed=f"{cfg.data.seed}/eval"):
            groups[i] = group
            bar.update()
    return [groups[i] for i in range(len(rows))]


def write_results(folder: Path, cfg: Config, target: Target, groups: Sequence[Group]) -> dict[str, Any]:
    """Write metrics.json, predictions.jsonl and the picture of the evaluation. Returns the metrics."""
    from timemaster.results.plot_evaluation import draw_evaluation

    evaluations = evaluations_of(load_tasks(cfg.data.recipes))
    items = [answers_of(group, evaluations.get(group.example.data_source)) for group in groups]
    summary = summarise(items, evaluations, cfg.data.seed)
    about = {"model": target.model, "step": target.step, "blank_images": target.blank, "rows": target.rows}
    about |= {"files": cfg.data.test_files, "modality": cfg.data.modality}
    about |= {"sampling": {name: getattr(cfg.eval, name) for name in ("temperature", "top_p", "top_k")}}
    about |= {"rows_left_out": count_rows(cfg.data.test_files) - len(groups)}  # bad rows, or too long
    picture = draw_evaluation(pooled([item[0].data_source for item in items], evaluations), summary, items, about)
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, cfg)
        (folder / "metrics.json").write_text(json.dumps(about | summary, indent=2) + "\n", encoding="utf-8")
        write_predictions(folder, items)
        if picture is not None:
            (folder / picture.file).write_bytes(picture.png)
    log.info("%s (%s): %s", target.name, target.model, in_words(summary))
    if target.num_samples > 1:
        log.info("  %s", samples_in_words(summary))
    log.info("  written to %s", folder)
    return about | summary
