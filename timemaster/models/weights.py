"""The weights of a Hugging Face folder of Qwen2.5-VL: their names, and whether all of them are there.

transformers only warns when a weight is missing and goes on with random numbers; vLLM does not see that a part of a
fused weight is missing. Here a folder is whole, or it is an InputError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timemaster.models.folder import load_model_config
from timemaster.types import InputError

Shapes = dict[str, tuple[int, ...]]  # by the names that weights have in memory, see `live_name`
HEAD = "lm_head.weight"


def published_name(name: str) -> str:
    """The name Qwen2.5-VL's own files use, which every version of transformers and vLLM reads."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def live_name(name: str) -> str:
    """The name transformers gives in memory to a weight of a file; the inverse of `published_name`."""
    if name.startswith(("lm_head.", "model.language_model.", "model.visual.")):
        return name
    return "model." + name if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


def weight_files(model: str) -> list[Path]:
    """The files with the weights of a folder. InputError when one that its index names is not there."""
    folder = Path(model)
    index = folder / "model.safetensors.index.json"
    found = sorted(folder.glob("*.safetensors"))
    if index.exists():
        try:
            names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{index} cannot be read: {error}. Copy or download it again.") from error
        found = [folder / name for name in sorted(set(names.values()))]
        for path in found:
            if not path.exists():
                _refuse(
                    model, f"lacks the file {path.name}, with", [n for n, file in names.items() if file == path.name]
                )
    if not found:
        raise InputError(f"{model} has no .safetensors files with weights. Save the model in that format.")
    return found


NEEDED = (  # one file of each line makes a folder usable
    ("config.json",),
    ("tokenizer.json", "vocab.json"),
    ("tokenizer_config.json",),
    ("processor_config.json", "preprocessor_config.json"),
)


def check_folder(model: str) -> None:
    """InputError when a file of a local model folder is missing or cut short. Reads no tensor and imports no torch."""
    folder = Path(model)
    for names in NEEDED:
        if not any((folder / name).exists() for name in names):
            _refuse(model, "lacks", [" or ".join(names)])
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is no JSON: {error}. It may be cut short: copy or download it again.") from error
    stored_shapes(model)


@contextmanager
def opened_weights(path: Path, framework: str) -> Iterator[Any]:
    """A .safetensors file as safetensors opens it, for "np" or "pt". InputError for one that is cut short or gone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read: {error}. If it is cut short, copy or download it again; if it is gone, a run that "
            "still trains may have removed the checkpoint (trainer.max_ckpt_to_keep)."
        ) from error


def stored_shapes(model: str) -> Shapes:
    """Name and shape of every weight in a folder, a tied head left out. Reads headers only."""
    shapes: Shapes = {}
    for path in weight_files(model):
        with opened_weights(path, "np") as file:
            shapes |= {live_name(name): tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    if load_model_config(model).get("tie_word_embeddings", False):
        shapes.pop(HEAD, None)
    return shapes


def wanted_shapes(model: str) -> Shapes:
    """The weights that the configuration of a folder asks for, a tied head left out. Imports torch."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig.from_pretrained(model)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in Qwen2_5_VLForConditionalGeneration(config).named_parameters()}
    if config.tie_word_embeddings:
        shapes.pop(HEAD, None)
    return shapes


def check_weights(model: str) -> None:
    """InputError that names the weights of a folder which are missing, too many or of another shape."""
    compare_weights(model, stored_shapes(model), wanted_shapes(model))


def compare_weights(source: str, found: Shapes, wanted: Shapes) -> None:
    """InputError unless `source` has the weights `wanted`, and no others."""
    _refuse(source, "lacks", sorted(wanted.keys() - found.keys()))
    _refuse(source, "has weights that are not asked for:", sorted(found.keys() - wanted.keys()))
    other = [f"{name} {found[name]} for {shape}" for name, shape in wanted.items() if found[name] != shape]
    _refuse(source, "has other shapes than are asked for:", other)


def _refuse(model: str, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise InputError(f"{model} {what} {', '.join(names[:4])}{more}. Copy or save the whole model again.")
