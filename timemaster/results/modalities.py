"""Plots against numbers: results and prompt lengths of two runs of one dataset, one with images, one with numbers.

    timemaster modalities IMAGE_RUN NUMERIC_RUN [--out DIR] [--tokens-of data/ctu_image/test.parquet]

Prints a table and writes modalities.json and modalities.png. With `--tokens-of` it also counts the tokens of a file's
rows at full length, as plots and as numbers in the style of the numeric run, by the rules of Qwen2.5's tokenizer and
image processor, whatever model the runs used. It quotes the published ratio if there is one.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from timemaster.config import DataConfig, NumericConfig
from timemaster.data.store import read_examples
from timemaster.metrics.evaluation import Number
from timemaster.metrics.summary import headline_of
from timemaster.models.vision import default_vision_spec, num_tokens
from timemaster.results.published import TOKEN_RATIO
from timemaster.run.inputs import numeric_style
from timemaster.run.step_names import by_step
from timemaster.series.numeric import series_of, write_series
from timemaster.system.console import print_any_letter
from timemaster.tasks import SeriesClassification, find_recipes, load_tasks
from timemaster.types import InputError

log = logging.getLogger("timemaster.results.modalities")

# Qwen2.5's tokenizer first cuts a text into pieces: each digit is a piece, a run of signs is a piece (and one token:
# "." "," ",-" are all in its vocabulary), and a word includes one sign or space before it.
PIECES = re.compile(r"\d|(?:[^\r\n\w]|_)?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+")
SHOWN_BEFORE = ("folder", "files", "n")  # keys of an evaluation; the headline with its interval comes next
SHOWN_AFTER = ("unparsed", "prompt_tokens_mean", "response_tokens_mean")
PUBLISHED_MIN_PIXELS = 512 * 28 * 28  # of the fine-tuning tool that the published system names; the library's is 3136


def latest_evaluation(run: Path) -> dict[str, Any]:
    """metrics.json of the last greedy evaluation of a run, and its `folder`. InputError when there is none."""
    paths = [path for folder in by_step(run / "eval", "step_*").values() if (path := folder / "metrics.json").is_file()]
    if not paths:
        raise InputError(f"{run} has no eval/step_<N>/metrics.json: evaluate the run first (EVAL=True).")
    path = paths[-1]
    return json.loads(path.read_text(encoding="utf-8")) | {"folder": str(path.parent)}


def count_tokens(text: str) -> int:
    """Tokens of a series in numbers by Qwen2.5's rules."""
    return len(PIECES.findall(text))


def token_costs(file: str, style: NumericConfig, min_pixels: int) -> dict[str, float]:
    """Mean tokens of the rows of a parquet file as numbers and as plots of at least `min_pixels`, and their ratio.

    If `style` sets no decimals, each row has those of the recipe of its data_source. `published`: the published
    ratio, if there is one.
    """
    tasks = load_tasks(find_recipes())
    vision = default_vision_spec(min_pixels, DataConfig().max_pixels)
    examples, _ = read_examples([file], with_series=True)
    numbers, images = [], []
    for example in examples:
        try:
            values = series_of(example)
        except InputError as error:
            raise InputError(f"{example.id}: {error}") from error
        task = tasks.get(example.data_source)
        names = task.plot.channels if isinstance(task, SeriesClassification) else ()
        numbers.append(count_tokens(write_series(values, names, numeric_style(style, task))))
        images += [num_tokens(p.media, vision) for m in example.messages for p in m.parts if p.media is not None]
    if not images:
        raise InputError(f"{file}: its rows hold no images.")
    costs = {"numeric": fmean(numbers), "image": fmean(images), "ratio": fmean(numbers) / fmean(images)}
    published = [TOKEN_RATIO[source] for source in {e.data_source for e in examples} if source in TOKEN_RATIO]
    return costs | ({"published": published[0]} if len(published) == 1 else {})


def compare(image_run: Path, numeric_run: Path) -> tuple[Number, dict[str, Any]]:
    """The number that is compared, and for both runs: its value with interval, and mean tokens of prompt and answer.

    Raises InputError when a run has no evaluation, or one of the other modality, or when the runs have different
    headlines. Warns when their test rows differ.
    """
    out, numbers = {}, []
    for name, run in (("image", image_run), ("numeric", numeric_run)):
        evaluation = latest_evaluation(run)
        modality = evaluation.get("modality", name)  # evaluations of earlier versions do not say
        if modality != name:
            raise InputError(f"{run} was evaluated with data.modality={modality}; the {name} run belongs here.")
        headline = headline_of(evaluation)
        if headline is None:
            raise InputError(f"{run}: no answer of its evaluation was measured, so there is nothing to compare.")
        number = headline.number
        numbers.append(number)
        keys = (*SHOWN_BEFORE, number.name, f"{number.name}_ci95", *SHOWN_AFTER)
        out[name] = {"run": str(run), **{key: evaluation[key] for key in keys}}
    if numbers[0] != numbers[1]:
        raise InputError(
            f"{image_run} was evaluated by {numbers[0].heading}, {numeric_run} by {numbers[1].heading}: "
            "give two runs of one task."
        )
    image, numeric = out["image"], out["numeric"]
    if (image["files"], image["n"]) != (numeric["files"], numeric["n"]):
        tests = [f"{run['n']} rows of {', '.join(run['files'])}" for run in (image, numeric)]
        log.warning("not the same test: the image run answered %s, the numeric run %s", *tests)
    return numbers[0], out


def style_of(evaluation: Path, decimals: int | None) -> NumericConfig:
    """The style of the numbers in an evaluation; `decimals` replaces its own if given."""
    settings = yaml.safe_load((evaluation / "config.yaml").read_text(encoding="utf-8"))["data"]["numeric"]
    return NumericConfig(**settings | ({} if decimals is None else {"decimals": decimals}))


def report(number: Number, found: dict[str, Any], costs: dict[str, dict[str, float]]) -> None:
    """Print the comparison."""
    heads = (number.heading, "95 % interval", "prompt tokens", "answer tokens")
    log.info("\n  %-9s %9s %18s %14s %14s", "modality", *heads)
    for name, run in found.items():
        low, high = run[f"{number.name}_ci95"]
        tokens = run["prompt_tokens_mean"], run["response_tokens_mean"]
        log.info("  %-9s %9.3f   [%.3f, %.3f] %14.1f %14.1f", name, run[number.name], low, high, *tokens)
    ratio = found["numeric"]["prompt_tokens_mean"] / found["image"]["prompt_tokens_mean"]
    log.info("\n  the numeric prompt has %.1f times the tokens of the one with a plot", ratio)
    for name, cost in costs.items():
        shown = cost["numeric"], cost["image"], cost["ratio"]
        quote = f" (published: {cost['published']})" if "published" in cost else ""
        log.info("  by Qwen2.5's rules, %s: %.0f tokens in numbers, %.0f as a plot, ratio %.1f%s", name, *shown, quote)


def main() -> None:
    """Command line."""
    print_any_letter()
    from timemaster.results.plot_modalities import modalities_png
    from timemaster.system.console import setup_logging

    parser = argparse.ArgumentParser(prog="timemaster modalities", description="Plots against numbers.")
    parser.add_argument("image_run", type=Path, help="run folder with data.modality=image, evaluated")
    parser.add_argument("numeric_run", type=Path, help="run folder with data.modality=numeric, evaluated")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for modalities.json and .png (default: here)")
    parser.add_argument("--tokens-of", default="", help="parquet file whose token costs are counted at full length")
    parser.add_argument("--decimals", type=int, help="of the numbers counted (default: as in the numeric run)")
    options = parser.parse_args()
    setup_logging()
    try:
        number, found = compare(options.image_run, options.numeric_run)
        costs = {}
        if options.tokens_of:
            style = style_of(Path(found["numeric"]["folder"]), options.decimals)
            pixels = {"plots as they are": DataConfig().min_pixels, "at 512 tokens at least": PUBLISHED_MIN_PIXELS}
            costs = {name: token_costs(options.tokens_of, style, min_pixels) for name, min_pixels in pixels.items()}
        options.out.mkdir(parents=True, exist_ok=True)
    except (InputError, OSError) as error:
        log.error("%s", error)
        sys.exit(2)
    report(number, found, costs)
    (options.out / "modalities.json").write_text(
        json.dumps({"runs": found, "tokens": costs}, indent=2) + "\n", encoding="utf-8"
    )
    (options.out / "modalities.png").write_bytes(modalities_png(number, found))
    log.info("\n  written to %s/modalities.json and modalities.png", options.out)


if __name__ == "__main__":
    main()
