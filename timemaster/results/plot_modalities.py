"""The picture of a comparison of modalities: accuracy with intervals, and tokens of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timemaster.results.plot_results import png

COLOURS = {"image": "#2a7f4f", "numeric": "#4c72b0"}


def modalities_png(found: dict[str, dict[str, Any]]) -> bytes:
    """Two panels, a bar per modality: `found` is what `timemaster.results.modalities.compare` gives."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for x, (name, one) in enumerate(found.items()):
        accuracy, (low, high) = 100 * one["accuracy"], (100 * end for end in one["accuracy_ci95"])
        left.bar(x, accuracy, color=COLOURS[name], width=0.6)
        left.errorbar(x, accuracy, [[accuracy - low], [high - accuracy]], color="black", capsize=4)
        left.text(x, high + 1.5, f"{accuracy:.1f}", ha="center", fontsize=9)
        tokens = one["prompt_tokens_mean"]
        right.bar(x, tokens, color=COLOURS[name], width=0.6)
        right.text(x, tokens, f"{tokens:.0f}", ha="center", va="bottom", fontsize=9)
    files = {name: ", ".join("/".join(Path(file).parts[-2:]) for file in one["files"]) for name, one in found.items()}
    tests = {f"{one['n']} rows of {files[name]}" for name, one in found.items()}
    figure.suptitle(" and ".join(sorted(tests)), fontsize=9, parse_math=False)
    left.set_ylabel("test accuracy, % (95 % interval)")
    left.set_ylim(0, 112)
    right.set_ylabel("tokens of a prompt")
    right.margins(y=0.12)
    for axes in (left, right):
        axes.set_xticks(range(len(found)), list(found))
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure, 110)
