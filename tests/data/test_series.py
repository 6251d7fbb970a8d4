"""Series files, archives, downloads and splits."""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SHARED_DATA
from timemaster.series import splits as series_module
from timemaster.series.splits import (
    Series,
    check_digest,
    check_splits,
    choose_groups,
    download,
    read_series,
    read_splits,
    stratified_split,
)
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
COMPUTERS = SHARED_DATA / "Computers"


@pytest.mark.parametrize(("suffix", "text"), [(".ts", TS), (".arff", ARFF)])
def test_both_formats_give_the_same_series(tmp_path: Path, suffix: str, text: str):
    file = tmp_path / f"Tiny_TRAIN{suffix}"
    file.write_text(text, encoding="utf-8")
    assert read_series(file, CLASSES) == TINY


def test_channels_are_read_in_order(tmp_path: Path):
    file = tmp_path / "Tiny_TRAIN.ts"
    file.write_text(
        TS.split("@data")[0].replace("@univariate true", "@univariate false") + "@data\n1,2,3:4,5,6:2\n",
        encoding="utf-8",
    )
    assert read_series(file, CLASSES) == [Series([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "Laptop", 0)]


def test_what_cannot_be_used_is_named(tmp_path: Path):
    file = tmp_path / "Tiny_TRAIN.ts"
    file.write_text(TS, encoding="utf-8")
    with pytest.raises(InputError, match="series 1 has class '2'"):
        read_series(file, {"1": "Desktop"})
    file.write_text(TS.replace("0.25", "?").replace("@missing false", "@missing true"), encoding="utf-8")
    with pytest.raises(InputError, match="series 1 has missing values"):
        read_series(file, CLASSES)
    file.write_text("nonsense", encoding="utf-8")
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
    (tmp_path / "Tiny.zip").write_text("<html>not found</html>", encoding="utf-8")
    with pytest.raises(InputError, match="not a zip file"):
        read_splits(tmp_path, "Tiny", CLASSES)


def test_a_source_that_is_not_given_or_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="give --source DIR, or write a `load` that downloads it"):
        read_splits(None, "Tiny", CLASSES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"no such folder or file: {tmp_path / 'gone'}"):
        read_splits(Path("gone"), "Tiny", CLASSES)


def test_the_digest_is_of_what_was_parsed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    files = [tmp_path / "Tiny_TRAIN.ts", tmp_path / "Tiny_TRAIN.arff"]
    files[0].write_text(TS, encoding="utf-8")
    files[1].write_text(ARFF, encoding="utf-8")

    def digest_of(splits: dict[str, list[Series]]) -> str:
        caplog.clear()
        check_digest(splits, "")
        return re.findall(r"[0-9a-f]{64}", caplog.text)[0]

    expected = digest_of({"train": TINY, "test": []})
    for file in files:
        assert digest_of({"train": read_series(file, CLASSES), "test": []}) == expected
    first, second = TINY
    nearly = replace(first, values=[[0.500001, -1.0, 2.0]])  # another way to write the same numbers
    assert digest_of({"train": [nearly, second], "test": []}) == expected
    value, label, order = [replace(first, values=[[0.5001, -1.0, 2.0]]), second], [first, first], [second, first]
    for changed in (value, label, order, [first]):
        assert digest_of({"train": changed, "test": []}) != expected
    assert digest_of({"train": [], "test": TINY}) != expected
    zeros = [digest_of({"train": [Series([[zero]], "A", 0)]}) for zero in (0.0, -0.0, -0.00001)]
    assert len(set(zeros)) == 1
    caplog.clear()
    check_digest({"train": TINY, "test": []}, expected)
    assert not caplog.text


def test_check_splits_compares_with_the_published_set(caplog: pytest.LogCaptureFixture):
    check_splits({"train": TINY}, {"train": 2}, 3)
    assert not caplog.text
    check_splits({"train": TINY}, {"train": 250}, 3)  # a smaller copy
    assert "a part of the set, {'train': 2} series of {'train': 250}" in caplog.text
    with pytest.raises(InputError, match="has 4 series; the published set has 2"):
        check_splits({"train": TINY * 2}, {"train": 2}, 3)
    with pytest.raises(InputError, match="The train split has no series"):
        check_splits({"train": []}, {"train": 2}, 3)
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


class CutOff(io.BytesIO):
    """A response whose connection ends before it has said all it announced."""

    def __init__(self) -> None:
        self.headers = {"Content-Length": "100"}

    def read(self, size: int | None = -1) -> bytes:
        raise http.client.IncompleteRead(b"", 100)


def test_a_connection_that_ends_midway_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tries: list[str] = []

    def answer(url: str, timeout: float):
        tries.append(url)
        return CutOff()

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(series_module.time, "sleep", lambda seconds: None)
    with pytest.raises(InputError, match="IncompleteRead"):
        download("https://example.org/Tiny.zip", folder=tmp_path)
    assert len(tries) == 4
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


def grouped(groups: dict[str, str]) -> list[Series]:
    """One series per letter: {"p": "AAB"} is a person p with two series of class A and one of B."""
    pairs = [(group, label) for group, labels in groups.items() for label in labels]
    return [Series([[0.0]], label, i, {"group": group}) for i, (group, label) in enumerate(pairs)]


def taken(series: list[Series], size: int, seed: int = 1) -> set[str]:
    chosen = choose_groups(series, size, seed)
    groups = {series[i].meta["group"] for i in chosen}
    assert chosen == {i for i, s in enumerate(series) if s.meta["group"] in groups}  # whole groups
    return groups


def test_groups_are_cut_whole_and_as_near_to_the_size_as_can_be():
    series = grouped({"p": "AABB" * 5, "q": "AB" * 2, "r": "AABB", "s": "ABBB", "t": "AB" * 9})  # 20, 4, 4, 4, 18 rows
    assert taken(series, 20) == {"p"}
    assert taken(series, 23) in ({"p", "q"}, {"p", "r"}, {"p", "s"}, {"t", "q"}, {"t", "r"}, {"t", "s"})  # 24 or 22
    assert taken(series, 1) in ({"q"}, {"r"}, {"s"})  # never none
    assert taken(series, 12) == {"q", "r", "s"}
    assert choose_groups(series, 8, 1) == choose_groups(series, 8, 1)
    assert len({frozenset(taken(series, 8, seed)) for seed in range(20)}) == 3  # every pair of q, r and s


def test_a_cut_by_groups_leaves_some_of_every_class():
    assert taken(grouped({"p": "AAA", "q": "BBB", "r": "B"}), 3) == {"q"}  # p has all of A
    assert taken(grouped({"p": "AAA", "q": "AB", "r": "A", "s": "B"}), 3) == {"q", "r"}  # as near as p, more classes
    with pytest.raises(InputError, match="each holds the last series of a class"):
        choose_groups(grouped({"p": "AAA", "q": "BB"}), 2, 1)


def test_a_group_is_given_to_all_series_or_to_none():
    series = grouped({"p": "AB", "q": "AB"})
    with pytest.raises(InputError, match=r"Series 9 has no meta\['group'\]"):
        choose_groups([*series, Series([[0.0]], "A", 9)], 2, 1)


@pytest.mark.skipif(not COMPUTERS.is_dir(), reason=f"no folder {COMPUTERS}: see CONTRIBUTING.md, Tests")
def test_nearest_neighbour_on_computers_is_right_as_often_as_published():
    import numpy as np

    splits = read_splits(COMPUTERS, "Computers", CLASSES)
    check_splits(splits, {"train": 250, "test": 250}, 720)
    train, test = (np.array([s.values[0] for s in splits[name]]) for name in ("train", "test"))
    # |x - y|^2 = |x|^2 - 2 xy + |y|^2; |x|^2 of the test series does not change which y is nearest.
    nearest = ((train**2).sum(1)[None] - 2 * test @ train.T).argmin(1)
    right = sum(splits["train"][j].label == s.label for j, s in zip(nearest, splits["test"], strict=True))
    assert right == 144  # of 250: 57.6 %, the archive's figure for one nearest neighbour with Euclidean distance
