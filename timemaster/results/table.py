"""The table of a comparison: its rows as records, as Markdown, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from timemaster.metrics.evaluation import Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row of a comparison. Example: Result(name="1nn_euclid", kind="baseline", value=0.576, n=250, …)"""

    name: str
    kind: str  # "baseline", "model", "predictions", "checkpoint" or "quoted"
    value: float  # of the headline
    n: int | None = None  # None, here and below: not known
    ci95: tuple[float, float] | None = None
    others: Mapping[str, float | None] = field(default_factory=dict)  # by the keys of `Evaluation.columns`
    unparsed: float | None = None  # share of all answers
    p: float | None = None  # of the paired test against the reference
    note: str = ""  # where it comes from


def markdown(results: Sequence[Result], number: Number, columns: Mapping[str, str], reference: str) -> list[str]:
    """The lines of the table, its columns aligned. Shares in percent."""
    rows: list[Sequence[str]] = [
        ("answers by", "n", number.heading, "95 % interval", *columns.values(), "unparsed", "p"),
    ]
    for result in results:
        p = "reference" if result.name == reference else "" if result.p is None else _p(result.p)
        interval = "" if result.ci95 is None else " – ".join(short(number, end) for end in result.ci95)
        name = f"{result.name} (quoted)" if result.kind == "quoted" else result.name
        unparsed = "" if result.unparsed is None else f"{100 * result.unparsed:.1f} %"
        others = [result.others.get(key) for key in columns]
        value = short(number, result.value) + (" %" if number.is_share else "")
        cells = ["" if other is None else f"{other:.3f}" for other in others]
        rows.append([name, str(result.n or "unknown"), value, interval, *cells, unparsed, p])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    return ["| " + " | ".join([row[0].ljust(widths[0]), *_right(row[1:], widths[1:])]) + " |" for row in rows]


def short(number: Number, value: float) -> str:
    """A value as tables and pictures show it: a share in percent without the sign, else with three decimals."""
    return f"{100 * value:.1f}" if number.is_share else f"{value:.3f}"


def write_csv(path: Path, results: Sequence[Result], number: Number, columns: Mapping[str, str]) -> None:
    """The table with unrounded values, shares from 0 to 1."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "kind", "n", number.name, "low95", "high95", *columns, "unparsed", "p", "note"])
        for result in results:
            low, high = result.ci95 or (None, None)
            others = [result.others.get(key) for key in columns]
            first = [result.name, result.kind, result.n, result.value, low, high]
            writer.writerow([*first, *others, result.unparsed, result.p, result.note])


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
