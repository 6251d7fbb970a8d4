"""Recordings as their hosts keep them: UCI HAR's folder, PhysioNet records, TF-C's `.pt` files, sound clips.

What is read becomes `Series`, as `series.read_splits` makes of the UCR/UEA archives. Sets too large for the memory are
planned first, as series without values (`plan_windows`, `plan_clips`), cut and thinned out, and then filled.
wfdb, soundfile and torch are imported only when such a file is read.
"""

from __future__ import annotations

import csv
import gzip
import math
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from timemaster.data.series import Series, download, stratified_split
from timemaster.types import InputError

PHYSIONET = "https://physionet.org/files"
TFC_FILES = {"train": "train.pt", "validation": "val.pt", "test": "test.pt"}
SEED = 1  # of `at_most`
CODE_NAMES = ("_reconstruct", "scalar")  # what numpy's arrays are pickled by, besides their types


@contextmanager
def opened(source: Path, *names: str) -> Iterator[Path]:
    """`source` as a folder: itself, or a zip unpacked (zips inside it, too) while the block lasts.

    A folder that holds zips, as downloaded, and no file called like one of `names` counts as its zips.
    """
    if not source.exists():
        raise InputError(f"No such folder or file: {source.absolute()}")
    zips = sorted(source.glob("*.zip")) if source.is_dir() else [source]
    if source.is_dir() and (not zips or any(find(source, name) for name in names)):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        for archive in zips:
            _unzip(archive, Path(folder, archive.stem))
        for inner in sorted(Path(folder).rglob("*.zip")):
            _unzip(inner, inner.parent)
        yield Path(folder)


def _unzip(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{archive}: neither a folder nor a zip file ({error}); if fetched, delete it first."
        ) from error


def find(folder: Path, name: str) -> Path | None:
    """The first file called `name` in `folder` or below it."""
    return next(iter(sorted(path for path in folder.rglob(name) if path.is_file())), None)


def at_most(series: Sequence[Series], most: int) -> list[Series]:
    """`series`, or `most` of them, drawn by a fixed seed with the shares of the classes kept."""
    return list(series) if len(series) <= most else stratified_split(series, most, SEED)[0]


def numbered(series: Sequence[Series]) -> list[Series]:
    """The series with their positions as index."""
    return [replace(item, index=index) for index, item in enumerate(series)]


# ---- UCI HAR


def read_uci_har(folder: Path, channels: Sequence[str], class_names: Mapping[str, str]) -> dict[str, list[Series]]:
    """The "train" and "test" windows of UCI HAR, e.g. channels=("body_acc_x", "body_acc_y", "body_acc_z").

    `folder` is the archive's or holds it; signals lie in `<split>/Inertial Signals/` or `<split>/`, plain or gzipped.
    Where `subject_<split>.txt` is there, each series has `meta["group"]`, the volunteer. Raises InputError for a
    missing file, a class that `class_names` does not know, files of different lengths and what is no finite number.
    """
    root = next((p.parents[1] for p in sorted(folder.rglob("y_train.txt*")) if p.parent.name == "train"), None)
    if root is None:
        raise InputError(f"{folder}: no train/y_train.txt in it. Give the folder or zip of UCI HAR.")
    return {split: _har_split(root / split, split, channels, class_names) for split in ("train", "test")}


def _har_split(folder: Path, split: str, channels: Sequence[str], class_names: Mapping[str, str]) -> list[Series]:
    codes = _har_lines(folder, f"y_{split}.txt")
    signals = {f"{channel}_{split}.txt": _har_lines(folder, f"{channel}_{split}.txt") for channel in channels}
    subjects = _har_lines(folder, f"subject_{split}.txt", optional=True)
    lengths = {len(codes), *(len(lines) for lines in signals.values()), *([len(subjects)] if subjects else [])}
    if len(lengths) != 1:
        raise InputError(f"{folder}: its files have {sorted(lengths)} lines; they must be as many in each.")
    series = []
    for index, code in enumerate(codes):
        if code not in class_names:
            raise InputError(f"{folder}/y_{split}.txt, line {index + 1}: class {code!r}; known: {list(class_names)}.")
        values = [_numbers(lines[index], f"{folder}, {name}, line {index + 1}") for name, lines in signals.items()]
        meta = {"group": f"subject {subjects[index]}"} if subjects else {}
        series.append(Series(values, class_names[code], index, meta))
    return series


def _har_lines(folder: Path, name: str, optional: bool = False) -> list[str]:
    for path in (folder / name, folder / "Inertial Signals" / name):
        zipped = path.with_name(f"{name}.gz")
        if path.is_file() or zipped.is_file():
            try:
                text = (
                    path.read_text(encoding="utf-8")
                    if path.is_file()
                    else gzip.decompress(zipped.read_bytes()).decode()
                )
            except (OSError, EOFError, ValueError) as error:
                raise InputError(f"{path if path.is_file() else zipped}: not readable: {error}") from error
            return [line.strip() for line in text.splitlines() if line.strip()]
    if optional:
        return []
    raise InputError(f"{folder}: no {name} or {name}.gz in it or in its folder 'Inertial Signals'.")


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
    """The files `names` of a project ("emgdb/1.0.0") in `folder`, compared with the sums that the project publishes."""
    listed = download(f"{host}/{project}/SHA256SUMS.txt", "", folder).read_text(encoding="utf-8").splitlines()
    sums = {words[-1].removeprefix("./"): words[0] for line in listed if len(words := line.split()) == 2}
    for name in names:
        if name not in sums:
            raise InputError(f"{host}/{project}/SHA256SUMS.txt does not list {name}. Fetch it by hand: --source DIR.")
        download(f"{host}/{project}/{name}", sums[name], folder)
    return folder


def read_reference(path: Path, class_names: Mapping[str, str]) -> dict[str, str]:
    """Record -> label of a PhysioNet REFERENCE.csv ("A00001,N" a line, no header). InputError for an unknown class."""
    with path.open(encoding="utf-8") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[1] not in class_names:
            raise InputError(f"{path}, line {number}: {','.join(row)!r}; expected record,class of {list(class_names)}.")
    return {record: class_names[code] for record, code in rows}


def windows(values: Sequence[float], length: int) -> Iterator[list[float]]:
    """Windows of `length` readings, one after another, without overlap; what is left at the end is dropped."""
    for start in range(0, len(values) - length + 1, length):
        yield list(values[start : start + length])


def find_records(folder: Path) -> dict[str, Path]:
    """The PhysioNet records in `folder` or below it, by name: paths without suffix, the nearest of equal names."""
    paths = sorted(folder.rglob("*.hea"), key=lambda path: (len(path.parts), path), reverse=True)
    return {path.stem: path.with_suffix("") for path in paths}


def plan_windows(record: Path, label: str, length: int) -> list[Series]:
    """The windows of a PhysioNet record, one after another without overlap, the rest dropped; values not yet read."""
    size = _wfdb("rdheader", record).sig_len or 0
    starts = range(0, size - length + 1, length)
    return [Series([], label, i, {"group": record.name, "start": start}) for i, start in enumerate(starts)]


def fill_windows(planned: Sequence[Series], records: Mapping[str, Path], rate: float, length: int) -> list[Series]:
    """What `plan_windows` planned, with the readings of the `records` by name; each record is opened once."""
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
    """The first signal of a PhysioNet record (`path` without suffix; `.hea` and its data beside it) in `unit`.

    Raises InputError when it cannot be read, has gaps, another unit, or was not sampled at `rate` Hz.
    """
    record = _wfdb("rdrecord", path)
    if abs(record.fs - rate) > 1e-6 or record.units[0] != unit:
        raise InputError(f"{path}: {record.units[0]} at {record.fs} Hz; expected {unit} at {rate} Hz.")
    values: list[float] = record.p_signal[:, 0].tolist()
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{path}: has gaps (missing readings).")
    return values


def _wfdb(function: str, path: Path) -> Any:
    import wfdb

    if not path.with_name(f"{path.name}.hea").is_file():
        raise InputError(f"{path}.hea is not there.")
    try:
        return getattr(wfdb, function)(str(path))
    except Exception as error:  # wfdb raises many kinds for a damaged record
        raise InputError(f"{path}: not a readable PhysioNet record: {error!r}") from error


# ---- TF-C


def read_tfc(folder: Path, class_names: Mapping[int, str], most: Mapping[str, int]) -> dict[str, list[Series]]:
    """The splits of a TF-C set: train.pt, val.pt (if there) and test.pt; `most` series of a split, all if not said."""
    paths = {split: path for split, name in TFC_FILES.items() if (path := find(folder, name))}
    if not {"train", "test"} <= paths.keys():
        raise InputError(f"{folder}: has {', '.join(p.name for p in paths.values())}; train.pt and test.pt are needed.")
    return {split: read_pt(path, class_names, most.get(split, 0)) for split, path in paths.items()}


def read_pt(path: Path, class_names: Mapping[int, str], most: int = 0) -> list[Series]:
    """The series of a TF-C file: a dictionary with `samples` [N, 1, length] (or [N, length]) and `labels` [N].

    `most` of them (0: all), drawn as by `at_most`. Only tensors and numpy arrays are loaded, never code. Raises
    InputError for anything else, a class that `class_names` does not know, and values that are not finite.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        samples, labels = torch.as_tensor(content["samples"]), torch.as_tensor(content["labels"]).flatten().tolist()
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
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
    """What a pickled numpy array of plain numbers refers to, under its names in numpy 1 and 2."""
    import numpy as np

    types = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
    codes = [getattr(np._core.multiarray, name) for name in CODE_NAMES]  # type: ignore[attr-defined]
    old = [(code, f"numpy.core.multiarray.{name}") for code, name in zip(codes, CODE_NAMES, strict=True)]
    return [np.ndarray, np.dtype, *types, *codes, *old]


# ---- sound clips


def plan_clips(table: Path, class_names: Mapping[str, str]) -> list[Series]:
    """The clips of a table with the columns clip_name and label (Kaggle's train.csv); values not yet read."""
    planned: list[Series] = []
    with table.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            name, code = str(row.get("clip_name") or "").strip(), str(row.get("label") or "").strip()
            if not name or code not in class_names:
                what = f"clip_name {name!r}, label {code!r}"
                raise InputError(f"{table}, line {number}: {what}; labels known are {list(class_names)}.")
            planned.append(Series([], class_names[code], len(planned), {"clip": name}))
    return planned


def fill_clips(planned: Sequence[Series], folder: Path, rate: int, length: int) -> list[Series]:
    """What `plan_clips` planned, with the clips in `folder` or below it, as readings in [-1, 1].

    Raises InputError for a missing clip, one that cannot be read, another rate, and another length.
    """
    import soundfile

    paths = {path.name: path for path in folder.rglob("*.ai*f*")}
    filled = []
    for item in planned:
        path = paths.get(item.meta["clip"])
        if path is None:
            raise InputError(f"{folder}: no clip {item.meta['clip']!r} in it or below it; the table names it.")
        try:
            values, found = soundfile.read(path, dtype="float64", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise InputError(f"{path}: not a readable sound file: {error}") from error
        if found != rate or len(values) != length:
            raise InputError(f"{path}: {len(values)} readings at {found} Hz; expected {length} at {rate} Hz.")
        filled.append(replace(item, values=[values[:, 0].tolist()]))
    return filled
