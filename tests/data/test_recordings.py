"""The readers of the six tasks' sources, on small files in their formats; and the real recordings, where they are."""

from __future__ import annotations

import gzip
import hashlib
import logging
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED_DATA
from tests.sources import SIX, write_cinc, write_clips, write_emgdb, write_har, write_tfc, write_ts
from timemaster.data.store import read_examples
from timemaster.series import splits as series_module
from timemaster.series.recordings import (
    at_most,
    fetch_physionet,
    fill_clips,
    fill_windows,
    find_clips,
    find_records,
    opened,
    plan_clips,
    plan_windows,
    read_pt,
    read_record,
    read_reference,
    read_uci_har,
    windows,
)
from timemaster.series.splits import Series
from timemaster.tasks import load_task
from timemaster.tasks.prepare import prepare
from timemaster.types import InputError

CODES = {str(code): f"class {code}" for code in range(1, 7)}
CHANNELS = ("body_acc_x", "body_acc_y", "body_acc_z")


def load(name: str, source: Path | None) -> dict[str, list[Series]]:
    return load_task(f"recipes.{name}").load(source)


def sizes(splits: dict[str, list[Series]]) -> dict[str, int]:
    return {split: len(series) for split, series in splits.items()}


@pytest.mark.parametrize("name", SIX)
def test_each_recipe_reads_its_source_and_its_question_fits_the_data(name: str, tmp_path: Path):
    task = load_task(f"recipes.{name}")
    splits = task.load(SIX[name](tmp_path))
    for series in splits.values():
        assert {item.label for item in series} == set(task.labels)
        assert [item.index for item in series] == list(range(len(series)))
        assert {len(item.values) for item in series} == {len(task.plot.channels) or 1}
        assert all(f"{len(item.values[0])} readings" in task.question for item in series)
        texts = [task.explain(item, task) for item in series]  # type: ignore[misc]
        assert len(set(texts)) > len(texts) / 2  # they tell of this series
        assert not any(label.casefold() in text.casefold() for text in texts for label in task.labels)


@pytest.mark.parametrize("name", ["emg", "har", "ecg"])
def test_a_zip_is_read_as_its_folder_is(name: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    SIX[name](tmp_path / "in")
    inner = Path(shutil.make_archive(str(tmp_path / "inner"), "zip", tmp_path / "in"))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:  # UCI's archive holds another one
        outer.write(inner, "UCI HAR Dataset.zip")
    plain = load(name, tmp_path / "in")
    assert load(name, inner) == load(name, tmp_path / "outer.zip") == plain


@pytest.mark.parametrize("name", ["emg", "har", "ecg", "rcw"])
def test_a_folder_that_holds_the_downloaded_zip_is_read_as_the_zip_is(name: str, tmp_path: Path):
    for folder in ("in", "downloads"):
        (tmp_path / folder).mkdir()
    SIX[name](tmp_path / "in")
    plain = load(name, tmp_path / "in")
    shutil.make_archive(str(tmp_path / "downloads" / "UCI HAR Dataset"), "zip", tmp_path / "in")
    assert load(name, tmp_path / "downloads") == plain
    (tmp_path / "in" / "other.zip").write_text("not looked at: the set itself is there", encoding="utf-8")
    assert load(name, tmp_path / "in") == plain


def test_opened_refuses_what_is_neither_folder_nor_zip(tmp_path: Path):
    (tmp_path / "text.zip").write_text("no", encoding="utf-8")
    with pytest.raises(InputError, match="not a zip file, or a damaged one"), opened(tmp_path / "text.zip"):
        pass
    with pytest.raises(InputError, match="No such folder or file"), opened(tmp_path / "nowhere"):
        pass


def test_at_most_keeps_shares_and_draws_the_same_again():
    pool = [Series([], "A" if i % 4 else "B", i) for i in range(40)]
    drawn = at_most(pool, 8)
    assert Counter(s.label for s in drawn) == {"A": 6, "B": 2}
    assert at_most(pool, 8) == drawn
    assert at_most(pool, 40) == pool


# ---- EMG


def test_emg_records_are_cut_by_time_within_each_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    splits = load("emg", write_emgdb(tmp_path, num_windows=10))
    assert sizes(splits) == {"train": 18, "validation": 6, "test": 6}  # of 3 x 10: 6, 2 and 2 of each
    recording = read_record(tmp_path / "emg_myopathy", 4000)
    mine = [s.values[0] for part in ("train", "validation", "test") for s in splits[part] if s.label == "Myopathy"]
    assert [v for window in mine for v in window] == recording[:15000]  # in the order of time, the last 700 dropped
    assert "one recording of one person for each class" in caplog.text


def test_emg_reads_tfc_files_in_the_published_order_of_classes(tmp_path: Path):
    splits = load("emg", write_tfc(tmp_path, {"train": 12, "val": 8, "test": 8}, 3))
    assert sizes(splits) == {"train": 12, "validation": 8, "test": 8}
    assert [s.label for s in splits["train"][:4]] == ["Healthy", "Healthy", "Myopathy", "Neuropathy"]


def test_emg_ts_files_have_the_classes_of_their_numbers(tmp_path: Path):
    splits = load("emg", write_ts(tmp_path, "EMG", {"train": 3, "test": 3}, "012", 1500))
    assert [s.label for s in splits["test"]] == ["Healthy", "Myopathy", "Neuropathy"]


@pytest.mark.parametrize(
    ("recipe", "archive", "classes", "length"),
    [
        ("emg", "NerveDamage", ("Healthy", "Neuropathy", "Myopathy"), 1500),
        ("rcw", "RightWhaleCalls", ("NoWhale", "RightWhale"), 4000),
    ],
)
def test_archive_sets_are_read_by_the_names_of_their_classes(
    recipe: str, archive: str, classes: tuple[str, ...], length: int, tmp_path: Path
):
    sizes_of = {"train": 4, "test": len(classes)}
    named = write_ts(tmp_path / "named", archive, sizes_of, classes, length)
    for source in (named, shutil.make_archive(str(tmp_path / archive), "zip", named)):
        splits = load(recipe, Path(source))
        assert [s.label for s in splits["test"]] == list(classes)
        assert sizes(splits) == sizes_of
    numbered = write_ts(tmp_path / "numbered", archive, sizes_of, "12", length)
    with pytest.raises(InputError, match=f"{archive}_TRAIN.ts: series 0 has class '1'; the recipe knows"):
        load(recipe, numbered)


@pytest.mark.parametrize(
    ("name", "message"), [("emg", "emg_healthy.hea"), ("ecg", "REFERENCE.csv"), ("rcw", "train.csv")]
)
def test_a_folder_without_any_known_file_says_what_is_looked_for(name: str, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        load(name, tmp_path)


def test_windows_do_not_overlap_and_drop_the_rest():
    assert list(windows([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4]]
    assert list(windows([1], 2)) == []


def test_a_record_of_another_rate_or_unit_or_none_is_refused(tmp_path: Path):
    write_emgdb(tmp_path, rate=1000)
    with pytest.raises(InputError, match=r"mV at 1000 Hz; expected mV at 4000"):
        read_record(tmp_path / "emg_healthy", 4000)
    write_emgdb(tmp_path, unit="uV")
    with pytest.raises(InputError, match="uV at 4000 Hz; expected mV"):
        read_record(tmp_path / "emg_healthy", 4000)
    (tmp_path / "emg_healthy.dat").unlink()
    with pytest.raises(InputError, match="not a readable PhysioNet record"):
        read_record(tmp_path / "emg_healthy", 4000)
    with pytest.raises(InputError, match=r"nothing.hea does not exist"):
        read_record(tmp_path / "nothing", 4000)


def test_a_record_with_gaps_is_refused(tmp_path: Path):
    import wfdb

    signal = np.array([[0.1], [np.nan], [0.3], [0.4]])
    wfdb.wrsamp("gap", fs=4000, units=["mV"], sig_name=["EMG"], p_signal=signal, fmt=["16"], write_dir=str(tmp_path))
    with pytest.raises(InputError, match="gaps"):
        read_record(tmp_path / "gap", 4000)


def test_a_header_without_a_unit_means_millivolts(tmp_path: Path):
    write_emgdb(tmp_path)
    header = tmp_path / "emg_healthy.hea"
    first, *rest = header.read_text(encoding="utf-8").splitlines()
    header.write_text("\n".join([first, "emg_healthy.dat 16 6600 16 0 0 0 0 EMG", *rest[1:]]) + "\n", encoding="utf-8")
    values = read_record(tmp_path / "emg_healthy", 4000)
    assert max(values) > 0.1
    assert all(abs(v * 6600 - round(v * 6600)) < 1e-6 for v in values)  # the step that the real windows have


def test_physionet_files_are_compared_with_the_published_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    host = tmp_path / "host" / "emgdb" / "1.0.0"
    host.mkdir(parents=True)
    write_emgdb(host)
    names = sorted(path.name for path in host.iterdir())
    sums = "".join(f"{hashlib.sha256((host / name).read_bytes()).hexdigest()} {name}\n" for name in names)
    (host / "SHA256SUMS.txt").write_text(sums, encoding="utf-8")
    url = (tmp_path / "host").as_uri()
    folder = fetch_physionet("emgdb/1.0.0", names, tmp_path / "a", url)
    assert sizes(load("emg", folder))["train"] == 18
    with pytest.raises(InputError, match=r"does not list other\.dat"):
        fetch_physionet("emgdb/1.0.0", ["other.dat"], tmp_path / "a", url)
    (host / names[0]).write_bytes(b"changed")
    with pytest.raises(InputError, match="sha256"):
        fetch_physionet("emgdb/1.0.0", names, tmp_path / "b", url)


@pytest.mark.parametrize("name", ["emg", "ecg", "har", "tee"])
def test_without_a_network_the_message_says_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(url: str, timeout: float):
        raise OSError("no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(series_module.time, "sleep", lambda seconds: None)
    with pytest.raises(InputError, match="--source DIR"):
        load(name, None)


def test_whales_need_a_login_and_the_message_says_how():
    with pytest.raises(InputError, match=r"whale-detection-challenge requires a login.*--source DIR"):
        load("rcw", None)


# ---- ECG


def test_ecg_is_cut_by_whole_recordings_with_the_shares_of_the_classes(tmp_path: Path):
    splits = load("ecg", write_cinc(tmp_path, 40))
    groups = {split: {s.meta["group"] for s in series} for split, series in splits.items()}
    assert {split: len(found) for split, found in groups.items()} == {"train": 32, "validation": 4, "test": 4}
    assert len(set().union(*groups.values())) == 40
    for series in splits.values():
        by_class = {(s.meta["group"], s.label) for s in series}
        assert set(Counter(label for _, label in by_class).values()) in ({8}, {1})  # as many of each
    assert sum(sizes(splits).values()) == 20 * 1 + 20 * 3  # 9 s hold one window of 5 s, 16 s hold three
    window = next(s for s in splits["train"] if s.meta["start"] == 3000)
    assert window.values[0] == read_record(tmp_path / window.meta["group"], 300)[3000:4500]
    assert max(window.values[0]) < 3  # millivolts, not thousandths


def test_of_several_references_the_longest_is_the_set(tmp_path: Path):
    for name, size in (("sample2017", 12), ("training2017", 40)):
        (tmp_path / name).mkdir()
        write_cinc(tmp_path / name, size)
    assert sum(sizes(load("ecg", tmp_path)).values()) == 80


def test_ecg_reads_the_folders_of_the_online_copy(tmp_path: Path):
    for name in ("flat", "online/training", "online/validation"):
        (tmp_path / name).mkdir(parents=True)
    write_cinc(tmp_path / "flat", 40)
    training = write_cinc(tmp_path / "online" / "training", 40)
    for path in training.glob("A*.*"):  # A00/A00001.hea, A01/A00021.hea, …
        below = training / f"A0{(int(path.stem[1:]) - 1) // 20}"
        below.mkdir(exist_ok=True)
        path.rename(below / path.name)
    write_cinc(tmp_path / "online" / "validation", 12)
    assert load("ecg", tmp_path / "online") == load("ecg", tmp_path / "flat")
    (training / "A00" / "A00003.hea").unlink()
    with pytest.raises(InputError, match=r"1 records are missing: no A00003\.hea"):
        load("ecg", tmp_path / "online")


def test_of_references_as_long_the_choice_does_not_hang_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_cinc(tmp_path / name, 16)
    reference = tmp_path / "two" / "REFERENCE.csv"
    reference.write_text("".join(f"A{i + 1:05d},{'ANO~'[i % 4]}\n" for i in range(16)), encoding="utf-8")
    before, listed = load("ecg", tmp_path), Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(listed(self, pattern))))
    assert load("ecg", tmp_path) == before


def test_ecg_uses_no_more_windows_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipes.ecg.MAX_WINDOWS", {"train": 16, "validation": 4, "test": 4})
    splits = load("ecg", write_cinc(tmp_path, 40, seconds=(16,)))
    assert sizes(splits) == {"train": 16, "validation": 4, "test": 4}
    assert set(Counter(s.label for s in splits["train"]).values()) == {4}
    (tmp_path / "tfc").mkdir()
    assert sizes(load("ecg", write_tfc(tmp_path / "tfc", {"train": 20, "val": 5, "test": 3}, 4))) == {
        "train": 16, "validation": 4, "test": 3,
    }  # fmt: skip


def test_windows_of_a_record_are_filled_in_the_order_they_were_planned(tmp_path: Path):
    records = find_records(write_cinc(tmp_path, 2, seconds=(16,)))
    planned = [w for name in ("A00002", "A00001") for w in plan_windows(records[name], "x", 1500)]
    filled = fill_windows(planned, records, 300, 1500)
    assert [(w.meta, w.values == [read_record(tmp_path / w.meta["group"], 300)[w.meta["start"]:][:1500]])
            for w in filled] == [(w.meta, True) for w in planned]  # fmt: skip


def test_tfc_ecg_warns_of_what_its_files_do_not_say(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    load("ecg", write_tfc(tmp_path, {"train": 20, "test": 10}, 4))
    assert "do not name recordings" in caplog.text
    assert "another order" not in caplog.text
    import torch

    content = torch.load(tmp_path / "train.pt")
    content["labels"] = (content["labels"] + 1) % 4  # now class 1 is the most frequent
    torch.save(content, tmp_path / "train.pt")
    load("ecg", tmp_path)
    assert "most frequent class is 'atrial fibrillation'" in caplog.text


def test_a_reference_with_an_unknown_class_is_refused(tmp_path: Path):
    (tmp_path / "REFERENCE.csv").write_text("A00001,N\nA00002,X\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: 'A00002,X'"):
        read_reference(tmp_path / "REFERENCE.csv", {"N": "normal"})


# ---- .pt


def test_pt_files_hold_tensors_or_arrays_of_either_shape(tmp_path: Path):
    import torch

    names = {0: "a", 1: "b"}
    write_tfc(tmp_path, {"train": 4}, 2, as_numpy=True, length=6)
    arrays = read_pt(tmp_path / "train.pt", names)
    write_tfc(tmp_path, {"train": 4}, 2, length=6)
    assert read_pt(tmp_path / "train.pt", names) == arrays
    content = torch.load(tmp_path / "train.pt")
    torch.save(
        {"samples": content["samples"][:, 0].float(), "labels": content["labels"][:, None]}, tmp_path / "flat.pt"
    )
    flat = read_pt(tmp_path / "flat.pt", names)
    assert [s.label for s in flat] == [s.label for s in arrays]
    assert flat[3].values[0] == pytest.approx(arrays[3].values[0], abs=1e-6)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_pt_files_that_cannot_be_used_are_refused_and_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import torch

    path, samples = tmp_path / "x.pt", torch.zeros(2, 1, 4)
    for content, message in (
        ({"samples": samples, "labels": torch.tensor([0])}, r"samples \(2, 1, 4\) and 1 labels"),
        (
            {"samples": torch.zeros(2, 3, 4), "labels": torch.tensor([0, 1])},
            r"\(2, 3, 4\) .* expected \[N, 1, length\]",
        ),
        ({"samples": samples, "labels": torch.tensor([0, 7])}, r"classes \[7\]"),
        ({"samples": samples * float("nan"), "labels": torch.tensor([0, 1])}, "not finite"),
        ({"data": samples}, "not a .pt dictionary"),
        ({"samples": samples, "labels": torch.tensor([0, 1]), "more": Evil()}, "not a .pt dictionary"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            read_pt(path, {0: "a", 1: "b"})
    assert "run" not in capsys.readouterr().out
    path.write_text("text", encoding="utf-8")
    with pytest.raises(InputError, match=r"not a \.pt dictionary"):
        read_pt(path, {0: "a"})


# ---- HAR


def test_har_layouts_give_the_same_series(tmp_path: Path):
    for original in (True, False):
        write_har(tmp_path / str(original), {"train": 24, "test": 12}, original=original)
    original, gzipped = (load("har", tmp_path / str(kind)) for kind in (True, False))
    assert original == gzipped
    assert [s.label for s in original["train"]][::4] == list(load_task("recipes.har").labels)
    assert len(original["train"][0].values) == 3


def test_har_validation_is_cut_by_volunteers_where_they_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = write_har(tmp_path / "known", {"train": 96, "test": 24})
    folder = prepare(load_task("recipes.har"), source, tmp_path, num_workers=1, plot="small")
    assert folder.name == "har_small"
    volunteers = {
        name: {e.extra["index"] // 24 for e in read_examples([str(folder / f"{name}.parquet")])[0]}
        for name in ("train", "validation")
    }
    assert len(volunteers["train"]) == 3  # of four with 24 windows each
    assert not volunteers["train"] & volunteers["validation"]
    assert "the volunteers are unknown" not in caplog.text
    load("har", write_har(tmp_path / "unknown", {"train": 24, "test": 12}, subjects=False))
    assert "the volunteers are unknown" in caplog.text


def test_har_says_why_tfcs_file_is_not_read(tmp_path: Path):
    write_tfc(tmp_path, {"train": 4, "test": 4}, 2, length=128)
    with pytest.raises(InputError, match=r"nine channels have no names.*Give the folder or zip of UCI HAR"):
        load("har", tmp_path)
    write_har(tmp_path, {"train": 24, "test": 12})
    assert sizes(load("har", tmp_path)) == {"train": 24, "test": 12}


def test_har_of_another_size_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    load("har", write_har(tmp_path, {"train": 24, "test": 12}))
    assert "a part of the set" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("y_train.txt", "1\n2\n", r"have \[2, 24\] lines"),
        ("y_train.txt", "9\n" * 24, r"line 1: class '9'"),
        ("body_acc_y_train.txt.gz", "", "no body_acc_y_train.txt"),
        ("body_acc_y_train.txt.gz", "0.1 x\n" * 24, "body_acc_y_train.txt, line 1"),
        ("body_acc_y_train.txt.gz", "0.1 nan\n" * 24, "missing values"),
    ],
)
def test_broken_har_folders_are_named(name: str, text: str, message: str, tmp_path: Path):
    write_har(tmp_path, {"train": 24, "test": 12}, original=False)
    path = tmp_path / "train" / name
    if not text:
        path.unlink()
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with pytest.raises(InputError, match=message):
        read_uci_har(tmp_path, CHANNELS, CODES)


def test_a_har_file_that_is_cut_off_is_named(tmp_path: Path):
    write_har(tmp_path, {"train": 24, "test": 12}, original=False)
    path = tmp_path / "train" / "body_acc_x_train.txt.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"body_acc_x_train.txt.gz: not readable"):
        read_uci_har(tmp_path, CHANNELS, CODES)
    with pytest.raises(InputError, match=r"no train/y_train.txt"):
        read_uci_har(tmp_path / "test", CHANNELS, CODES)


# ---- RCW


def test_whale_labels_are_named_not_numbered(tmp_path: Path):
    splits = load("rcw", write_clips(tmp_path))
    assert sizes(splits) == {"train": 32, "validation": 4, "test": 4}
    clips = {s.meta["clip"]: s.label for series in splits.values() for s in series}
    assert len(clips) == 40
    assert clips["train1.aiff"] == "RightWhale"  # label 1 in train.csv
    assert clips["train2.aiff"] == "NoWhale"
    assert Counter(s.label for s in splits["test"]) == {"NoWhale": 3, "RightWhale": 1}
    assert all(abs(v) < 1 for v in splits["test"][0].values[0])


def test_only_the_clips_that_are_used_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipes.rcw.NUM_CLIPS", 20)
    write_clips(tmp_path)
    splits = load("rcw", tmp_path)
    assert sizes(splits) == {"train": 16, "validation": 2, "test": 2}
    used = {s.meta["clip"] for series in splits.values() for s in series}
    for path in (tmp_path / "data" / "train").iterdir():
        if path.name not in used:
            path.unlink()
    assert load("rcw", tmp_path) == splits


def test_broken_clips_and_tables_are_named(tmp_path: Path):
    write_clips(tmp_path, 4, rate=1000)
    table = tmp_path / "data" / "train.csv"
    planned = plan_clips(table, {"0": "n", "1": "y"})
    paths = find_clips(tmp_path, planned)
    with pytest.raises(InputError, match=r"4000 readings at 1000 Hz in 1 .* expected 4000 at 2000"):
        fill_clips(planned, paths, 2000, 4000)
    with pytest.raises(InputError, match="expected 3000 at 1000"):
        fill_clips(planned, paths, 1000, 3000)
    clip = tmp_path / "data" / "train" / "train1.aiff"
    clip.write_text("no", encoding="utf-8")
    with pytest.raises(InputError, match="not a readable sound file"):
        fill_clips(planned, paths, 1000, 4000)
    clip.unlink()
    with pytest.raises(InputError, match=r"No clip 'train1.aiff'"):
        fill_clips(planned, find_clips(tmp_path, planned), 1000, 4000)
    with pytest.raises(InputError, match=r"line 2: clip_name 'train1.aiff', label '1'"):
        plan_clips(table, {"0": "n"})


# ---- real recordings


@pytest.mark.skipif(not (SHARED_DATA / "EMG").is_dir(), reason="no folder EMG: see CONTRIBUTING.md, Tests")
def test_the_real_emg_windows_and_the_size_of_their_units():
    splits = load("emg", SHARED_DATA / "EMG")
    assert sizes(splits) == {"train": 122, "test": 41}
    assert Counter(s.label for s in splits["train"]) == {"Healthy": 21, "Myopathy": 43, "Neuropathy": 58}
    spread = {label: np.median([np.ptp(s.values) for s in splits["train"] if s.label == label])
              for label in ("Healthy", "Myopathy", "Neuropathy")}  # fmt: skip
    assert spread["Neuropathy"] > 2 * spread["Myopathy"] > 2 * spread["Healthy"]  # large units are neuropathy's
    values, decimals = {v for s in splits["test"] for v in s.values[0]}, load_task("recipes.emg").decimals
    assert len({round(v, decimals) for v in values}) == len(values)  # written as numbers, readings stay apart


@pytest.mark.skipif(
    not (SHARED_DATA / "UCI_HAR_subset").is_dir(), reason="no UCI_HAR_subset: see CONTRIBUTING.md, Tests"
)
def test_the_real_har_windows(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        splits = load("har", SHARED_DATA / "UCI_HAR_subset")
    assert sizes(splits) == {"train": 2400, "test": 950}
    still = {label: np.median([np.std(s.values) for s in splits["train"] if s.label == label])
             for label in load_task("recipes.har").labels}  # fmt: skip
    assert max(still[k] for k in ("sitting", "standing", "laying")) < 0.1 * min(
        still[k] for k in ("walking", "walking_upstairs", "walking_downstairs")
    )
    assert "a part of the set" in caplog.text
