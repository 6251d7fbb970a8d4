"""The picture of a comparison of modalities: the headline with intervals, and tokens of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timemaster.metrics.evaluation import Number
from timemaster.results.plot_results import png
from timemaster.results.table import short

COLOURS = {"image": "#2a7f4f", "numeric": "#4c72b0"}


def modalities_png(number: Number, found: dict[str, dict[str, Any]]) -> bytes:
    """Two panels with a bar for each modality, from what `timemaster.results.modalities.compare` returns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    scale = 100 if number.is_share else 1
    for x, (name, run) in enumerate(found.items()):
        value, (low, high) = scale * run[number.name], (scale * end for end in run[f"{number.name}_ci95"])
        left.bar(x, value, color=COLOURS[name], width=0.6)
        left.errorbar(x, value, [[value - low], [high - value]], color="black", capsize=4)
        text = short(number, run[number.name])
        left.annotate(text, (x, high), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        tokens = run["prompt_tokens_mean"]
        right.bar(x, tokens, color=COLOURS[name], width=0.6)
        right.text(x, tokens, f"{tokens:.0f}", ha="center", va="bottom", fontsize=9)
    files = {name: ", ".join("/".join(Path(file).parts[-2:]) for file in run["files"]) for name, run in found.items()}
    tests = {f"{run['n']} rows of {files[name]}" for name, run in found.items()}
    figure.suptitle(" and ".join(sorted(tests)), fontsize=9, parse_math=False)
    left.set_ylabel(f"test {number.heading}{', %' if number.is_share else ''} (95 % interval)")
    if number.is_share:
        left.set_ylim(0, 112)
    else:
        left.margins(y=0.12)
    right.set_ylabel("tokens of a prompt")
    right.margins(y=0.12)
    for axes in (left, right):
        axes.set_xticks(range(len(found)), list(found))
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure, 110)
