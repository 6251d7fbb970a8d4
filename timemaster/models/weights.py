"""The weights in a model's folder: their names and shapes, reading them, and whether the folder is complete.

transformers only warns when a weight is missing and continues with random numbers; vLLM does not notice that a part of
a fused weight is missing. Here an incomplete folder is an InputError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timemaster.models.family import family_of
from timemaster.models.folder import load_model_config
from timemaster.types import InputError

Shapes = dict[str, tuple[int, ...]]  # by the names that weights have in memory, see `Family.live_name`


def weight_files(model: str) -> list[Path]:
    """The files with the weights of a folder. InputError when a file that its index names is missing."""
    folder = Path(model)
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.exists():
        try:
            names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{index} cannot be read: {error}. Copy or download it again.") from error
        files = [folder / name for name in sorted(set(names.values()))]
        for path in files:
            if not path.exists():
                _refuse(
                    model, f"lacks the file {path.name}, with", [n for n, name in names.items() if name == path.name]
                )
    if not files:
        raise InputError(f"{model} has no .safetensors files with weights. Save the model in that format.")
    return files


NEEDED = (  # a usable folder has at least one file of each line
    ("config.json",),
    ("tokenizer.json", "vocab.json"),
    ("tokenizer_config.json",),
    ("processor_config.json", "preprocessor_config.json"),
)


def check_folder(model: str) -> None:
    """InputError when a file of a local model folder is missing or cut short. Reads no tensors, imports no torch."""
    folder = Path(model)
    for names in NEEDED:
        if not any((folder / name).exists() for name in names):
            _refuse(model, "lacks", [" or ".join(names)])
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}. It may be cut short: copy or download it again.") from error
    stored_shapes(model)


@contextmanager
def opened_weights(path: Path, framework: str) -> Iterator[Any]:
    """A .safetensors file as safetensors opens it, for "np" or "pt". InputError if it is cut short or missing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read: {error}. If it is cut short, copy or download it again; if it is missing, a run "
            "that still trains may have removed the checkpoint (trainer.max_ckpt_to_keep)."
        ) from error


def stored_shapes(model: str) -> Shapes:
    """Name and shape of every weight in a folder, without a tied head. Reads headers only."""
    config = load_model_config(model)
    family = family_of(config)
    shapes: Shapes = {}
    for path in weight_files(model):
        with opened_weights(path, "np") as file:
            shapes |= {family.live_name(name): tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    if config.get("tie_word_embeddings", False):
        shapes.pop(family.head, None)
    return shapes


def wanted_shapes(model: str) -> Shapes:
    """Name and shape of every weight that the config.json of a folder asks for, without a tied head. Imports torch."""
    import torch

    family = family_of(load_model_config(model))
    model_class = family.model_class()
    config = model_class.config_class.from_pretrained(model)
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in model_class(config).named_parameters()}
    if config.tie_word_embeddings:
        shapes.pop(family.head, None)
    return shapes


def read_layers(model: str) -> Iterator[list[tuple[str, Any]]]:
    """The weights of a folder in portions of (name in memory, tensor), for engines that already run.

    A tied head comes last, under its own name: some engines keep a copy of it.
    """
    family = family_of(load_model_config(model))
    embeddings: list[tuple[str, Any]] = []
    names: set[str] = set()
    for path in weight_files(model):
        with opened_weights(path, "pt") as file:
            portion = [(family.live_name(name), file.get_tensor(name)) for name in sorted(file.keys())]
        names |= {name for name, _ in portion}
        embeddings += [(family.head, tensor) for name, tensor in portion if name == family.embeddings]
        yield portion
    if family.head not in names:
        yield embeddings


def check_weights(model: str) -> None:
    """InputError unless a folder has the weights that its config.json asks for; it names those that differ."""
    compare_weights(model, stored_shapes(model), wanted_shapes(model))


def compare_weights(source: str, found: Shapes, wanted: Shapes) -> None:
    """InputError unless `found`, the weights of `source`, are the `wanted` ones and no others."""
    _refuse(source, "lacks", sorted(wanted.keys() - found.keys()))
    _refuse(source, "has unexpected weights:", sorted(found.keys() - wanted.keys()))
    mismatches = [f"{name} {found[name]} for {shape}" for name, shape in wanted.items() if found[name] != shape]
    _refuse(source, "has weights of unexpected shapes:", mismatches)


def _refuse(model: str, what: str, names: list[str]) -> None:
    if names:
        rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise InputError(f"{model} {what} {', '.join(names[:4])}{rest}. Copy or save the whole model again.")
