"""Is a classification data set sound? Class balance, duplicates, broken series, leaking labels, size of the plots.

    timemaster audit data/ctu_image/{train,validation,test}.parquet [--out FOLDER]

prints a report and writes a contact sheet for each file: <file>_sheet.png with some plots of every class, beside the
file or into FOLDER. Give all splits at once: only then can the audit find a series that is in two of them. The exit
code is 1 when something must be fixed: a leaking label, a series or picture in two splits, missing values, unreadable
rows. It is 2 when a file is not a parquet file.

Leaks are searched for in paths, image names, all columns except the answers, and the questions. A question may list all
labels. Rows of a class must not name their own label more often than other rows do. Only the labels themselves are
searched for, not numbers that stand for them ("class0"). A data source with more than MAX_CLASSES different answers is
no classification: its answers are neither listed nor searched for.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timemaster.series.sheet import contact_sheet
from timemaster.system.console import print_any_letter
from timemaster.tasks.audit_rows import Row, Shown, plain, read_rows
from timemaster.types import InputError

NUM_LISTED = 3  # rows named in a finding
MAX_CLASSES = 100
SURE = 3.0  # standard deviations above chance that make a leak certain
RARE = 0.02  # a leak is certain when the chance that all texts name the right label is below this


@dataclass(slots=True)
class Report:
    """Lines to print, and the findings: those that must be fixed, and notes."""

    lines: list[str] = field(default_factory=list)
    serious: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        findings = [f"MUST BE FIXED: {text}" for text in self.serious] + [f"note: {text}" for text in self.notes]
        return "\n".join([*self.lines, "", *(findings or ["no findings"])])


def audit(files: Sequence[Path], out: Path | None = None) -> Report:
    """Check parquet files and write their contact sheets. Raises InputError when a file is not a parquet file."""
    report, rows = Report(), []
    for file in {file.resolve(): file for file in files}.values():
        shown: Shown = defaultdict(list)
        bad: list[str] = []
        file_rows = list(read_rows(file, shown, bad))
        rows += file_rows
        _describe(report, file, file_rows)
        if bad:
            report.serious.append(f"{len(bad)} rows cannot be used: {_listed(bad)}")
        if 0 < len(shown) <= MAX_CLASSES:
            path = (out or file.parent) / f"{file.stem}_sheet.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            counts = Counter(row.label for row in file_rows)
            plots = {f"{label} ({counts[label]} rows)": [png for _, png in shown[label]] for label in sorted(shown)}
            path.write_bytes(contact_sheet(f"{file.parent.name}/{file.name}", plots))
            report.lines.append(f"  contact sheet      {path}")
    _find_broken(report, rows)
    _find_duplicates(report, rows)
    _find_overlaps(report, rows)
    _find_leaks(report, rows)
    return report


def _describe(report: Report, file: Path, rows: Sequence[Row]) -> None:
    report.lines += ["", f"{file}: {len(rows)} rows"]
    for source in sorted({row.source for row in rows}):
        group = [row for row in rows if row.source == source]
        report.lines.append(f"  {source or 'no data_source'}")
        counts = Counter(row.label for row in group)
        if len(counts) > MAX_CLASSES:
            report.lines.append(f"    {len(counts)} different answers: no classes")
            counts.clear()
        for label, count in sorted(counts.items()):
            report.lines.append(f"    {label:<24} {count:6d}  {100 * count / len(group):5.1f} %")
        if any(row.lengths for row in group):
            channels, lengths = _span(len(row.lengths) for row in group), _span(n for row in group for n in row.lengths)
            report.lines.append(f"  series             {channels} channel(s) of {lengths} readings")
        images = [image for row in group for image in row.images]
        if images:
            sides = f"{_span(width for _, width, _, _ in images)} x {_span(height for _, _, height, _ in images)}"
            tokens = _span(tokens for *_, tokens in images)
            report.lines.append(f"  plots              {sides} pixels, {tokens} vision tokens")


def _span(numbers: Any) -> str:
    ordered = sorted(set(numbers))
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _find_broken(report: Report, rows: Sequence[Row]) -> None:
    if gaps := [row.where for row in rows if row.has_gaps]:
        report.serious.append(f"{len(gaps)} series have missing values: {_listed(gaps)}")
    if constant := [row.where for row in rows if row.is_constant]:
        report.notes.append(f"{len(constant)} series are constant: {_listed(constant)}")
    if partly := [row.where for row in rows if row.has_constant and not row.is_constant]:
        report.notes.append(f"{len(partly)} series have a constant channel: {_listed(partly)}")


def _find_duplicates(report: Report, rows: Sequence[Row]) -> None:
    """Find a series or picture that several rows have, or that one row has in two files."""
    for what in ("series", "picture"):
        copies: dict[str, dict[tuple[Any, ...], list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in sorted(rows, key=lambda row: row.is_demonstration):  # demonstrations last: they join their rows
            for digest in ({row.series} if what == "series" else {image[0] for image in row.images}) - {""}:
                same = copies[digest][row.identity]
                if not any(_belong_together(row, other) for other in same):
                    same.append(row)
        groups: list[list[Row]] = []
        across: list[list[Row]] = []
        within: list[list[Row]] = []
        for by_identity in copies.values():
            group = [row for same in by_identity.values() for row in same]
            if len(group) < 2:
                continue
            twice = any(len({row.file for row in same}) > 1 for same in by_identity.values())
            groups.append(group)
            (across if twice or len({row.split for row in group}) > 1 else within).append(group)
        contradicting = [group for group in groups if len({row.label for row in group}) > 1]
        for members, target, kind in (
            (across, report.serious, "in two splits or files"),
            (within, report.notes, "twice in a split"),
            (contradicting, report.notes, "with different labels"),
        ):
            if members:
                named = [" = ".join(row.where for row in group[:2]) for group in members]
                target.append(f"{len(members)} {what if what == 'series' else 'pictures'} {kind}: {_listed(named)}")


def _belong_together(row: Row, other: Row) -> bool:
    """Whether two rows are a training row and its demonstration, or two demonstrations of it (sft, traces)."""
    return row.file != other.file and row.split == "train" and (row.is_demonstration or other.is_demonstration)


def _find_overlaps(report: Report, rows: Sequence[Row]) -> None:
    """Find series that begin with the second half of a series in another split."""
    distinct = {row.identity: row for row in rows if row.halves}.values()
    ends = {row.halves[1]: row for row in distinct}
    pairs = [(row, other) for row in distinct if (other := ends.get(row.halves[0])) and other.split != row.split]
    overlaps = [f"{row.where} = {other.where}" for row, other in pairs]
    if overlaps:
        report.notes.append(
            f"{len(overlaps)} series begin as one of another split ends (windows overlap): {_listed(overlaps)}"
        )


def _find_leaks(report: Report, rows: Sequence[Row]) -> None:
    leaks: dict[str, list[str]] = defaultdict(list)
    places: dict[str, Place] = defaultdict(Place)
    for source_rows, labels in _classifications(rows):
        shares = {label: sum(row.label == label for row in source_rows) / len(source_rows) for label in labels}
        # A text that all rows share, such as a question in extra_info or a project's path, cannot leak a label.
        shared = set.intersection(*({text for _, text in row.texts} for row in source_rows))
        counts = {question: _counts(question, labels) for question in {row.question for row in source_rows}}
        fewest = {label: min(count[label] for count in counts.values()) for label in labels}
        for row in source_rows:
            for name, text in row.texts:
                # Rows of one recording share its number: a number that is right by chance must count only once.
                key = (text if row.label.isdigit() else row.identity, row.label)
                if named := [] if text in shared else _named(plain(text), labels):
                    places[name].chances[key] = sum(shares[label] for label in named)
                if row.label in named:
                    leaks[name].append(f"{row.where} ({text[:60]!r})")
                    places[name].right.add(key)
            if [label for label in labels if counts[row.question][label] > fewest[label]] == [row.label]:
                leaks["the question"].append(row.where)
    for name, wheres in sorted(leaks.items()):
        place, finding = places[name], f"{len(wheres)} rows name their label in {name}: {_listed(wheres)}"
        if name == "the question" or place.is_sure():
            report.serious.append(finding)
        elif place.is_possible():
            report.notes.append(finding)


def _classifications(rows: Sequence[Row]) -> Iterator[tuple[list[Row], list[str]]]:
    """The rows and labels of each data source that has at most MAX_CLASSES different answers."""
    for source in {row.source for row in rows}:
        source_rows = [row for row in rows if row.source == source]
        labels = sorted({row.label for row in source_rows})
        if len(labels) <= MAX_CLASSES:
            yield source_rows, labels


@dataclass(slots=True)
class Place:
    """The rows that name any label in one column. When labels are numbers, the different texts instead of the rows."""

    chances: dict[tuple[Any, str], float] = field(
        default_factory=dict
    )  # key: row or text, and label; value: the probability that a label named at random is right
    right: set[tuple[Any, str]] = field(default_factory=set)  # the keys whose text names the right label

    def is_sure(self) -> bool:
        """Whether the right label is named too often for chance. (Labels such as "1" are found anywhere.)"""
        deviation = math.sqrt(sum(p * (1 - p) for p in self.chances.values()))
        all_right = len(self.right) == len(self.chances) and math.prod(self.chances.values()) < RARE
        return all_right or len(self.right) > sum(self.chances.values()) + SURE * deviation

    def is_possible(self) -> bool:
        """Whether the right label is always named, and is not always a number."""
        return len(self.right) == len(self.chances) and not all(label.isdigit() for _, label in self.right)


def _named(text: str, labels: Sequence[str]) -> list[str]:
    """The labels that `text` names; empty when it names all of them, as a question does."""
    named = [label for label, count in _counts(text, labels).items() if count]
    return [] if len(named) == len(labels) > 1 else named


def _counts(text: str, labels: Sequence[str]) -> dict[str, int]:
    """How often each label occurs in `text`. "walking_upstairs" does not count for "walking"."""
    words = {label: plain(label).strip() for label in labels}
    pattern = "|".join(re.escape(word) for word in sorted(words.values(), key=len, reverse=True))
    counts = Counter(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text))
    return {label: counts[word] for label, word in words.items()}


def _listed(wheres: Sequence[str]) -> str:
    rest = f", and {len(wheres) - NUM_LISTED} more" if len(wheres) > NUM_LISTED else ""
    return ", ".join(wheres[:NUM_LISTED]) + rest


def main(arguments: Sequence[str] | None = None) -> None:
    print_any_letter()
    parser = argparse.ArgumentParser(prog="timemaster audit", description="Check a classification data set.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="parquet files, all splits at once")
    parser.add_argument("--out", type=Path, help="folder for the contact sheets (default: beside each file)")
    options = parser.parse_args(arguments)
    try:
        report = audit(options.files, options.out)
    except (InputError, OSError) as error:
        parser.exit(2, f"{error}\n")
    sys.stdout.write(f"{report}\n")
    sys.exit(1 if report.serious else 0)


if __name__ == "__main__":
    main()
