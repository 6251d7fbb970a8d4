"""What the library knows about a family of models: one record, chosen by the `model_type` in config.json.

The record holds everything in which families of vision-language models differ: classes, paths of modules, vision
arithmetic, special tokens, names of weights, sizes. A new family needs one file with a `Family` (the file imports what
it shares with another family) and one line. The line is in FAMILIES, or in another package as an entry point, which
every process of a run finds:

    [project.entry-points."timemaster.families"]
    my_vl = "my_package.my_vl:FAMILY"

vLLM must support the model, too; a model that it does not know is registered by vLLM's own entry points
(https://docs.vllm.ai/en/latest/contributing/model/registration.html). rollout.name=hf needs transformers only.

This file and the file of a family import torch and transformers inside functions only, because commands and the
filtering of rows must start fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from timemaster.types import InputError, Media

if TYPE_CHECKING:
    import numpy as np
    import torch

# model_type in config.json -> import path of the record
FAMILIES: dict[str, str] = {"qwen2_5_vl": "timemaster.models.qwen2_5_vl:FAMILY"}
DEFAULT = "qwen2_5_vl"  # the family for token counts in reports without a model


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """Vision facts of one model, and the pixel budget of the run."""

    family: Family = field(repr=False)
    image_token_id: int  # repeated for every token of an image
    video_token_id: int
    banned_token_ids: tuple[int, ...]  # never sampled: after one, the next forward pass would look for missing pixels
    patch_size: int  # pixels
    merge_size: int  # patches per side that become one token
    temporal_patch_size: int  # frames per patch
    tokens_per_second: float  # temporal positions per second of video
    min_pixels: int
    max_pixels: int
    clock_dtype: str = "float32"  # the engine rounds the seconds of a video to this dtype, its model's


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Parameter counts and sizes of one model. Example: Qwen2.5-VL-3B has language=3085938688, hidden=2048."""

    language: int  # parameters, embeddings and head included
    vision: int  # parameters of the vision tower
    root: int  # parameters outside of the sharded layers, gathered for a whole step: embeddings and head
    hidden: int  # width of the language model
    layers: int
    kv_width: int  # width of the keys of one token in one layer
    vocabulary: int
    layer_bytes: float  # activations that one layer keeps per token for its backward pass, in bfloat16
    vision_hidden: int
    vision_depth: int
    block_bytes: float  # activations that one vision block keeps per patch for its backward pass, in bfloat16
    patches_per_token: int
    stored_bytes: int  # of one parameter in the model's folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of models. Paths and names of weights are those of transformers' model in memory."""

    name: str  # in messages. Example: "Qwen2.5-VL"
    published: str  # a published model, as an example in messages. Example: "Qwen/Qwen2.5-VL-3B-Instruct"

    # Classes of transformers; the functions import them.
    model_class: Callable[[], Any]
    tokenizer_class: Callable[[], Any]
    # `size` of the image processor (transformers' and vLLM's) for (min_pixels, max_pixels).
    processor_size: Callable[[int, int], dict[str, int]]

    # From config.json.
    vision: Callable[..., VisionSpec]  # (config, **given); given: family, min_pixels, max_pixels, clock_dtype
    sizes: Callable[[Mapping[str, Any]], ModelSizes]

    # Tokens.
    end_of_turn: str  # the token that ends a turn. Example: "<|im_end|>"
    image_token: str  # Example: "<|image_pad|>"
    num_tokens: Callable[[Media, VisionSpec], int]  # placeholder tokens of one image or video
    # [3, num_tokens] int64: positions along (time, height, width). A family with one axis repeats it.
    positions: Callable[[Sequence[int], Sequence[Media], VisionSpec], np.ndarray]

    # Forward passes.
    # (pixels of each image, the images, spec) -> the vision tower's inputs for all images, by name
    image_inputs: Callable[[Sequence[torch.Tensor], Sequence[Media], VisionSpec], dict[str, torch.Tensor]]
    # (the model's config) -> the same inputs for the smallest image
    blank_image: Callable[[Any], dict[str, torch.Tensor]]
    # (model, inputs) -> features [image tokens, hidden]
    image_features: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    # (model, embeddings [B, T, hidden], positions [4, B, T]: in the text, then the three axes, attention mask [B, T] or
    # None) -> last hidden states [B, T, hidden]
    decode: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    # (token ids [B, T], spec) -> further inputs of transformers' `generate`, which makes its own positions
    generate_inputs: Callable[[torch.Tensor, VisionSpec], dict[str, torch.Tensor]]

    # Paths of modules.
    vision_tower: str  # what model.freeze_vision_tower freezes
    vision_blocks: str  # list of modules of the vision tower, each sharded separately
    layers: str  # list of modules of the language model, each sharded separately
    parts: Mapping[str, str]  # name in the table of parameters -> path; the table adds embeddings and head
    vllm_language_model: str  # in vLLM's model: the module with `lm_head` and `model.embed_tokens`

    # Names of weights. Updates of engines use the names in memory.
    embeddings: str
    head: str
    vision_pattern: str  # matches the weights of the vision tower, by transformers' names and by vLLM's
    published_name: Callable[[str], str]  # name in memory -> in the files of published models, for export
    live_name: Callable[[str], str]  # name in a file, of any version -> in memory; the inverse of `published_name`


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model by its config.json. InputError when there is none."""
    kind = str(config.get("model_type", "unknown"))
    known = FAMILIES if kind in FAMILIES else known_families()
    if kind not in known:
        raise InputError(f"a model of type {kind} is not supported: supported are {supported()}.")
    return resolve_name(known[kind])


def known_families() -> dict[str, str]:
    """model_type -> import path of the record, those of installed packages included."""
    return {point.name: point.value for point in entry_points(group="timemaster.families")} | FAMILIES


def supported() -> str:
    """Names of all families, for messages. Example: "Qwen2.5-VL (qwen2_5_vl)" """
    return ", ".join(f"{resolve_name(path).name} ({kind})" for kind, path in sorted(known_families().items()))


def default_family() -> Family:
    """The family that is used where no model is given."""
    return resolve_name(FAMILIES[DEFAULT])
