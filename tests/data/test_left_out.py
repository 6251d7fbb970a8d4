"""No reader drops a record, a row, a class or a file without a word: it is counted, named and explained, or refused."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sources import write_cinc, write_clips, write_emgdb, write_har, write_tfc, write_ts
from timemaster.series.recordings import at_most, find_clips, plan_clips, plan_windows, read_reference
from timemaster.series.splits import Series
from timemaster.tasks import load_task
from timemaster.types import InputError

NAMES = {"N": "normal", "A": "afib"}


def load(name: str, source: Path) -> dict[str, list[Series]]:
    return load_task(f"recipes.{name}").load(source)


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


# ---- PhysioNet


def test_without_a_length_in_the_header_the_data_file_tells_it(tmp_path: Path):
    for name in ("whole", "without"):
        (tmp_path / name).mkdir()
        write_cinc(tmp_path / name)
    for header in (tmp_path / "without").glob("*.hea"):
        first, *rest = header.read_text(encoding="utf-8").splitlines()
        assert first.split()[3] in ("2700", "4800")
        header.write_text("\n".join([" ".join(first.split()[:3]), *rest]) + "\n", encoding="utf-8")
    assert load("ecg", tmp_path / "without") == load("ecg", tmp_path / "whole")
    edit(tmp_path / "without" / "A00001.hea", lambda text: text.replace("A00001 1 300", "A00001 1 300 0", 1))
    with pytest.raises(InputError, match=r"A00001.hea says 0 readings: write their number, or leave the field out"):
        plan_windows(tmp_path / "without" / "A00001", "x", 1500)


def test_records_that_are_too_short_or_not_in_the_index_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_cinc(tmp_path, 40, seconds=(9, 9, 9, 9, 4))  # every fifth; each class has some long ones
    edit(tmp_path / "REFERENCE.csv", lambda text: text.replace("A00002,A\n", "").replace("A00003,O\n", ""))
    splits = load("ecg", tmp_path)
    assert sum(map(len, splits.values())) == 40 - 8 - 2
    assert "8 records left out, shorter than a window of 1500 readings: A00005, A00010, A00015, A00020" in caplog.text
    assert ", and 3 more" in caplog.text
    assert "2 records left out, the index does not list them: A00002, A00003" in caplog.text


def test_a_class_whose_records_are_all_too_short_is_an_error(tmp_path: Path):
    write_cinc(tmp_path, 40, seconds=(9, 9, 9, 4))
    with pytest.raises(InputError, match="No record of noise is left: all are shorter than a window of 1500 readings"):
        load("ecg", tmp_path)
    (tmp_path / "emg").mkdir()
    with pytest.raises(
        InputError, match=r"emg_healthy: the only recording of Healthy is shorter than a window of 1500"
    ):
        load("emg", write_emgdb(tmp_path / "emg", num_windows=0))


def test_records_that_are_there_twice_or_have_more_signals_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    import numpy as np
    import wfdb

    write_cinc(tmp_path, 40)
    (tmp_path / "copy").mkdir()
    for path in tmp_path.glob("A00007.*"):
        shutil.copy(path, tmp_path / "copy")
    two = np.tile(np.linspace(-0.5, 0.5, 2700)[:, None], 2)
    names = ["ECG", "RESP"]
    wfdb.wrsamp("A00007", 300, ["mV", "mV"], names, p_signal=two, fmt=["16", "16"], write_dir=str(tmp_path))
    splits = load("ecg", tmp_path)
    assert "1 records left out, files of the same names are less nested" in caplog.text
    assert f"{tmp_path}/copy/A00007.hea" in caplog.text
    assert f"1 signals of {tmp_path}/A00007 left out, only the first is read: RESP" in caplog.text
    (window,) = [s for part in splits.values() for s in part if s.meta["group"] == "A00007"]
    assert window.values[0][0] == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_index_may_have_a_byte_order_mark_blank_and_repeated_lines(
    encoding: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "REFERENCE.csv"
    path.write_bytes("R1,N\r\n , \r\n\r\nR2, A\r\nR1,N\r\n".encode(encoding))
    assert read_reference(path, NAMES) == {"R1": "normal", "R2": "afib"}
    assert f"1 repeated lines of {path} left out, each name counts once: R1" in caplog.text
    path.write_bytes("R1,N\nR2,N\nR1,A\n".encode(encoding))
    with pytest.raises(InputError, match="R1 is 'normal' in line 1 and 'afib' in line 3"):
        read_reference(path, NAMES)
    path.write_bytes("\n".encode(encoding))
    with pytest.raises(InputError, match="has no rows"):
        read_reference(path, NAMES)


# ---- sound clips


def test_clips_are_counted_against_their_table(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_clips(tmp_path, 12)
    table, clips = tmp_path / "data" / "train.csv", tmp_path / "data" / "train"
    edit(table, lambda text: "\ufeff" + text.replace("train12.aiff,0\n", "train1.aiff,1\n"))
    (tmp_path / "data" / "test").mkdir()
    for name in ("test1.aiff", "test2.AIF", "train3.aiff"):
        shutil.copy(clips / "train3.aiff", tmp_path / "data" / "test" / name)
    (clips / "train4.aiff").unlink()
    planned = plan_clips(table, {"1": "call", "0": "none"})
    assert Counter(s.label for s in planned) == {"call": 3, "none": 8}
    paths = find_clips(tmp_path, planned)
    assert len(paths) == 10
    assert paths["train3.aiff"].parent.name == "test"  # of as near ones, the first by name
    assert "1 repeated lines" in caplog.text
    assert "3 clips left out, the table has no label for them: test1.aiff, test2.AIF, train12.aiff" in caplog.text
    assert f"files of the same names are less nested: {clips}/train3.aiff" in caplog.text
    assert "1 lines of the table left out, their clips are missing: train4.aiff" in caplog.text


def test_a_table_that_contradicts_itself_or_has_other_columns_is_refused(tmp_path: Path):
    table = tmp_path / "train.csv"
    table.write_text("clip_name,label\na.aiff,1\nb.aiff,0\na.aiff,0\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.aiff is 'call' in line 2 and 'none' in line 4"):
        plan_clips(table, {"1": "call", "0": "none"})
    table.write_text("name,label\na.aiff,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"first line is \['name', 'label'\]; expected clip_name and label"):
        plan_clips(table, {"1": "call"})


def test_a_clip_with_two_channels_is_refused(tmp_path: Path):
    import numpy as np
    import soundfile

    write_clips(tmp_path, 40)
    for path in tmp_path.rglob("*.aiff"):
        soundfile.write(path, np.zeros((4000, 2)), 2000, subtype="PCM_16", format="AIFF")
    with pytest.raises(InputError, match=r"in 2 channel\(s\); expected 4000 at 2000 Hz in 1"):
        load("rcw", tmp_path)


# ---- HAR, TF-C


def test_an_empty_line_in_har_shifts_no_window(tmp_path: Path):
    source = write_har(tmp_path, {"train": 24, "test": 12})
    (labels,) = source.rglob("y_test.txt")
    edit(labels, lambda text: text + "\n\n")  # at the end: nothing is shifted
    assert len(load("har", source)["test"]) == 12
    (subjects,) = source.rglob("subject_test.txt")
    edit(subjects, lambda text: "\n" + text)
    with pytest.raises(InputError, match=r"subject_test.txt, line 1: is empty"):
        load("har", source)
    subjects.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"have \[0, 12\] lines"):
        load("har", source)


def test_two_copies_of_har_are_not_mixed_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a", "b"):
        write_har(tmp_path / name, {"train": 24, "test": 12})
    load("har", tmp_path)
    assert "1 copies of UCI HAR left out" in caplog.text
    assert f"{tmp_path}/b/UCI HAR Dataset" in caplog.text


def test_the_files_of_a_tfc_set_are_taken_from_one_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name, num_classes in (("ECG", 4), ("EMG", 3)):
        (tmp_path / name).mkdir()
        write_tfc(tmp_path / name, {"train": 12, "val": 6, "test": 6}, num_classes)
    (tmp_path / "ECG" / "val.pt").unlink()
    splits = load("ecg", tmp_path)
    assert {split: len(series) for split, series in splits.items()} == {"train": 12, "test": 6}  # not EMG's val.pt
    assert f"1 files called train.pt left out, {tmp_path}/ECG/train.pt is read: {tmp_path}/EMG/train.pt" in caplog.text


# ---- all


def test_a_draw_keeps_every_class_and_says_how_many_it_leaves(caplog: pytest.LogCaptureFixture):
    pool = [Series([], "rare" if i == 77 else "common", i) for i in range(200)]
    with caplog.at_level("INFO"):
        drawn = at_most(pool, 10)  # the share of the rare one is 0.05
    assert Counter(s.label for s in drawn) == {"common": 9, "rare": 1}
    assert [s.index for s in drawn] == sorted(s.index for s in drawn)
    assert "10 of 200 series are used" in caplog.text
    with pytest.raises(InputError, match="1 series cannot hold 2 classes: common, rare"):
        at_most(pool, 1)


@pytest.mark.parametrize(("name", "archive", "classes", "length"), [("tee", "Lightning7", "0123456", 319),
    ("ctu", "Computers", "12", 720), ("italy_power", "ItalyPowerDemand", "12", 24)])  # fmt: skip
def test_recipes_take_smaller_copies_with_a_warning(
    name: str, archive: str, classes: str, length: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source = write_ts(tmp_path / "small", archive, {"train": 21, "test": 14}, classes, length)
    splits = load(name, source)
    sizes = {"train": 25, "test": 10} if name == "italy_power" else {"train": 21, "test": 14}  # 35 x 768 / 1096 = 24.53
    assert {split: len(series) for split, series in splits.items()} == sizes
    assert "This is a part of the set, {'train': 21, 'test': 14} series of" in caplog.text
    larger = write_ts(tmp_path / "large", archive, {"train": 300, "test": 14}, classes, length)
    with pytest.raises(InputError, match="has 300 series; the published set has"):
        load(name, larger)
