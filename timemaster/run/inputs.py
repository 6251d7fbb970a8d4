"""What a run prepares before it starts: checks of its inputs, rows, their tokens, engine settings."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

from tqdm import tqdm

from timemaster.config import Config, NumericConfig, compute_dtype, head_dtype, run_dir, world_size
from timemaster.data.store import bad_row, count_rows, read_examples, report_bad_rows
from timemaster.data.stream import Order, make_stream
from timemaster.models.family import family_of
from timemaster.models.folder import load_model_config, local_folder, pinned
from timemaster.models.vision import check_pixels, vision_spec
from timemaster.models.weights import check_folder
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.engines import resolve_engine
from timemaster.run.checkpoints import check_export
from timemaster.series.numeric import as_numbers
from timemaster.tasks import SeriesClassification, Task, load_tasks
from timemaster.tasks.rows import with_task_answers
from timemaster.tokens.render import Renderer
from timemaster.types import Example, InputError, Prompt, PromptRow, Sample, SampleRow

log = logging.getLogger(__name__)
SKIPPED, DROPPED = "skipped_rows.jsonl", "dropped_rows.jsonl"
TOO_LONG = "are too long: raise data.max_prompt_length or lower data.max_pixels"
Rendered = TypeVar("Rendered", Prompt, Sample)


def check_inputs(cfg: Config, files: list[str]) -> Config:
    """Check the model, recipes, files and folder of a run before any process is started. Raises InputError.

    Returns the settings with model.revision as a commit: see `pinned`.
    """
    model = load_model_config(cfg.model.path, cfg.model.revision)  # first: it explains what is wrong with a path
    cfg = replace(cfg, model=pinned(cfg.model))
    check_pixels(vision_spec(model, cfg.data.min_pixels, cfg.data.max_pixels))
    if Path(cfg.model.path).is_dir():
        check_folder(cfg.model.path)
        check_export(Path(cfg.model.path))
    limit = model.get("text_config", model).get("max_position_embeddings")  # published models have no text_config
    longest = cfg.data.max_prompt_length + cfg.data.max_response_length
    if limit and longest > limit:
        raise InputError(
            f"data.max_prompt_length + data.max_response_length = {longest}: {cfg.model.path} supports at most "
            f"{limit} tokens. Lower one of them."
        )
    load_tasks(cfg.data.recipes)
    count_rows(files)
    folder = Path(run_dir(cfg))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"the run's folder {folder} cannot be written: {error.strerror}. Set trainer.default_local_dir to another."
        ) from error
    return cfg


def make_renderer(cfg: Config) -> Renderer:
    """The tokenizer and vision arithmetic of the run's model."""
    folder = local_folder(cfg.model.path, cfg.model.revision)
    return Renderer(folder, vision_spec(load_model_config(folder), cfg.data.min_pixels, cfg.data.max_pixels))


def read_rows(
    cfg: Config, files: list[str], folder: Path, render: Callable[[Example], Rendered], scored: bool
) -> list[tuple[Example, Rendered]]:
    """The rows of parquet files, rendered. Bad rows stop the run, or are skipped, counted and listed.

    A row is bad if it cannot be read or rendered, or if its task cannot have its answer. If rows are to be `scored` by
    their task's rewards, a row without a task is bad, too. A file without data_source belongs to the only recipe, if
    there is just one.
    """
    if not files:
        return []
    tasks = load_tasks(cfg.data.recipes)
    numeric = cfg.data.modality == "numeric"
    only_source = next(iter(tasks)) if len(tasks) == 1 else ""
    examples, bad = read_examples(files, cfg.data.on_bad_row, only_source, with_series=numeric)
    num_rows = len(examples)
    examples, wrong = with_task_answers(examples, tasks)
    if scored and not cfg.reward.path:
        wrong += [bad_row(e, _no_task(e, tasks)) for e in examples if e.data_source not in tasks]
    refused = {(row.file, row.row) for row in wrong}
    rows = []
    for example in tqdm(examples, desc="reading rows", leave=False, disable=None):
        if (example.extra["file"], example.extra["row"]) in refused:
            continue
        try:
            shown = in_numbers(cfg, example, tasks) if numeric else example
            rows.append((shown, render(shown)))
        except InputError as error:
            wrong.append(bad_row(example, str(error)))
    report_bad_rows(wrong, num_rows, cfg.data.on_bad_row)
    _check_classes(examples, [example for example, _ in rows], tasks, "cannot be used: mend the file")
    bad += wrong
    if bad:
        reasons = [{"file": row.file, "row": row.row, "reason": row.reason} for row in bad]
        _list_rows(folder / SKIPPED, reasons)
        log.warning("skipped %d bad rows, listed in %s", len(bad), folder / SKIPPED)
    return rows


def _check_classes(before: Sequence[Example], after: Sequence[Example], tasks: Mapping[str, Task], why: str) -> None:
    """InputError when all rows of a class of their task are left out."""
    counts = Counter((e.data_source, e.answer) for e in before if e.data_source in tasks)
    missing = counts.keys() - {(e.data_source, e.answer) for e in after}
    for source, answer in sorted(missing):
        if answer in tasks[source].evaluation.choices:
            raise InputError(f"All {counts[source, answer]} rows of class {answer!r} of {source} {why}.")


def in_numbers(cfg: Config, example: Example, tasks: Mapping[str, Task]) -> Example:
    """The example with its series as text instead of its plot."""
    task = tasks.get(example.data_source)
    channels = task.plot.channels if isinstance(task, SeriesClassification) else ()
    return as_numbers(example, channels, numeric_style(cfg.data.numeric, task))


def numeric_style(style: NumericConfig, task: Task | None) -> NumericConfig:
    """`style`, with the task's decimals if it sets none."""
    if style.decimals is not None or not isinstance(task, SeriesClassification):
        return style
    return replace(style, decimals=task.decimals)


def _no_task(example: Example, tasks: Mapping[str, Task]) -> str:
    known = ", ".join(tasks) or "none"
    return f"data_source is {example.data_source!r}, the recipes have {known}: name its recipe, or set reward.path"


def load_prompts(cfg: Config, files: list[str], renderer: Renderer, folder: Path) -> list[PromptRow]:
    """Rows with their prompts. Prompts over data.max_prompt_length are dropped, counted and listed, never truncated."""
    rows = read_rows(cfg, files, folder, renderer.prompt, scored=True)
    limit = cfg.data.max_prompt_length
    dropped = [{"id": e.id, "tokens": len(p.token_ids)} for e, p in rows if len(p.token_ids) > limit]
    kept = [PromptRow(e, p) for e, p in rows if len(p.token_ids) <= limit]
    _report_dropped(cfg, folder, dropped, len(kept), limit)
    _check_classes([e for e, _ in rows], [row.example for row in kept], load_tasks(cfg.data.recipes), TOO_LONG)
    return kept


def load_samples(cfg: Config, files: list[str], renderer: Renderer, folder: Path) -> list[SampleRow]:
    """Rows with their samples. Those over max_prompt_length + max_response_length are dropped, counted and listed."""
    limit = cfg.data.max_prompt_length + cfg.data.max_response_length
    rows = read_rows(cfg, files, folder, renderer.sample, scored=False)
    dropped = [{"id": s.id, "tokens": len(s.token_ids)} for _, s in rows if len(s.token_ids) > limit]
    kept = [SampleRow(e, s) for e, s in rows if len(s.token_ids) <= limit]
    _report_dropped(cfg, folder, dropped, len(kept), limit)
    _check_classes([e for e, _ in rows], [row.example for row in kept], load_tasks(cfg.data.recipes), TOO_LONG)
    return kept


def rows_identity(rows: Sequence[Example]) -> dict[str, object]:
    """The number of training rows and their digests. They tell a resumed run whether and how the rows changed.

    `row_set` does not depend on the order of the rows. Each other digest covers one part of every row, in order.
    """
    parts: dict[str, list[str]] = {"row_ids": [], "row_texts": [], "row_answers": [], "row_images": []}
    for row in rows:
        shown = [(message.role, part) for message in row.messages for part in message.parts]
        parts["row_ids"].append(row.id)
        parts["row_texts"].append(repr([(role, part.kind, part.text) for role, part in shown]))
        parts["row_answers"].append(repr((row.answer, row.data_source)))
        parts["row_images"].append(repr([part.media.uid for _, part in shown if part.media]))
    row_set = sorted(repr(row) for row in zip(*parts.values(), strict=True))
    return {"rows": len(rows), "row_set": _digest(row_set)} | {name: _digest(part) for name, part in parts.items()}


def _digest(items: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(items).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def order_of_rows(cfg: Config, rows: Sequence[Example]) -> Order:
    """The order in which the rows are trained on: as one set, or with data sources mixed by data.mixture."""
    data = cfg.data
    return make_stream([row.data_source for row in rows], data.train_batch_size, data.seed, data.shuffle, data.mixture)


def forget_lists(folder: Path) -> None:
    """Remove the lists of skipped and dropped rows that an earlier start of the run wrote."""
    for name in (SKIPPED, DROPPED):
        (folder / name).unlink(missing_ok=True)


def _report_dropped(cfg: Config, folder: Path, dropped: list[dict[str, object]], kept: int, limit: int) -> None:
    if not dropped:
        return
    _list_rows(folder / DROPPED, dropped)
    longest = max(int(str(row["tokens"])) for row in dropped)
    text = f"{len(dropped)} rows over {limit} tokens (the longest has {longest})"
    if not kept:
        raise InputError(f"no row is left: {text}. Raise data.max_prompt_length or lower data.max_pixels.")
    log.warning("dropped %s; %d rows stay; listed in %s", text, kept, folder / DROPPED)


def _list_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:  # the rows of train_files, then those of val_files
        file.writelines(json.dumps(row) + "\n" for row in rows)


def most_images(cfg: Config, rows: Sequence[PromptRow]) -> int:
    """The most images that a sequence can hold: those of its prompt and those that its environment may add."""
    tasks = load_tasks(cfg.data.recipes)
    added = {source: task.environment.max_images for source, task in tasks.items() if task.environment}
    return max(len(row.prompt.media) + added.get(row.example.data_source, 0) for row in rows)


def engine_spec(cfg: Config, device: str, model_path: str, max_images: int, stop: int) -> EngineSpec:
    """The engines' settings for this run."""
    rollout = cfg.rollout
    family = family_of(load_model_config(cfg.model.path, cfg.model.revision))
    colocated = device == "cuda" and rollout.placement == "colocated"
    no_gpu_wire = device == "cpu" or cfg.trainer.val_only  # an evaluation has no trainer that would open one
    wire = "object_store" if no_gpu_wire or resolve_engine(rollout.name) == "hf" else "ipc" if colocated else "nccl"
    return EngineSpec(
        model_path=model_path,
        dtype=compute_dtype(cfg, device),
        head_dtype=head_dtype(cfg, device),
        device=device,
        wire=wire,
        stop_token_ids=[stop],
        max_model_len=cfg.data.max_prompt_length + cfg.data.max_response_length,
        min_pixels=cfg.data.min_pixels,
        max_pixels=cfg.data.max_pixels,
        max_images=max_images,
        tensor_parallel=rollout.tensor_model_parallel_size,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        cpu_kv_cache_gib=rollout.cpu_kv_cache_gib,
        max_num_seqs=rollout.max_num_seqs,
        max_num_batched_tokens=rollout.max_num_batched_tokens,
        enforce_eager=rollout.enforce_eager,
        sleep_level=rollout.sleep_level if colocated and not cfg.trainer.val_only else 0,
        preserve=[family.vision_pattern] if cfg.model.freeze_vision_tower else [],
    )


def describe(cfg: Config, rows: list[tuple[str, object]], table: dict[str, tuple[int, bool]], sample: str) -> None:
    """Print derived sizes, the trained and frozen parts, and one decoded sample, before the first step."""
    log.info("")
    for name, value in [*rows, ("trainer ranks", world_size(cfg))]:
        log.info("  %-34s %s", name, value)
    for name, (size, trained) in table.items():
        log.info("  %-34s %s parameters, %s", name, f"{size:,}", "trained" if trained else "frozen")
    log.info("  one row as the model sees it:\n    %s\n", sample.replace("\n", "\n    "))


def decoded(renderer: Renderer, token_ids: list[int]) -> str:
    """Text of a row as the model sees it, with runs of image tokens written as a count."""
    text = renderer.decode(token_ids, skip_special_tokens=False)
    token = renderer.spec.family.image_token
    return re.sub(f"({re.escape(token)})+", lambda run: f"[{run[0].count(token)} image tokens]", text)
