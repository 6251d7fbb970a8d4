"""Small made-up recordings in the exact file formats of the six tasks' sources."""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

HAR_CHANNELS = ("body_acc_x", "body_acc_y", "body_acc_z")


def wave(kind: int, length: int, rng: random.Random) -> list[float]:
    """Noise with a sine; the larger `kind`, the faster."""
    phase = rng.random()
    return [
        round(math.sin(2 * math.pi * (phase + 3 * (kind + 1) * i / length)) + rng.gauss(0, 0.3), 4)
        for i in range(length)
    ]


def write_ts(folder: Path, name: str, sizes: dict[str, int], classes: Sequence[str], length: int) -> Path:
    """`<name>_TRAIN.ts` and `<name>_TEST.ts` as the UCR/UEA archive has them; classes take turns."""
    folder.mkdir(exist_ok=True)
    for split, size in sizes.items():
        rng = random.Random(f"{name} {split}")
        head = f"@problemName {name}\n@timeStamps false\n@missing false\n@univariate true\n@equalLength true\n"
        head += f"@seriesLength {length}\n@classLabel true {' '.join(classes)}\n@data\n"
        kinds = [i % len(classes) for i in range(size)]
        lines = [f"{','.join(map(str, wave(kind, length, rng)))}:{classes[kind]}\n" for kind in kinds]
        (folder / f"{name}_{split.upper()}.ts").write_text(head + "".join(lines), encoding="utf-8")
    return folder


def write_emgdb(folder: Path, num_windows: int = 10, rate: int = 4000, unit: str = "mV") -> Path:
    """The three records of PhysioNet's emgdb, of `num_windows` windows of 1500 readings each and some more."""
    import wfdb

    for kind, name in enumerate(("emg_healthy", "emg_myopathy", "emg_neuropathy")):
        signal = np.array(wave(kind, 1500 * num_windows + 700, random.Random(name)))[:, None] * 0.1
        wfdb.wrsamp(
            name, fs=rate, units=[unit], sig_name=["EMG"], p_signal=signal, fmt=["16"], write_dir=str(folder)
        )  # fmt: skip
    return folder


def write_cinc(folder: Path, num_records: int = 40, seconds: Sequence[int] = (9, 16)) -> Path:
    """Records of the CinC Challenge 2017: MATLAB files of version 4 with a header each, and REFERENCE.csv."""
    from scipy.io import savemat

    lines = []
    for i in range(num_records):
        name, size = f"A{i + 1:05d}", 300 * seconds[i % len(seconds)]
        signal = np.array([1000 * np.array(wave(i % 4, size, random.Random(name)))]).astype("<i2")
        savemat(folder / f"{name}.mat", {"val": signal}, format="4")
        header = f"{name} 1 300 {size} 05:05:15 1/05/2000 \n{name}.mat 16+24 1000/mV 16 0 {signal[0, 0]} 0 0 ECG \n"
        (folder / f"{name}.hea").write_text(header, encoding="utf-8")
        lines.append(f"{name},{'NAO~'[i % 4]}\n")
    (folder / "REFERENCE.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def write_tfc(
    folder: Path, sizes: dict[str, int], num_classes: int, as_numpy: bool = False, length: int = 1500
) -> Path:
    """train.pt, val.pt and test.pt as TF-C has them; class 0 is twice as frequent as the others."""
    import torch

    for split, size in sizes.items():
        rng = random.Random(split)
        kinds = [max(0, i % (num_classes + 1) - 1) for i in range(size)]
        samples = np.array([[wave(kind, length, rng)] for kind in kinds])
        content = {"samples": samples, "labels": np.array(kinds)}
        torch.save(
            content if as_numpy else {k: torch.from_numpy(v) for k, v in content.items()}, folder / f"{split}.pt"
        )
    return folder


def write_har(folder: Path, sizes: dict[str, int], subjects: bool = True, original: bool = True) -> Path:
    """UCI HAR: `original` in 'UCI HAR Dataset/train/Inertial Signals/' as text, else gzipped in 'train/'."""
    for split, size in sizes.items():
        rng = random.Random(split)
        top = folder / "UCI HAR Dataset" / split if original else folder / split
        signals = top / "Inertial Signals" if original else top
        signals.mkdir(parents=True)
        codes = [i // 4 % 6 + 1 for i in range(size)]  # four windows in a row, as a recording gives them
        (top / f"y_{split}.txt").write_text("".join(f"{code}\n" for code in codes), encoding="utf-8")
        if subjects:
            shift = 0 if split == "train" else 100
            (top / f"subject_{split}.txt").write_text(
                "".join(f"{i // 24 + 1 + shift}\n" for i in range(size)), encoding="utf-8"
            )
        for name in HAR_CHANNELS:
            lines = [" ".join(f" {v: .7e}" for v in wave(code, 128, rng)) + "\n" for code in codes]
            path = signals / f"{name}_{split}.txt"
            if original:
                path.write_text("".join(lines), encoding="utf-8")
            else:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress("".join(lines).encode()))
    return folder


def write_clips(folder: Path, num_clips: int = 40, rate: int = 2000, length: int = 4000) -> Path:
    """Kaggle's whale clips: data/train.csv and data/train/train<N>.aiff; every fourth has a call."""
    import soundfile

    clips = folder / "data" / "train"
    clips.mkdir(parents=True)
    lines = ["clip_name,label\n"]
    for i in range(num_clips):
        call = int(i % 4 == 0)
        values = np.array(wave(40 * (1 + call), length, random.Random(i))) * 0.1
        soundfile.write(clips / f"train{i + 1}.aiff", values, rate, subtype="PCM_16", format="AIFF")
        lines.append(f"train{i + 1}.aiff,{call}\n")
    (folder / "data" / "train.csv").write_text("".join(lines), encoding="utf-8")
    return folder


# Recipe -> writes a source of it into a folder.
SIX: dict[str, Callable[[Path], Path]] = {
    "ctu": lambda folder: write_ts(folder, "Computers", {"train": 250, "test": 250}, "12", 720),
    "ecg": write_cinc,
    "emg": lambda folder: write_ts(folder, "EMG", {"train": 30, "test": 12}, "012", 1500),
    "har": lambda folder: write_har(folder, {"train": 96, "test": 48}),
    "rcw": write_clips,
    "tee": lambda folder: write_ts(folder, "Lightning7", {"train": 70, "test": 73}, "0123456", 319),
}
