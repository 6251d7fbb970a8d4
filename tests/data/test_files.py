"""Files as people have them: encodings, variants of .ts and .arff, odd zips, disks that cannot be written."""

from __future__ import annotations

import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from timemaster.series.files import text_of, unpacked
from timemaster.series.splits import Series, download, read_series, read_splits
from timemaster.types import InputError

CLASSES = {"Desktop": "Desktop", "Laptop": "Laptop"}
TINY = [Series([[0.5, -1.0, 2.0]], "Desktop", 0), Series([[1.5, 0.25, -2.0]], "Laptop", 1)]
HEAD = "@problemName Tiny\n@timeStamps false\n@missing false\n@univariate true\n@classLabel true Desktop Laptop\n"
ROWS = "0.5,-1.0,2.0:Desktop\n1.5,0.25,-2.0:Laptop\n"
TS = f"{HEAD}@data\n{ROWS}"
ARFF_HEAD = "@relation Tiny\n" + "".join(f"@attribute a{i} numeric\n" for i in (1, 2, 3))
ARFF_ROWS = "0.5,-1.0,2.0,Desktop\n1.5,0.25,-2.0,Laptop\n"
ARFF = f"{ARFF_HEAD}@attribute target {{Desktop,Laptop}}\n@data\n{ARFF_ROWS}"
TIMED = HEAD.replace("timeStamps false", "timeStamps true") + "@data\n"
RELATIONAL = (
    "@relation Tiny\n@attribute both relational\n@attribute a1 numeric\n@attribute a2 numeric\n@end both\n"
    "@attribute target {Desktop,Laptop}\n@data\n"
)


def read(folder: Path, suffix: str, content: str | bytes, classes: dict[str, str] = CLASSES) -> list[Series]:
    path = folder / f"Tiny_TRAIN{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_series(path, classes)


SAME = {
    "comments among the data, with blank lines": (".ts", TS.replace("1.5", "# a note, of 1:2\n\n% and another\n1.5")),
    "a comment in another encoding": (".ts", b"# Caf\xe9\n" + TS.encode()),
    "byte-order mark": (".ts", b"\xef\xbb\xbf" + TS.encode()),
    "UTF-16": (".ts", TS.encode("utf-16")),
    "Windows line ends": (".ts", TS.replace("\n", "\r\n")),
    "tags in capitals, with tabs and blanks": (".ts", f"{HEAD.upper()}@DATA  \n{ROWS}".replace(" TRUE", "\t TRUE ")),
    "blanks before the data": (".ts", TS.replace("@data", "  @Data \t")),
    "quoted classes": (".ts", TS.replace(":Desktop", ":'Desktop'").replace(":Laptop", ' : "Laptop"')),
    "even timestamps": (".ts", f"{TIMED}(0,0.5),(2,-1.0),(4,2.0):Desktop\n(6,1.5),(8,0.25),(10,-2.0):Laptop\n"),
    "even dates": (
        ".ts",
        f"{TIMED}(2020-01-01 00:00:00,0.5),(2020-01-01 00:10:00,-1.0),(2020-01-01 00:20:00,2.0):Desktop\n"
        "(2020-02-01 01:00:00,1.5),(2020-02-01 01:10:00,0.25),(2020-02-01 01:20:00,-2.0):Laptop\n",
    ),
    "ARFF comments among the data": (".arff", ARFF.replace("1.5", "% a note with @data and, commas\n\n1.5")),
    "a comment in ARFF's head that speaks of @data": (".arff", f"% see @data below\n{ARFF}"),
    "ARFF with a byte-order mark": (".arff", b"\xef\xbb\xbf" + ARFF.encode()),
    "ARFF with Windows line ends": (".arff", ARFF.replace("\n", "\r\n")),
    "ARFF in capitals": (".arff", ARFF.replace("@", "@").replace("attribute", "ATTRIBUTE").replace("data", "DATA ")),
    "ARFF with quoted classes": (".arff", f"{ARFF_HEAD}@attribute t {{'Desktop','Laptop'}}\n@data\n"
        + ARFF_ROWS.replace("Desktop", "'Desktop'").replace("Laptop", ' "Laptop"')),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_variants_of_a_file_give_the_same_series(name: str, tmp_path: Path):
    suffix, content = SAME[name]
    assert read(tmp_path, suffix, content) == TINY


def test_classes_keep_their_spelling_and_what_else_is_in_quotes(tmp_path: Path):
    names = {"a": "lower", "A": "upper", "it's, a: class?": "odd"}
    assert [s.label for s in read(tmp_path, ".ts", f"{HEAD}@data\n1:a\n2:A\n", names)] == ["lower", "upper"]
    rows = "1,2,3,a\n4,5,6,A\n7,8,9,'it\\'s, a: class?'\n"
    labels = [s.label for s in read(tmp_path, ".arff", f"{ARFF_HEAD}@attribute t string\n@data\n{rows}", names)]
    assert labels == ["lower", "upper", "odd"]


def test_several_channels_of_arff_are_read_with_either_quote(tmp_path: Path):
    rows = "'0.5,-1\\n2,3',Desktop\n% between\n\"1.5,4\\n5,6\" , 'Laptop'\n"
    assert read(tmp_path, ".arff", RELATIONAL + rows) == [
        Series([[0.5, -1.0], [2.0, 3.0]], "Desktop", 0), Series([[1.5, 4.0], [5.0, 6.0]], "Laptop", 1),
    ]  # fmt: skip


def test_series_of_several_lengths_are_read_whole(tmp_path: Path):
    lengths = [len(s.values[0]) for s in read(tmp_path, ".ts", f"{HEAD}@data\n1,2:Desktop\n1,2,3,4:Laptop\n")]
    assert lengths == [2, 4]


REFUSED = {
    "a row without a class": (".ts", f"{TS}1.0,2.0,3.0\n", r"line 9: no class at its end"),
    "timed row without a class": (".ts", f"{TIMED}(0,1),(1,2):Desktop\n(0,1),(1,2)\n", "line 8: no class at its end"),
    "no classes": (".ts", f"{HEAD.replace('true Desktop Laptop', 'false')}@data\n1,2:3,4\n", "have no classes"),
    "values to predict": (".ts", f"{HEAD.replace('classLabel', 'targetLabel')}@data\n1,2:0.5\n", "have no classes"),
    "data before @data": (".ts", f"{HEAD}1,2,3:Desktop\n@data\n{ROWS}", "line 6: '1,2,3:Desktop' stands before @data"),
    "two files in one": (".ts", TS + TS, "line 9: '@problemName Tiny' is a tag after @data"),
    "nothing after @data": (".ts", f"{HEAD}@data\n# nothing\n", "no series after @data"),
    "no @data": (".ts", HEAD, "no line @data"),
    "empty channel": (".ts", f"{HEAD}@data\n1,2::Desktop\n", "series 0 has a channel without readings"),
    "missing value": (".ts", TS.replace("0.25", "?"), "series 1 has missing values"),
    "a number too large": (".ts", TS.replace("0.25", "1e999"), "series 1 has missing values"),
    "uneven timestamps": (".ts", f"{TIMED}(0,1),(1,2),(5,3):Desktop\n", r"not evenly spaced in time \(1 to 4\)"),
    "two sampling rates": (".ts", f"{TIMED}(0,1),(1,2):Desktop\n(0,1),(2,2):Laptop\n", "not evenly spaced in time"),
    "times that go back": (".ts", f"{TIMED}(2,1),(1,2),(0,3):Desktop\n", "timestamps do not increase"),
    "channels at other times": (".ts", f"{TIMED}(0,1),(1,2):(5,1),(6,2):Desktop\n", "readings at different times"),
    "a class in another encoding": (".ts", TS.encode().replace(b":Laptop", b":L\xe4ptop"), "line 8: neither UTF-8"),
    "a class that the recipe does not know": (".arff", ARFF.replace("2.0,Laptop", "2.0,'Lap top'"), "class 'Lap top'"),
    "a missing class": (".arff", ARFF.replace("-2.0,Laptop", "-2.0,?"), "series 1 has class '?'"),
    "sparse rows": (".arff", ARFF.replace(ARFF_ROWS, "{0 0.5, 3 Laptop}\n"), "Sparse rows"),
    "the class first": (".arff", f"@relation t\n@attribute t {{A,B}}\n{ARFF_HEAD[15:]}@data\nA,1,2,3\n", r"\[1\] of 4"),
    "a row too short": (".arff", ARFF.replace("0.25,", ""), "line 8: 2 values and a class; the header has 4"),
    "a text among the values": (".arff", ARFF.replace("0.25", "x"), "not a readable .arff file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_right_is_refused_in_words(name: str, tmp_path: Path):
    suffix, content, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        read(tmp_path, suffix, content)


def test_text_is_utf8_or_utf16_with_a_mark_and_anything_else_is_named(tmp_path: Path):
    path = tmp_path / "index.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("Ä,N\n".encode(encoding))
        assert text_of(path) == "Ä,N\n"
    path.write_bytes("Ä,N\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"index.csv: neither UTF-8 nor UTF-16 .* iconv"):
        text_of(path)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        text_of(tmp_path)


# ---- zips


def write_zip(path: Path, files: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


GOOD = {"Tiny_TRAIN.ts": TS, "Tiny_TEST.ts": TS}


@pytest.mark.parametrize("layout", ["macOS", "Windows", "deep", "nested", "nested twice", "capitals"])
def test_zips_of_every_layout_are_read(layout: str, tmp_path: Path):
    files: dict[str, str | bytes] = dict(GOOD)
    if layout == "macOS":
        files = {f"Tiny/{name}": text for name, text in GOOD.items()}
        files |= {f"__MACOSX/Tiny/._{name}": b"\x00\x05" for name in GOOD} | {"Tiny/.DS_Store": b"\x00"}
        files |= {f"__MACOSX/{name}": "junk" for name in GOOD}
    if layout in ("Windows", "deep"):
        mark = "\\" if layout == "Windows" else "/"
        files = {f"a{mark}b{mark}c{mark}{name}": text for name, text in GOOD.items()}
    for _ in range(layout.count("nested") + layout.count("twice")):
        files = {"Tiny.zip": write_zip(tmp_path / "inner.zip", files).read_bytes()}
    source = write_zip(tmp_path / ("Tiny.ZIP" if layout == "capitals" else "outer.zip"), files)
    assert read_splits(source, "Tiny", CLASSES) == {"train": TINY, "test": TINY}


def encrypted(path: Path) -> Path:
    """A zip whose entries say that they are encrypted, in both of their headers."""
    data = bytearray(write_zip(path, GOOD).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    return path


def with_method(path: Path, method: int) -> Path:
    data = bytearray(write_zip(path, {"Tiny_TRAIN.ts": TS}).read_bytes())
    struct.pack_into("<H", data, data.find(b"PK\x03\x04") + 8, method)
    struct.pack_into("<H", data, data.find(b"PK\x01\x02") + 10, method)
    path.write_bytes(data)
    return path


def cut(path: Path, change: slice) -> Path:
    """A zip with zeros in the place of some of its bytes, or without its end."""
    data = bytearray(write_zip(path, GOOD).read_bytes())
    path.write_bytes(data[change] if change.start is None else data[: change.start] + b"\0" * 20 + data[change.stop :])
    return path


ODD_ZIPS = {
    "encrypted": (encrypted, "is encrypted. Unpack it with its password"),
    "truncated": (lambda p: cut(p, slice(None, -30)), "damaged one .* download it again"),
    "damaged inside": (lambda p: cut(p, slice(60, 80)), "damaged one .* download it again"),
    "packed in an unknown way": (lambda p: with_method(p, 9), "which Python cannot unpack. Unpack it and give the"),
    "empty": (lambda p: write_zip(p, {}), "is an empty zip file"),
    "only what macOS adds": (lambda p: write_zip(p, {"__MACOSX/._x": "x", ".DS_Store": "x"}), "is an empty zip file"),
    "paths upwards": (lambda p: write_zip(p, {"../../x.ts": TS, **GOOD}), r"contains the path '../../x.ts', outside its"),
    "paths upwards, Windows": (lambda p: write_zip(p, {"a\\..\\..\\x.ts": TS}), r"contains the path 'a/../../x.ts'"),
    "absolute paths": (lambda p: write_zip(p, {"/etc/x.ts": TS}), r"contains the path '/etc/x.ts'"),
    "another archive": (lambda p: p.write_bytes(b"\x1f\x8b\x08\x00") and p, "unpack other types of archives"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_ZIPS)
def test_odd_zips_are_refused_with_advice_and_write_nothing_outside(name: str, tmp_path: Path):
    make, message = ODD_ZIPS[name]
    (tmp_path / "in").mkdir()
    archive = make(tmp_path / "in" / "Tiny.zip")
    with pytest.raises(InputError, match=message) as refused, unpacked([archive]):
        pass
    assert "Tiny.zip" in str(refused.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "Tiny.zip"]


def test_zips_within_zips_have_an_end_and_do_not_overwrite_each_other(tmp_path: Path):
    files: dict[str, str | bytes] = dict(GOOD)
    for _ in range(4):
        files = {"Tiny.zip": write_zip(tmp_path / "inner.zip", files).read_bytes()}
    with (
        pytest.raises(InputError, match="zip files in zip files"),
        unpacked([write_zip(tmp_path / "outer.zip", files)]),
    ):
        pass
    inner = {f"{name}.zip": write_zip(tmp_path / "x.zip", {"same.txt": name}).read_bytes() for name in "ab"}
    with unpacked([write_zip(tmp_path / "outer.zip", inner)]) as folder:
        assert sorted(path.read_text(encoding="utf-8") for path in folder.rglob("same.txt")) == ["a", "b"]


def test_a_name_that_a_zip_holds_twice_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    archive = write_zip(tmp_path / "Tiny.zip", {"Tiny_TRAIN.ts": "old"})
    with zipfile.ZipFile(archive, "a") as file, warnings.catch_warnings(action="ignore"):
        for name, text in GOOD.items():
            file.writestr(name, text)
    assert read_splits(tmp_path, "Tiny", CLASSES)["train"] == TINY
    assert "contains 1 files twice or more; the last one is used: Tiny_TRAIN.ts" in caplog.text


def test_of_several_files_of_a_name_the_nearest_is_read_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for folder in (tmp_path, tmp_path / "old"):
        folder.mkdir(exist_ok=True)
        for name in GOOD:
            (folder / name).write_text(TS if folder == tmp_path else "old", encoding="utf-8")
    assert read_splits(tmp_path, "Tiny", CLASSES) == {"train": TINY, "test": TINY}
    assert f"1 files called Tiny_TRAIN.ts left out, {tmp_path / 'Tiny_TRAIN.ts'} is read: " in caplog.text


# ---- disks that cannot be written: /dev/full is one that is full


def test_a_full_disk_ends_a_download_at_once_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "Tiny.ts"
    source.write_text(TS * 100, encoding="utf-8")
    real, pauses = Path.open, list[float]()
    monkeypatch.setattr(
        Path, "open", lambda path, *a, **k: real(Path("/dev/full") if path.name.endswith(".tmp") else path, *a, **k)
    )
    monkeypatch.setattr("timemaster.series.splits.time.sleep", pauses.append)
    with pytest.raises(InputError, match=r"downloads cannot be written: No space left.* give its folder: --source DIR"):
        download(source.as_uri(), folder=tmp_path / "downloads")
    assert pauses == []  # a full disk is not the network


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()  # no folder can be made in it, whoever the user is
    with pytest.raises(InputError, match=r"file/downloads cannot be written: Not a directory.* --source DIR"):
        download((tmp_path / "x").as_uri(), folder=tmp_path / "file" / "downloads")
    archive = write_zip(tmp_path / "Tiny.zip", GOOD)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"temporary files cannot be written: No such file .*TMPDIR=DIR"):
        read_splits(archive, "Tiny", CLASSES)
