"""Where Ray starts: folders for its sockets and token, wrong addresses."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

import pytest

from timemaster.config import Config
from timemaster.types import InputError
from timemaster.workers.placement import MAX_TEMP_DIR, prepare_for_ray, start_ray


@pytest.fixture(autouse=True)
def _temp_dir_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # to be put back as it was
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)


def test_a_short_temp_dir_is_kept_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", f"{short}/new")
        assert len(f"{short}/new") <= MAX_TEMP_DIR
        prepare_for_ray()
        assert os.environ["TMPDIR"] == f"{short}/new"
        assert os.path.isdir(f"{short}/new")


@pytest.mark.parametrize("folder", ["/tmp/" + "a" * MAX_TEMP_DIR, "/tmp/" + "日" * 12, "/dev/null/x", "relative"])
def test_tmp_takes_the_place_of_a_folder_that_cannot_hold_sockets(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, folder)
    prepare_for_ray()
    assert os.environ["TMPDIR"] == os.environ["RAY_TMPDIR"] == tempfile.gettempdir() == "/tmp"


def test_a_home_that_cannot_be_written_gives_way_to_a_token_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_for_ray()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/dev/null/none")
    prepare_for_ray()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    prepare_for_ray()
    assert os.environ["RAY_AUTH_TOKEN"] == token


@pytest.mark.parametrize(("folder", "fine"), [("it's", False), ("a\\b", False), ("it's mine", True), ('a"$b', True)])
def test_a_project_that_ray_cannot_start_from_is_refused(
    folder: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", f"/home/{folder}/.venv/bin/python")
    if fine:
        prepare_for_ray()
    else:
        with pytest.raises(InputError, match="Move the project"):
            prepare_for_ray()


def test_a_wrong_cluster_address_is_an_error_with_advice() -> None:
    config = Config()
    config.trainer.ray_address = "nonsense"
    with pytest.raises(InputError, match=r"trainer\.ray_address='nonsense'.*ray start --head"):
        start_ray(config)


def test_a_model_whose_path_is_a_glob_pattern_is_given_to_vllm_by_a_link(tmp_path: Path) -> None:
    from timemaster.rollout.vllm import without_wildcards

    for name in ("[x]", "a*b", "what?"):
        model, links = tmp_path / name, tmp_path / f"links_of_{len(name)}_{ord(name[0])}"
        model.mkdir()
        links.mkdir()
        (model / "model.safetensors").touch()
        link = without_wildcards(str(model), str(links))
        assert [os.path.samefile(path, model / "model.safetensors") for path in glob.glob(f"{link}/*")] == [True]
    plain = tmp_path / "a b=1,(ü)#'日"
    plain.mkdir()
    for path in (str(plain), "Qwen/Qwen2.5-VL-3B-Instruct"):
        assert without_wildcards(path, str(tmp_path)) == path
