"""Time series from files: UCR/UEA archives (`.ts`, `.arff`, zip), the sets in sktime, downloads, seeded splits.

Knows nothing about plots, prompts or models. sktime parses the files. It is imported only when a file is read, because
that takes seconds.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import logging
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from timemaster.series.files import (
    OTHER_TMPDIR,
    clean_arff,
    clean_ts,
    report_left_out,
    temporary_folder,
    unpacked,
    writing,
)
from timemaster.series.labels import label_key
from timemaster.system.files import replacing
from timemaster.types import InputError

logger = logging.getLogger(__name__)

DOWNLOADS = Path("data/downloads")
NUM_TRIES = 4  # one try and three retries
CHUNK_BYTES = 1 << 16
RESAMPLE = "Times are not kept: resample the readings to equal steps, and remove the timestamps."
NUM_ORDERS = 1000  # orders of groups that `choose_groups` tries


@dataclass(frozen=True, slots=True)
class Series:
    """One recording. Example: Series([[-0.24, -0.24, 5.1]], label="Desktop", index=17)"""

    values: list[list[float]]  # [num_channels][length]
    label: str  # spelled as in the task's labels
    index: int  # position in its split, from 0
    # Further facts. Series of one "group" (a person, a recording) always stay in the same split.
    meta: dict[str, Any] = field(default_factory=dict)


def read_series(path: Path, class_names: Mapping[str, str]) -> list[Series]:
    """All series of a `.ts` or `.arff` file. `class_names`: class in the file -> label.

    Classes are compared without regard to case and to Unicode form (`label_key`). Raises InputError for another file
    type, a class that is not in `class_names`, empty channels, missing values, and timestamps that are not evenly
    spaced.
    """
    frame, classes = _parse(path)
    columns = [frame[name] for name in frame.columns]
    labels = {label_key(name): label for name, label in class_names.items()}
    series, steps = [], set()
    for index, (name, *channels) in enumerate(zip(classes, *columns, strict=True)):
        label = class_names.get(name, labels.get(label_key(name)))
        if label is None:
            raise InputError(f"{path}: series {index} has class {name!r}; the recipe knows {list(class_names)}.")
        values = [[float(value) for value in channel] for channel in channels]
        if not all(values):
            raise InputError(f"{path}: series {index} has a channel without readings; leave the series out.")
        if not all(math.isfinite(value) for channel in values for value in channel):
            raise InputError(f"{path}: series {index} has missing values; fill them first or leave the series out.")
        steps |= _time_steps(channels, f"{path}: series {index}")
        series.append(Series(values, label, index))
    if len(steps) > 1:
        raise InputError(f"{path}: readings are not evenly spaced in time ({min(steps)} to {max(steps)}). {RESAMPLE}")
    return series


def _time_steps(channels: Sequence[Any], where: str) -> set[Any]:
    """The steps between the timestamps of a series; empty if the file has no timestamps.

    Raises InputError when timestamps do not increase, and when channels have different ones.
    """
    import pandas as pd

    times = channels[0].index
    if isinstance(times, pd.RangeIndex):
        return set()
    if not all(channel.index.equals(times) for channel in channels):
        raise InputError(f"{where}: its channels have readings at different times. {RESAMPLE}")
    if not (times.is_monotonic_increasing and times.is_unique):
        raise InputError(f"{where}: its timestamps do not increase. Sort the readings by time, one at a time.")
    return {later - earlier for earlier, later in pairwise(times)}


def _parse(path: Path) -> tuple[Any, list[str]]:
    """sktime's data frame, with a column for each channel and a row for each series; and the classes."""
    from sktime.datasets import load_from_arff_to_dataframe, load_from_tsfile_to_dataframe

    readers = {".ts": (clean_ts, load_from_tsfile_to_dataframe), ".arff": (clean_arff, load_from_arff_to_dataframe)}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: cannot read {path.suffix!r} files; give .ts or .arff.")
    clean, read = readers[path.suffix.lower()]
    text, classes = clean(path)
    with temporary_folder() as folder:
        cleaned = folder / f"cleaned{path.suffix.lower()}"
        with writing(cleaned, OTHER_TMPDIR):
            cleaned.write_text(text, encoding="utf-8")
        try:
            frame, _ = read(str(cleaned))
        except Exception as error:  # sktime raises many types of exceptions for a broken file
            raise InputError(f"{path}: not a readable {path.suffix} file: {error}") from error
    if len(frame) != len(classes):
        raise InputError(
            f"{path}: {len(classes)} rows, of which sktime reads {len(frame)}. Check the form of the rows."
        )
    return frame, classes


def read_splits(source: Path | None, name: str, class_names: Mapping[str, str]) -> dict[str, list[Series]]:
    """The "train" and "test" series of the archive set `name`, such as "Computers".

    `source` is a zip file, a folder with `<name>.zip`, or a folder with `<name>_TRAIN.ts` or `<name>_TRAIN.arff` in it
    or below it. Raises InputError when it is None, and when it or a split does not exist.
    """
    if source is None:
        raise InputError(
            f"The set {name}: give --source DIR, or write a `load` that downloads it (see recipes/ctu.py)."
        )
    if not source.exists():
        raise InputError(f"The set {name}: no such folder or file: {source.absolute()}")
    if source.is_dir() and not _find(source, f"{name}_TRAIN") and (source / f"{name}.zip").is_file():
        source = source / f"{name}.zip"
    if source.is_file():
        with unpacked([source]) as folder:
            return _read_folder(folder, name, class_names, f"{source}")
    return _read_folder(source, name, class_names, f"{source}")


def _read_folder(folder: Path, name: str, class_names: Mapping[str, str], shown: str) -> dict[str, list[Series]]:
    splits = {}
    for split in ("train", "test"):
        path = _find(folder, f"{name}_{split.upper()}")
        if path is None:
            raise InputError(
                f"{shown}: no {name}_{split.upper()}.ts or .arff in it. Give the folder or zip of the set {name}."
            )
        splits[split] = read_series(path, class_names)
    return splits


def _find(folder: Path, stem: str) -> Path | None:
    """The file `stem` with a known suffix in `folder` or below it; the least nested one if there are several."""
    for suffix in (".ts", ".arff"):
        paths = sorted(folder.rglob(stem + suffix), key=lambda path: (len(path.parts), path))
        if paths:
            report_left_out(f"files called {paths[0].name}", [str(p) for p in paths[1:]], f"{paths[0]} is read")
            return paths[0]
    return None


def bundled_splits(name: str, class_names: Mapping[str, str]) -> dict[str, list[Series]]:
    """The "train" and "test" series of a set that is part of sktime, such as "ItalyPowerDemand". Needs no network."""
    spec = importlib.util.find_spec("sktime")
    if spec is None or spec.origin is None:
        raise InputError("sktime is not installed: run the set-up script, or pip install sktime.")
    return read_splits(Path(spec.origin).parent / "datasets" / "data" / name, name, class_names)


def download(url: str, sha256: str = "", folder: Path = DOWNLOADS) -> Path:
    """Download `url` to `folder`, unless the file is there already. Retries three times, with growing pauses.

    Raises InputError when the download fails, and when `sha256` is given and differs.
    """
    path = folder / url.rsplit("/", 1)[-1]
    with writing(folder, "download the file elsewhere and give its folder: --source DIR"):
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(url, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 and digest != sha256:
            path.unlink()
    if sha256 and digest != sha256:
        raise InputError(f"{url}: its sha256 is {digest}, expected {sha256}. The file was removed; try again later.")
    return path


class _NetworkError(Exception):
    pass


def _fetch(url: str, path: Path) -> None:
    """Download a file. Two processes can download the same one."""
    with replacing(path) as temporary:
        for attempt in range(NUM_TRIES):
            try:
                with temporary.open("wb") as file:
                    for block in _blocks(url, path.name):
                        file.write(block)
                return
            except _NetworkError as error:
                reason = error
            if attempt + 1 < NUM_TRIES:
                pause = 2**attempt
                logger.warning("%s: %s; trying again in %d s", url, reason, pause)
                time.sleep(pause)
        raise InputError(
            f"{url} could not be downloaded in {NUM_TRIES} tries ({reason}). Check the network, or download the file "
            "elsewhere and give its folder: --source DIR."
        )


def _blocks(url: str, name: str) -> Iterator[bytes]:
    """The blocks that the host sends. Shows a progress bar. Raises _NetworkError for errors of the network only."""
    import urllib.request

    from tqdm import tqdm

    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            size = int(response.headers.get("Content-Length") or 0) or None
            received = 0
            with tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar:
                while block := response.read(CHUNK_BYTES):
                    received += len(block)
                    bar.update(len(block))
                    yield block
        if size is not None and received != size:
            raise OSError(f"connection closed after {received} of {size} bytes")
    # URLError, HTTPError and timeouts are OSErrors. A connection that ends within a block is an HTTPException.
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(error) or repr(error)) from error


def check_splits(splits: Mapping[str, Sequence[Series]], num_rows: Mapping[str, int], length: int) -> None:
    """Compare with the published set: `num_rows` series in each split, `length` readings in each channel.

    Warns if the set is smaller. Raises InputError for an empty split, a split that is larger than the published one,
    and channels of another length.
    """
    sizes = {split: len(splits[split]) for split in num_rows}
    for split, expected in num_rows.items():
        if not sizes[split]:
            raise InputError(f"The {split} split has no series.")
        if sizes[split] > expected:
            raise InputError(f"The {split} split has {sizes[split]} series; the published set has {expected}.")
        for series in splits[split]:
            wrong = {len(channel) for channel in series.values} - {length}
            if wrong:
                raise InputError(f"{split} series {series.index} has {wrong.pop()} readings; expected {length}.")
    if sizes != dict(num_rows):
        logger.warning(
            "This is a part of the set, %s series of %s: do not compare results with published figures.",
            sizes, dict(num_rows),
        )  # fmt: skip


def check_digest(splits: Mapping[str, Sequence[Series]], expected: str) -> None:
    """Warn if labels, values or their order differ from the data that the recipe was checked with.

    A difference is not an error, because a host may write the same numbers with other digits. `check_splits` refuses
    other sets. The sha256 is computed from the parsed values, rounded to four decimals. So it is the same for `.ts`
    and `.arff` files with equal values, even if their headers or their compression differ.
    """
    digest = hashlib.sha256()
    for split in sorted(splits):
        for series in splits[split]:
            # Rounded to whole numbers, because rounding to decimals gives two zeros, 0.0 and -0.0.
            rounded = [[round(value * 10_000) for value in channel] for channel in series.values]
            digest.update(f"{split} {series.label} {rounded}\n".encode())
    if digest.hexdigest() != expected:
        logger.warning(
            "Labels or values differ from those that this recipe was checked with (digest %s, expected %s). They were "
            "changed, resampled, reordered or written with other digits. Results may differ from published ones.",
            digest.hexdigest(), expected,
        )  # fmt: skip


def stratified_split(series: Sequence[Series], first_size: int, seed: int) -> tuple[list[Series], list[Series]]:
    """Two parts, the first with exactly `first_size` series. Each class has the same share of both.

    The same seed gives the same parts. Both parts keep the order. Raises InputError when a part would be empty.
    """
    chosen = choose_stratified(series, first_size, seed)
    return [s for i, s in enumerate(series) if i in chosen], [s for i, s in enumerate(series) if i not in chosen]


def choose_stratified(series: Sequence[Series], size: int, seed: int) -> set[int]:
    """The positions of exactly `size` series, drawn from each class in proportion. See `stratified_split`."""
    if not 0 < size < len(series):
        raise InputError(f"Cannot take {size} of {len(series)} series: both parts need at least one.")
    positions = defaultdict(list)
    for position, item in enumerate(series):
        positions[item.label].append(position)
    shares = {label: size * len(members) / len(series) for label, members in positions.items()}
    counts = Counter({label: math.floor(share) for label, share in shares.items()})
    by_remainder = sorted(shares, key=lambda label: (counts[label] - shares[label], label))
    counts.update(by_remainder[: size - counts.total()])
    rng = random.Random(seed)
    return {i for label in sorted(positions) for i in rng.sample(positions[label], counts[label])}


def choose_groups(series: Sequence[Series], size: int, seed: int) -> set[int]:
    """The positions of whole groups (`meta["group"]`) with about `size` series; the rest keeps series of every class.

    Tries NUM_ORDERS seeded orders of the groups and takes groups greedily in each. The result nearest to `size` wins;
    if several are equally near, the one with the most classes. Raises InputError when a series has no group, and
    when every group holds the last series of a class.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for position, item in enumerate(series):
        if item.meta.get("group") is None:
            raise InputError(
                f"Series {item.index} has no meta['group'], but others have one: give all of them one, or none."
            )
        members[item.meta["group"]].append(position)
    classes = {group: Counter(series[i].label for i in positions) for group, positions in members.items()}
    total = Counter(item.label for item in series)
    rng, order = random.Random(seed), list(members)
    candidates = []
    for _ in range(NUM_ORDERS):
        rng.shuffle(order)
        if taken := _fill(order, classes, total, size):
            num_rows, num_classes = sum(len(members[g]) for g in taken), len(set().union(*(classes[g] for g in taken)))
            candidates.append((abs(num_rows - size), -num_classes, taken))
            if candidates[-1][:2] == (0, -len(total)):
                break
    if not candidates:
        raise InputError(
            f"None of the {len(members)} groups can be taken from the {len(series)} series: each holds the last series "
            "of a class. Leave meta['group'] out, or return a validation split from `load`."
        )
    _, _, taken = min(candidates, key=lambda candidate: candidate[:2])
    return {position for group in taken for position in members[group]}


def _fill(order: Sequence[Any], classes: Mapping[Any, Counter[str]], total: Counter[str], size: int) -> list[Any]:
    """Take groups in order. Skip a group that leads away from `size` or holds the last remaining series of a class."""
    remaining, num_rows = total.copy(), 0
    taken: list[Any] = []
    for group in order:
        counts = classes[group]
        is_nearer = abs(num_rows + counts.total() - size) < abs(num_rows - size)
        if (is_nearer or not taken) and all(remaining[label] > count for label, count in counts.items()):
            remaining.subtract(counts)
            num_rows += counts.total()
            taken.append(group)
    return taken
