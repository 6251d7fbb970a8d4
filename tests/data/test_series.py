"""Series files, archives, downloads and splits."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from timemaster.data import series as series_module
from timemaster.data.series import Series, check_splits, download, read_series, read_splits, stratified_split
from timemaster.types import InputError

CLASSES = {"1": "Desktop", "2": "Laptop"}
TS = """@problemName Tiny
@timeStamps false
@missing false
@univariate true
@equalLength true
@seriesLength 3
@classLabel true 1 2
@data
0.5,-1.0,2.0:1
1.5,0.25,-2.0:2
"""
ARFF = """@relation Tiny
@attribute a1 numeric
@attribute a2 numeric
@attribute a3 numeric
@attribute target {1,2}
@data
0.5,-1.0,2.0,1
1.5,0.25,-2.0,2
"""
TINY = [Series([[0.5, -1.0, 2.0]], "Desktop", 0), Series([[1.5, 0.25, -2.0]], "Laptop", 1)]
COMPUTERS = Path(__file__).parents[2] / "../shared/data/Computers"


@pytest.mark.parametrize(("suffix", "text"), [(".ts", TS), (".arff", ARFF)])
def test_both_formats_give_the_same_series(tmp_path: Path, suffix: str, text: str):
    file = tmp_path / f"Tiny_TRAIN{suffix}"
    file.write_text(text)
    assert read_series(file, CLASSES) == TINY


def test_channels_are_read_in_order(tmp_path: Path):
    file = tmp_path / "Tiny_TRAIN.ts"
    file.write_text(TS.split("@data")[0].replace("@univariate true", "@univariate false") + "@data\n1,2,3:4,5,6:2\n")
    assert read_series(file, CLASSES) == [Series([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "Laptop", 0)]


def test_what_cannot_be_used_is_named(tmp_path: Path):
    file = tmp_path / "Tiny_TRAIN.ts"
    file.write_text(TS)
    with pytest.raises(InputError, match="series 1 has class '2'"):
        read_series(file, {"1": "Desktop"})
    file.write_text(TS.replace("0.25", "?").replace("@missing false", "@missing true"))
    with pytest.raises(InputError, match="series 1 has missing values"):
        read_series(file, CLASSES)
    file.write_text("nonsense")
    with pytest.raises(InputError, match="not a readable"):
        read_series(file, CLASSES)
    with pytest.raises(InputError, match=r"\.ts or \.arff"):
        read_series(tmp_path / "Tiny.csv", CLASSES)


def write_zip(folder: Path, inner: str = "") -> Path:
    with zipfile.ZipFile(folder / "Tiny.zip", "w") as file:
        for split in ("TRAIN", "TEST"):
            file.writestr(f"{inner}Tiny_{split}.ts", TS)
            file.writestr(f"{inner}Tiny_{split}.arff", "the .ts file comes first")
    return folder / "Tiny.zip"


@pytest.mark.parametrize("inner", ["", "Tiny/"])
def test_splits_come_from_a_zip_or_from_a_folder_with_one(tmp_path: Path, inner: str):
    archive = write_zip(tmp_path, inner)
    assert read_splits(archive, "Tiny", CLASSES) == {"train": TINY, "test": TINY}
    assert read_splits(tmp_path, "Tiny", CLASSES) == {"train": TINY, "test": TINY}


def test_a_folder_without_the_set_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no Tiny_TRAIN\.ts or \.arff"):
        read_splits(tmp_path, "Tiny", CLASSES)
    (tmp_path / "Tiny.zip").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="not a zip file"):
        read_splits(tmp_path, "Tiny", CLASSES)


def test_check_splits_compares_with_the_published_set():
    check_splits({"train": TINY}, {"train": 2}, 3)
    with pytest.raises(InputError, match="has 2 series; the published set has 250"):
        check_splits({"train": TINY}, {"train": 250}, 3)
    with pytest.raises(InputError, match="series 0 has 3 readings; expected 720"):
        check_splits({"train": TINY}, {"train": 2}, 720)


def test_download_is_kept_and_its_checksum_compared(tmp_path: Path):
    source = write_zip(tmp_path)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    folder = tmp_path / "downloads"
    assert download(source.as_uri(), digest, folder).read_bytes() == source.read_bytes()
    source.unlink()
    assert download(source.as_uri(), digest, folder).is_file()  # from the folder now
    with pytest.raises(InputError, match=f"sha256 is {digest}, expected 00"):
        download(source.as_uri(), "00", folder)
    assert list(folder.iterdir()) == []  # what failed the check is not kept


def test_download_without_network_retries_then_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tries: list[str] = []
    pauses: list[float] = []

    def refuse(url: str, timeout: float):
        tries.append(url)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(series_module.time, "sleep", pauses.append)
    with pytest.raises(InputError, match="--source DIR"):
        download("https://example.org/Tiny.zip", folder=tmp_path)
    assert len(tries) == 4  # one try and three retries
    assert pauses == [1, 2, 4]
    assert list(tmp_path.iterdir()) == []


def test_stratified_split_has_exact_sizes_and_the_same_shares():
    pool = [Series([[float(i)]], "A" if i % 3 else "B", i) for i in range(90)]  # 60 A, 30 B
    first, second = stratified_split(pool, 20, seed=1)
    assert Counter(s.label for s in first) == {"A": 13, "B": 7}  # shares 13.33 and 6.67: B has the larger remainder
    assert len(second) == 70
    assert sorted(s.index for s in [*first, *second]) == list(range(90))
    assert [s.index for s in first] == sorted(s.index for s in first)  # order is kept
    assert stratified_split(pool, 20, seed=1) == (first, second)
    assert stratified_split(pool, 20, seed=2)[0] != first
    with pytest.raises(InputError, match="at least one"):
        stratified_split(pool, 90, seed=1)


@pytest.mark.skipif(not COMPUTERS.is_dir(), reason="the Computers set is not in ../shared/data")
def test_nearest_neighbour_on_computers_is_right_as_often_as_published():
    import numpy as np

    splits = read_splits(COMPUTERS, "Computers", CLASSES)
    check_splits(splits, {"train": 250, "test": 250}, 720)
    train, test = (np.array([s.values[0] for s in splits[name]]) for name in ("train", "test"))
    # |x - y|^2 = |x|^2 - 2 xy + |y|^2; |x|^2 of the test series does not change which y is nearest.
    nearest = ((train**2).sum(1)[None] - 2 * test @ train.T).argmin(1)
    right = sum(splits["train"][j].label == s.label for j, s in zip(nearest, splits["test"], strict=True))
    assert right == 144  # of 250: 57.6 %, the archive's figure for one nearest neighbour with Euclidean distance
