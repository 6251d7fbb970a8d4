"""Readers of recordings in the formats of their hosts: UCI HAR, PhysioNet, TF-C's `.pt` files, sound clips.

They return `Series`, as `splits.read_splits` does for UCR/UEA archives. A set that does not fit into memory is planned
first, as series without values (`plan_windows`, `plan_clips`). Then it is split and sampled, and only the series that
remain are filled with values. wfdb, soundfile and torch are imported only when such a file is read.
"""

from __future__ import annotations

import csv
import gzip
import logging
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from timemaster.series.files import decoded, listed, report_left_out, text_of, unpacked
from timemaster.series.splits import Series, choose_stratified, download
from timemaster.types import InputError

logger = logging.getLogger(__name__)

PHYSIONET = "https://physionet.org/files"
TFC_FILES = {"train": "train.pt", "validation": "val.pt", "test": "test.pt"}
SEED = 1  # of the random draw in `at_most`
SOUND = re.compile(r"\.aif[fc]?", re.IGNORECASE)
CODE_NAMES = ("_reconstruct", "scalar")  # functions that a pickled numpy array refers to, in addition to its types


@contextmanager
def opened(source: Path, *names: str) -> Iterator[Path]:
    """`source` as a folder. Zip files, and zip files in them, are unpacked; this copy is deleted after the block.

    If `source` is a folder with downloaded zip files, they are unpacked unless a file in the folder matches one of
    `names`. Raises InputError when `source` does not exist.
    """
    if not source.exists():
        raise InputError(f"No such folder or file: {source.absolute()}")
    zips = [source]
    if source.is_dir():
        zips = sorted(path for path in source.iterdir() if path.suffix.lower() == ".zip")
        if not zips or any(path.is_file() for name in names for path in source.rglob(name)):
            yield source
            return
    with unpacked(zips) as folder:
        yield folder


def find(folder: Path, name: str) -> Path | None:
    """The first file named `name` in `folder` or below it; None if there is none. A warning lists the others."""
    paths = sorted(path for path in folder.rglob(name) if path.is_file())
    if not paths:
        return None
    report_left_out(f"files called {name}", [str(path) for path in paths[1:]], f"{paths[0]} is read")
    return paths[0]


def at_most(series: Sequence[Series], most: int) -> list[Series]:
    """At most `most` of the series, drawn with a fixed seed. Each class keeps its share and at least one series.

    Raises InputError when `most` is less than the number of classes.
    """
    if len(series) <= most:
        return list(series)
    chosen = choose_stratified(series, most, SEED)
    by_class: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(series):
        by_class[item.label].append(position)
    if most < len(by_class):
        raise InputError(f"{most} series cannot hold {len(by_class)} classes: {', '.join(sorted(by_class))}.")
    for positions in by_class.values():
        if not chosen.intersection(positions):  # its share is less than one series
            largest = max(by_class.values(), key=lambda others: len(chosen.intersection(others)))
            chosen.remove(max(chosen.intersection(largest)))
            chosen.add(positions[0])
    logger.info("%d of %d series are used; the classes keep their shares", most, len(series))
    return [item for position, item in enumerate(series) if position in chosen]


def numbered(series: Sequence[Series]) -> list[Series]:
    """The series with their positions in the list as `index`."""
    return [replace(item, index=index) for index, item in enumerate(series)]


# ---- UCI HAR


def read_uci_har(folder: Path, channels: Sequence[str], class_names: Mapping[str, str]) -> dict[str, list[Series]]:
    """The "train" and "test" windows of UCI HAR, e.g. channels=("body_acc_x", "body_acc_y", "body_acc_z").

    `folder` is the archive's folder or contains it. Signals are in `<split>/Inertial Signals/` or `<split>/`, plain or
    gzipped. If `subject_<split>.txt` exists, `meta["group"]` of each series is the volunteer. Raises InputError for a
    missing file, a class that is not in `class_names`, files of different lengths and values that are not finite.
    """
    roots = dict.fromkeys(p.parents[1] for p in sorted(folder.rglob("y_train.txt*")) if p.parent.name == "train")
    if not roots:
        raise InputError(f"{folder}: no train/y_train.txt in it. Give the folder or zip of UCI HAR.")
    root, *others = roots
    report_left_out("copies of UCI HAR", [str(path) for path in others], f"{root} is read")
    return {split: _har_split(root / split, split, channels, class_names) for split in ("train", "test")}


def _har_split(folder: Path, split: str, channels: Sequence[str], class_names: Mapping[str, str]) -> list[Series]:
    codes = _har_needed(folder, f"y_{split}.txt")
    signals = {f"{channel}_{split}.txt": _har_needed(folder, f"{channel}_{split}.txt") for channel in channels}
    subjects = _har_lines(folder, f"subject_{split}.txt")
    lengths = {len(lines) for lines in (codes, *signals.values(), subjects) if lines is not None}
    if len(lengths) != 1:
        raise InputError(f"{folder}: its files have {sorted(lengths)} lines; all must have the same number.")
    series = []
    for index, code in enumerate(codes):
        if code not in class_names:
            raise InputError(f"{folder}/y_{split}.txt, line {index + 1}: class {code!r}; known: {list(class_names)}.")
        values = [_numbers(lines[index], f"{folder}, {name}, line {index + 1}") for name, lines in signals.items()]
        meta = {} if subjects is None else {"group": f"subject {subjects[index]}"}
        series.append(Series(values, class_names[code], index, meta))
    return series


def _har_needed(folder: Path, name: str) -> list[str]:
    lines = _har_lines(folder, name)
    if lines is None:
        raise InputError(f"{folder}: no {name} or {name}.gz in it or in its folder 'Inertial Signals'.")
    return lines


def _har_lines(folder: Path, name: str) -> list[str] | None:
    """The lines of a file, plain or gzipped; None if it does not exist. Raises InputError for an empty line."""
    for plain in (folder / name, folder / "Inertial Signals" / name):
        path = plain if plain.is_file() else plain.with_name(f"{name}.gz")
        if not path.is_file():
            continue
        try:
            data = path.read_bytes()
            text = decoded(data if path == plain else gzip.decompress(data), str(path))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not readable: {error}") from error
        lines = [line.strip() for line in text.rstrip().splitlines()]
        if "" in lines:
            raise InputError(f"{path}, line {lines.index('') + 1}: is empty. Line n of every file is window n.")
        return lines
    return None


def _numbers(line: str, where: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{where}: has missing values.")
    return values


# ---- PhysioNet


def fetch_physionet(project: str, names: Sequence[str], folder: Path, host: str = PHYSIONET) -> Path:
    """Downloads files of a project ("emgdb/1.0.0") to `folder` and checks them against the project's SHA256SUMS.txt."""
    lines = text_of(download(f"{host}/{project}/SHA256SUMS.txt", "", folder)).splitlines()
    sums = {words[-1].removeprefix("./"): words[0] for line in lines if len(words := line.split()) == 2}
    for name in names:
        if name not in sums:
            raise InputError(
                f"{host}/{project}/SHA256SUMS.txt does not list {name}. Download it by hand: --source DIR."
            )
        download(f"{host}/{project}/{name}", sums[name], folder)
    return folder


def read_reference(path: Path, class_names: Mapping[str, str]) -> dict[str, str]:
    """Record -> label of a PhysioNet REFERENCE.csv (lines like "A00001,N"). Raises InputError for an unknown class."""
    rows = []
    for number, row in enumerate(csv.reader(text_of(path).splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 2 or cells[1] not in class_names:
            raise InputError(f"{path}, line {number}: {','.join(row)!r}; expected record,class of {list(class_names)}.")
        rows.append((number, cells[0], class_names[cells[1]]))
    return _as_index(path, rows)


def _as_index(path: Path, rows: Sequence[tuple[int, str, str]]) -> dict[str, str]:
    """Name -> label from rows (line, name, label). Raises InputError if there are none, or if a name has two labels."""
    if not rows:
        raise InputError(f"{path}: has no rows. Download it again.")
    seen: dict[str, tuple[int, str]] = {}
    repeated = []
    for number, name, label in rows:
        first_line, first_label = seen.setdefault(name, (number, label))
        if first_label != label:
            raise InputError(
                f"{path}: {name} is {first_label!r} in line {first_line} and {label!r} in line {number}. "
                "Remove one of them."
            )
        if first_line != number:
            repeated.append(name)
    report_left_out(f"repeated lines of {path}", repeated, "each name counts once")
    return {name: label for name, (_, label) in seen.items()}


def windows(values: Sequence[float], length: int) -> Iterator[list[float]]:
    """Consecutive windows of `length` readings without overlap. Readings left over at the end are dropped."""
    for start in range(0, len(values) - length + 1, length):
        yield list(values[start : start + length])


def find_records(folder: Path) -> dict[str, Path]:
    """PhysioNet records in `folder` or below it: name -> path without suffix; of several, the least nested one."""
    paths = sorted(folder.rglob("*.hea"), key=lambda path: (len(path.parts), path))
    nearest: dict[str, Path] = {}
    duplicates = [str(path) for path in paths if nearest.setdefault(path.stem, path) != path]
    report_left_out("records", duplicates, "files of the same names are less nested")
    return {name: path.with_suffix("") for name, path in nearest.items()}


def plan_records(labels: Mapping[str, str], records: Mapping[str, Path], length: int) -> dict[str, list[Series]]:
    """The windows of each record of `labels` (record -> label), as `plan_windows` gives them.

    Records that are not in `labels`, and records shorter than a window, are left out and listed. Raises InputError for
    a record that is not in `records`, and when no record of a class is left.
    """
    missing = [record for record in labels if record not in records]
    if missing:
        raise InputError(f"{len(missing)} records are missing: no {listed([f'{record}.hea' for record in missing])}.")
    report_left_out("records", [record for record in records if record not in labels], "the index does not list them")
    planned = {record: plan_windows(records[record], label, length) for record, label in labels.items()}
    why = f"shorter than a window of {length} readings"
    report_left_out("records", [record for record, cut in planned.items() if not cut], why)
    empty_classes = set(labels.values()) - {item.label for cut in planned.values() for item in cut}
    if empty_classes:
        raise InputError(f"No record of {', '.join(sorted(empty_classes))} is left: all are {why}.")
    return {record: cut for record, cut in planned.items() if cut}


def plan_windows(record: Path, label: str, length: int) -> list[Series]:
    """Consecutive windows of a PhysioNet record, without overlap and without values. The rest at the end is dropped."""
    size = _wfdb("rdheader", record).sig_len
    if size is None:  # the header may leave it out
        size = _wfdb("rdrecord", record).sig_len
    elif size == 0:  # some readers take 0 for unknown, others for empty
        raise InputError(f"{record}.hea says 0 readings: write their number, or leave the field out.")
    starts = range(0, size - length + 1, length)
    return [Series([], label, i, {"group": record.name, "start": start}) for i, start in enumerate(starts)]


def fill_windows(planned: Sequence[Series], records: Mapping[str, Path], rate: float, length: int) -> list[Series]:
    """The series that `plan_windows` planned, with readings. `records`: name -> path. Opens each record once."""
    filled: dict[int, Series] = {}
    order = sorted(range(len(planned)), key=lambda i: str(planned[i].meta["group"]))
    name, values = "", []
    for i in order:
        item = planned[i]
        if item.meta["group"] != name:
            name = item.meta["group"]
            values = read_record(records[name], rate)
        start = item.meta["start"]
        filled[i] = replace(item, values=[values[start : start + length]])
    return [filled[i] for i in range(len(planned))]


def read_record(path: Path, rate: float, unit: str = "mV") -> list[float]:
    """The first signal of a PhysioNet record in `unit`. `path` is its `.hea` file without the suffix.

    Raises InputError when the record cannot be read, has gaps or another unit, or was not sampled at `rate` Hz. A
    warning lists further signals.
    """
    record = _wfdb("rdrecord", path)
    if not record.n_sig:
        raise InputError(f"{path}: has no signal.")
    report_left_out(f"signals of {path}", [str(name) for name in record.sig_name[1:]], "only the first is read")
    if abs(record.fs - rate) > 1e-6 or record.units[0] != unit:
        raise InputError(f"{path}: {record.units[0]} at {record.fs} Hz; expected {unit} at {rate} Hz.")
    values: list[float] = record.p_signal[:, 0].tolist()
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{path}: has gaps (missing readings).")
    return values


def _wfdb(function: str, path: Path) -> Any:
    import wfdb

    if not path.with_name(f"{path.name}.hea").is_file():
        raise InputError(f"{path}.hea does not exist.")
    try:
        return getattr(wfdb, function)(str(path))
    except Exception as error:  # wfdb raises many types of exceptions for a damaged record
        raise InputError(f"{path}: not a readable PhysioNet record: {error!r}") from error


# ---- TF-C


def read_tfc(folder: Path, class_names: Mapping[int, str], most: Mapping[str, int]) -> dict[str, list[Series]]:
    """The splits of a TF-C set: train.pt, val.pt (optional) and test.pt. `most`: split -> largest number of series."""
    train = find(folder, TFC_FILES["train"])
    set_folder = train.parent if train else folder  # another set may be in a neighbouring folder
    paths = {split: path for split, name in TFC_FILES.items() if (path := find(set_folder, name))}
    if not {"train", "test"} <= paths.keys():
        raise InputError(f"{folder}: has {', '.join(p.name for p in paths.values())}; train.pt and test.pt are needed.")
    return {split: read_pt(path, class_names, most.get(split, 0)) for split, path in paths.items()}


def read_pt(path: Path, class_names: Mapping[int, str], most: int = 0) -> list[Series]:
    """The series of a TF-C file: a dictionary with `samples` [N, 1, length] (or [N, length]) and `labels` [N].

    At most `most` of them (0: all), see `at_most`. Loads only tensors and numpy arrays, never code. Raises InputError
    for anything else, a class that is not in `class_names`, and values that are not finite.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        samples, labels = torch.as_tensor(content["samples"]), torch.as_tensor(content["labels"]).flatten().tolist()
    except Exception as error:  # torch raises many types of exceptions for other files
        raise InputError(f"{path}: not a .pt dictionary with samples and labels: {error}") from error
    samples = samples[:, None] if samples.ndim == 2 else samples
    if samples.ndim != 3 or len(samples) != len(labels) or samples.shape[1] != 1:
        shapes = f"samples {tuple(samples.shape)} and {len(labels)} labels"
        raise InputError(f"{path}: {shapes}; expected [N, 1, length] and [N].")
    unknown = set(labels) - set(class_names)
    if unknown:
        raise InputError(f"{path}: classes {sorted(unknown)}; the recipe knows {sorted(class_names)}.")
    if not bool(torch.isfinite(samples).all()):
        raise InputError(f"{path}: has values that are not finite.")
    planned = [Series([], class_names[int(code)], index) for index, code in enumerate(labels)]
    chosen = at_most(planned, most) if most else planned
    return [replace(item, values=samples[item.index].double().tolist()) for item in chosen]


def _numpy_globals() -> list[Any]:
    """The objects that a pickled numpy array of plain numbers refers to, by their names in numpy 1 and 2."""
    import numpy as np

    types = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
    functions = [getattr(np._core.multiarray, name) for name in CODE_NAMES]  # type: ignore[attr-defined]
    old_names = [(fn, f"numpy.core.multiarray.{name}") for fn, name in zip(functions, CODE_NAMES, strict=True)]
    return [np.ndarray, np.dtype, *types, *functions, *old_names]


# ---- sound clips


def plan_clips(table: Path, class_names: Mapping[str, str]) -> list[Series]:
    """The clips of a table with the columns clip_name and label (Kaggle's train.csv), without values."""
    rows, columns = [], csv.DictReader(text_of(table).splitlines())
    if not {"clip_name", "label"} <= set(columns.fieldnames or ()):
        raise InputError(f"{table}: the first line is {columns.fieldnames}; expected clip_name and label.")
    for row in columns:
        name, code = str(row["clip_name"] or "").strip(), str(row["label"] or "").strip()
        if not name or code not in class_names:
            what = f"clip_name {name!r}, label {code!r}"
            raise InputError(f"{table}, line {columns.line_num}: {what}; labels known are {list(class_names)}.")
        rows.append((columns.line_num, name, class_names[code]))
    clips = _as_index(table, rows).items()
    return [Series([], label, index, {"clip": name}) for index, (name, label) in enumerate(clips)]


def find_clips(folder: Path, planned: Sequence[Series]) -> dict[str, Path]:
    """The planned clips in `folder` or below it: name -> path. Warnings count other clips and missing ones."""
    found = sorted((p for p in folder.rglob("*") if SOUND.fullmatch(p.suffix)), key=lambda p: (len(p.parts), p))
    wanted = dict.fromkeys(item.meta["clip"] for item in planned)
    nearest: dict[str, Path] = {}
    duplicates = [str(p) for p in found if p.name in wanted and nearest.setdefault(p.name, p) != p]
    report_left_out("clips", duplicates, "files of the same names are less nested")
    report_left_out("clips", [p.name for p in found if p.name not in wanted], "the table has no label for them")
    report_left_out("lines of the table", [name for name in wanted if name not in nearest], "their clips are missing")
    return nearest


def fill_clips(planned: Sequence[Series], paths: Mapping[str, Path], rate: int, length: int) -> list[Series]:
    """The clips that `plan_clips` planned, with readings in [-1, 1]. `paths`: see `find_clips`.

    Raises InputError for a clip that cannot be read, and for several channels, another rate or another length.
    """
    import soundfile

    filled = []
    for item in planned:
        path = paths.get(item.meta["clip"])
        if path is None:
            raise InputError(f"No clip {item.meta['clip']!r}; the table lists it. Put it back, or remove its line.")
        try:
            values, found_rate = soundfile.read(path, dtype="float64", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise InputError(f"{path}: not a readable sound file: {error}") from error
        if found_rate != rate or values.shape != (length, 1):
            shown = f"{len(values)} readings at {found_rate} Hz in {values.shape[1]} channel(s)"
            raise InputError(f"{path}: {shown}; expected {length} at {rate} Hz in 1.")
        filled.append(replace(item, values=[values[:, 0].tolist()]))
    return filled
