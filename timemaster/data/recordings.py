"""Recordings in the formats of the six tasks: UCI HAR's folder, PhysioNet records, `.pt` dictionaries, sound clips.

Each reader gives `Series` with channels, label and index, as `series.read_splits` does for the UCR/UEA archives. wfdb,
soundfile and torch are imported only when such a file is read.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from timemaster.data.series import Series
from timemaster.types import InputError


def read_uci_har(source: Path, channels: Sequence[str], class_names: Mapping[str, str]) -> dict[str, list[Series]]:
    """The "train" and "test" windows of UCI HAR, e.g. channels=("body_acc_x", "body_acc_y", "body_acc_z").

    `source` is the archive's folder or one that holds it; signals lie in `<split>/Inertial Signals/` or in `<split>/`,
    plain or gzipped. Where `subject_<split>.txt` is there, each series has `meta["group"]`, the volunteer. Raises
    InputError for a missing file, a class that `class_names` does not know, and files of different lengths.
    """
    root = next((p.parents[1] for p in sorted(source.rglob("y_train.txt*")) if p.parent.name == "train"), None)
    if root is None:
        raise InputError(f"{source}: no train/y_train.txt in it. Give the folder of the UCI HAR data set.")
    return {split: _har_split(root / split, split, channels, class_names) for split in ("train", "test")}


def _har_split(folder: Path, split: str, channels: Sequence[str], class_names: Mapping[str, str]) -> list[Series]:
    codes = [line.strip() for line in _har_lines(folder, f"y_{split}.txt")]
    signals = [_har_lines(folder, f"{channel}_{split}.txt") for channel in channels]
    subjects = _har_lines(folder, f"subject_{split}.txt", optional=True)
    lengths = {len(codes), *(len(lines) for lines in signals), *([len(subjects)] if subjects else [])}
    if len(lengths) != 1:
        raise InputError(f"{folder}: its files have {sorted(lengths)} lines; they must be as many in each.")
    series = []
    for index, code in enumerate(codes):
        if code not in class_names:
            raise InputError(f"{folder}/y_{split}.txt, line {index + 1}: class {code!r}; known: {list(class_names)}.")
        values = [[float(value) for value in lines[index].split()] for lines in signals]
        meta = {"group": f"subject {subjects[index].strip()}"} if subjects else {}
        series.append(Series(values, class_names[code], index, meta))
    return series


def _har_lines(folder: Path, name: str, optional: bool = False) -> list[str]:
    for path in (folder / name, folder / "Inertial Signals" / name):
        if path.is_file():
            return path.read_text().splitlines()
        zipped = path.with_name(f"{name}.gz")
        if zipped.is_file():
            with gzip.open(zipped, "rt") as file:
                return file.read().splitlines()
    if optional:
        return []
    raise InputError(f"{folder}: no {name} or {name}.gz in it or in its folder 'Inertial Signals'.")


def read_reference(path: Path) -> dict[str, str]:
    """Record -> class of a PhysioNet REFERENCE.csv ("A00001,N" a line, no header)."""
    if not path.is_file():
        raise InputError(f"{path} is not there. Give the folder with the records and their REFERENCE.csv.")
    with path.open() as file:
        rows = [row for row in csv.reader(file) if row]
    wrong = [number for number, row in enumerate(rows, start=1) if len(row) != 2]
    if wrong:
        raise InputError(f"{path}, line {wrong[0]}: expected 'record,class'.")
    return {record.strip(): code.strip() for record, code in rows}


def read_record(path: Path, rate: float) -> list[float]:
    """The first signal of a PhysioNet record (`path` without suffix; `.hea` and its data beside it), physical units.

    Raises InputError when it cannot be read or was not sampled at `rate` Hz.
    """
    import wfdb

    if not path.with_name(f"{path.name}.hea").is_file():
        raise InputError(f"{path}.hea is not there.")
    try:
        record = wfdb.rdrecord(str(path))
    except Exception as error:  # wfdb raises many kinds for a damaged record
        raise InputError(f"{path}: not a readable PhysioNet record: {error!r}") from error
    if abs(record.fs - rate) > 1e-6:
        raise InputError(f"{path}: sampled at {record.fs} Hz; expected {rate} Hz.")
    return [float(value) for value in record.p_signal[:, 0]]


def windows(values: Sequence[float], length: int) -> Iterator[list[float]]:
    """Windows of `length` readings, one after another, without overlap; what is left at the end is dropped."""
    for start in range(0, len(values) - length + 1, length):
        yield list(values[start : start + length])


def read_pt(path: Path, class_names: Mapping[int, str], channels: Sequence[int] = (0,)) -> list[Series]:
    """The series of a TF-C file: a dictionary with `samples` [N, channels, length] (or [N, length]) and `labels` [N].

    Only tensors are loaded, never code. Raises InputError for anything else.
    """
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        samples, labels = torch.as_tensor(content["samples"]).double(), torch.as_tensor(content["labels"]).long()
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        raise InputError(f"{path}: not a .pt dictionary with samples and labels: {error}") from error
    samples = samples[:, None] if samples.ndim == 2 else samples
    if samples.ndim != 3 or len(samples) != len(labels) or max(channels) >= samples.shape[1]:
        shapes = f"samples {tuple(samples.shape)} and labels {tuple(labels.shape)}"
        raise InputError(f"{path}: {shapes}; expected [N, channels, length] with channels {list(channels)}, and [N].")
    unknown = set(labels.tolist()) - set(class_names)
    if unknown:
        raise InputError(f"{path}: classes {sorted(unknown)}; the recipe knows {sorted(class_names)}.")
    chosen = samples[:, list(channels)].tolist()
    return [Series(values, class_names[int(c)], i) for i, (values, c) in enumerate(zip(chosen, labels, strict=True))]


def read_clips(folder: Path, table: Path, class_names: Mapping[str, str], rate: int, length: int) -> list[Series]:
    """Sound clips named in a table with the columns clip_name and label (Kaggle's train.csv), as series in [-1, 1].

    Clips may lie in `folder` or below it. Raises InputError for a missing clip, another rate, and another length.
    """
    import soundfile

    if not table.is_file():
        raise InputError(f"{table} is not there; it names every clip and its class (columns clip_name, label).")
    paths = {path.name: path for path in folder.rglob("*.ai*f*")}
    series: list[Series] = []
    with table.open() as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            name, code = str(row.get("clip_name", "")).strip(), str(row.get("label", "")).strip()
            if code not in class_names or name not in paths:
                what = f"class {code!r}; known are {list(class_names)}" if name in paths else f"no clip {name!r}"
                raise InputError(f"{table}, line {number}: {what}.")
            values, found = soundfile.read(paths[name], dtype="float64", always_2d=True)
            if found != rate or len(values) != length:
                raise InputError(f"{paths[name]}: {len(values)} readings at {found} Hz; expected {length} at {rate}.")
            series.append(Series([values[:, 0].tolist()], class_names[code], len(series), {"clip": name}))
    return series
