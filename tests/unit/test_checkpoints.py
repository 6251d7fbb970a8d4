"""A checkpoint, an export or a model's folder is whole, or it is refused: kills, missing and cut files and weights."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MAX_PIXELS, MIN_PIXELS
from tests.helpers import picture
from timemaster.config import Config
from timemaster.evaluate import check_targets, resolve_targets
from timemaster.media.images import load_image
from timemaster.models.folder import load_model_config
from timemaster.models.vision import num_tokens, vision_spec
from timemaster.models.weights import check_weights, stored_shapes, wanted_shapes
from timemaster.run import checkpoints
from timemaster.run.inputs import check_inputs, make_renderer
from timemaster.types import InputError


@pytest.fixture(scope="module")
def saved(tiny: str, process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoint of one real rank."""
    from timemaster.backends.fsdp import FsdpBackend
    from timemaster.backends.state import save_rank

    cfg = Config()
    cfg.model.path, cfg.model.enable_gradient_checkpointing = tiny, False
    cfg.data.min_pixels, cfg.data.max_pixels = MIN_PIXELS, MAX_PIXELS
    run = tmp_path_factory.mktemp("run")
    folder = checkpoints.begin(run, 5, needed_bytes=1)
    files = save_rank(FsdpBackend(cfg, "cpu", 10, with_reference=False), str(folder))
    checkpoints.commit(folder, {"step": 5, "updates_done": 5}, files, keep=1)
    return run


def damaged(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """Each file in turn removed, then two bytes shorter (one may be a line's end), then cut to half, with what was done; whole again afterwards."""
    for path in files:
        content = path.read_bytes()
        for what, size in {"missing": None, "short": len(content) - 2, "cut to half": len(content) // 2}.items():
            if size is None:
                path.unlink()
            else:
                path.write_bytes(content[:size])
            yield path, what
        path.write_bytes(content)


def test_a_checkpoint_with_a_damaged_file_is_neither_resumed_nor_evaluated(saved: Path) -> None:
    cfg, folder = Config(), saved / "global_step_5"
    cfg.eval.checkpoint = ["latest"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"trainer.json", "rng_0.pt", ".metadata", "__0_0.distcp", "model.safetensors"} <= {p.name for p in files}
    for path, what in damaged(files):
        with pytest.raises(InputError, match=rf"global_step_5 is not complete: .*{path.name}"):
            checkpoints.latest(saved)
        with pytest.raises(InputError, match=rf"global_step_5 is not complete: .*{path.name}"):
            resolve_targets(cfg, saved)
        assert checkpoints.checkpoints(saved) == [], (path, what)
    assert checkpoints.latest(saved) == folder
    assert [target.step for target in resolve_targets(cfg, saved)] == [5]


def start(cfg: Config) -> None:
    """What a run reads of its model before it starts Ray."""
    check_inputs(cfg, [])
    make_renderer(cfg)


def test_an_export_with_a_damaged_file_is_no_model(saved: Path, tmp_path: Path) -> None:
    """Where it was written by its checkpoint's list of files; elsewhere by what can be read in it."""
    cfg, there = Config(), saved / "global_step_5" / "huggingface"
    cfg.model.path = str(there)
    for _ in damaged(list(there.iterdir())):
        with pytest.raises(InputError):
            check_inputs(cfg, [])
    copy = tmp_path / "copy"
    shutil.copytree(there, copy)
    cfg.model.path = str(copy)
    check_inputs(cfg, [])
    for path, what in damaged([path for path in copy.iterdir() if path.name != "generation_config.json"]):
        if path.suffix == ".jinja" and what != "missing":
            continue  # a text that no file describes
        with pytest.raises(InputError, match=r"lacks|has no|cut short|cannot be read|chat template"):
            start(cfg)


def split(model: str, folder: Path, change: dict[str, Any]) -> str:
    """A copy of a model in two files with an index; `change`: name -> another tensor, None to leave it out."""
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors") | change
    (folder / "model.safetensors").unlink()
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_torch_state_dict(kept, folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return str(folder)


def test_weights_that_are_missing_too_many_or_of_another_shape_are_named(tiny: str, tmp_path: Path) -> None:
    import torch

    wanted = wanted_shapes(tiny)
    assert wanted == stored_shapes(tiny)
    check_weights(split(tiny, tmp_path / "whole", {}))
    name = "model.layers.1.self_attn.k_proj.weight"  # of a weight that vLLM fuses: it would not miss it
    changes = {
        r"lacks model\.language_model\.layers\.1\.self_attn\.k_proj\.weight\. Copy": {name: None},
        r"unexpected weights: model\.language_model\.layers\.2\.bias": {"model.layers.2.bias": torch.zeros(2)},
        r"unexpected shapes: .*k_proj\.weight \(3, 4\) for \(\d+, \d+\)": {name: torch.zeros(3, 4)},
    }
    for k, (message, change) in enumerate(changes.items()):
        with pytest.raises(InputError, match=message):
            check_weights(split(tiny, tmp_path / str(k), change))


def test_a_missing_shard_is_found_before_anything_is_started(tiny: str, tmp_path: Path) -> None:
    cfg = Config()
    cfg.model.path = split(tiny, tmp_path / "model", {})
    shard = sorted(Path(cfg.model.path).glob("*.safetensors"))[-1]
    cfg.eval.checkpoint = ["base"]
    (target,) = resolve_targets(cfg, tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match=rf"lacks the file {shard.name}, with .*weight"):
        check_inputs(cfg, [])
    Path(cfg.model.path, "model.safetensors.index.json").unlink()  # then the names themselves show it
    with pytest.raises(InputError, match=r"lacks model\.visual\..*weight"):
        check_weights(cfg.model.path)
    other = target.__class__(**{name: getattr(target, name) for name in target.__slots__} | {"model": tiny})
    with pytest.raises(InputError, match=r"lacks .*weight"):
        check_targets([other.model, target.model])


def test_a_trainer_refuses_a_model_that_lacks_a_weight(tiny: str, cfg: Config, process_group, tmp_path: Path) -> None:
    from timemaster.backends.fsdp import FsdpBackend

    cfg.model.path = split(tiny, tmp_path / "model", {"visual.merger.ln_q.weight": None})
    with pytest.raises(InputError, match=r"lacks model\.visual\.merger\.ln_q\.weight"):
        FsdpBackend(cfg, "cpu", 10, with_reference=False)


class Receiver:
    """An engine that takes weights."""

    def __init__(self) -> None:
        self.finished = 0

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        pass

    def finish_weight_update(self) -> None:
        self.finished += 1


def test_an_export_shows_plain_transformers_as_many_tokens_as_the_run(saved: Path) -> None:
    from transformers import AutoImageProcessor, AutoProcessor

    export = str(saved / "global_step_5" / "huggingface")
    spec = vision_spec(load_model_config(export), MIN_PIXELS, MAX_PIXELS)
    pictures = [picture(0, *size) for size in ((580, 230), (1400, 900), (20, 20))]  # shrunk, shrunk, enlarged
    processor = AutoProcessor.from_pretrained(export)
    text = "<|vision_start|><|image_pad|><|vision_end|>" * len(pictures)
    out = processor(text=[text], images=[load_image(one) for one in pictures], return_tensors="pt")
    seen = int((out["input_ids"] == spec.image_token_id).sum())
    assert seen == sum(num_tokens(one, spec) for one in pictures)
    # What vLLM computes the number of tokens from.
    assert dict(AutoImageProcessor.from_pretrained(export).size) == {
        "shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS,
    }  # fmt: skip


def commit_for_ever(run: Path, done: int) -> None:
    """Save step after step, each file with its step as its content; a byte into the pipe `done` for each."""
    names = [f"state/{k}" for k in range(8)] + [f"huggingface/{k}" for k in range(8)] + ["rng_0.pt"]
    step = max((step for step, _ in checkpoints.checkpoints(run)), default=0)
    while True:
        step += 1
        folder = checkpoints.begin(run, step, needed_bytes=1)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"{step:09d}", encoding="utf-8")
        checkpoints.commit(folder, {"step": step}, dict.fromkeys(names, 9), keep=1 + step % 2)
        os.write(done, b".")


def test_fifty_kills_around_commit_and_prune_leave_whole_checkpoints_only(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "_sync", lambda path: None)  # of no use against a kill, and all of the time
    chance, newest = random.Random(1), 0
    ready, done = os.pipe()
    for _ in range(50):
        child = os.fork()
        if child == 0:
            try:
                commit_for_ever(tmp_path, done)
            finally:
                os._exit(1)
        os.read(ready, 1 << 16)
        time.sleep(chance.uniform(0.0, 0.02))  # some steps
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        named = sorted(tmp_path.glob("global_step_*"))
        for folder in named:
            step = int(folder.name.rsplit("_", 1)[1])
            contents = [path.read_text(encoding="utf-8") for path in folder.glob("*/*")]
            assert contents == [f"{step:09d}"] * 16, folder
            assert checkpoints.defects(folder) == []
        latest = checkpoints.latest(tmp_path)
        step = checkpoints.read_state(latest)["step"] if latest else 0
        assert step >= newest
        newest = step
    assert newest >= 50
