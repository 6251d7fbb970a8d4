"""Where Ray starts: folders for its sockets, wrong addresses."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from timemaster.config import Config
from timemaster.types import InputError
from timemaster.workers_start import MAX_TEMP_DIR, start_ray, use_temp_dir_for_sockets


@pytest.fixture(autouse=True)
def _temp_dir_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)


def test_a_short_temp_dir_is_kept_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", f"{short}/new")
        assert len(f"{short}/new") <= MAX_TEMP_DIR
        use_temp_dir_for_sockets()
        assert os.environ["TMPDIR"] == f"{short}/new"
        assert os.path.isdir(f"{short}/new")


@pytest.mark.parametrize("folder", ["/tmp/" + "a" * MAX_TEMP_DIR, "/tmp/" + "日" * 12, "/dev/null/x", "relative"])
def test_tmp_takes_the_place_of_a_folder_that_cannot_hold_sockets(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, folder)
    use_temp_dir_for_sockets()
    assert os.environ["TMPDIR"] == os.environ["RAY_TMPDIR"] == tempfile.gettempdir() == "/tmp"


def test_a_wrong_cluster_address_is_an_error_with_advice() -> None:
    config = Config()
    config.trainer.ray_address = "nonsense"
    with pytest.raises(InputError, match=r"trainer\.ray_address='nonsense'.*ray start --head"):
        start_ray(config)
