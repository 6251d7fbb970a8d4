"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from timemaster.models.family import Family, ModelSizes, VisionSpec
from timemaster.models.grid import grid_thw, num_grid_tokens
from timemaster.models.positions import mrope_positions
from timemaster.types import Media

if TYPE_CHECKING:
    import torch


def _model_class() -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration


def _tokenizer_class() -> Any:
    from transformers import Qwen2Tokenizer  # not AutoTokenizer: that import takes ten seconds

    return Qwen2Tokenizer


def processor_size(min_pixels: int, max_pixels: int) -> dict[str, int]:
    """`size` of the image processor. The keys name edges, but the values are areas in pixels."""
    return {"shortest_edge": min_pixels, "longest_edge": max_pixels}


def vision(config: Mapping[str, Any], **given: Any) -> VisionSpec:
    """The vision facts in a config.json (missing keys: the published values); `given` are the other fields."""
    tower = config.get("vision_config", {})
    image, video = config.get("image_token_id", 151655), config.get("video_token_id", 151656)
    start, end = config.get("vision_start_token_id", 151652), config.get("vision_end_token_id", 151653)
    return VisionSpec(
        image_token_id=image,
        video_token_id=video,
        banned_token_ids=tuple(sorted({image, video, start, end})),
        patch_size=tower.get("patch_size", 14),
        merge_size=tower.get("spatial_merge_size", 2),
        temporal_patch_size=tower.get("temporal_patch_size", 2),
        tokens_per_second=tower.get("tokens_per_second", 2),
        **given,
    )


def sizes(config: Mapping[str, Any]) -> ModelSizes:
    """Sizes from a config.json, in the published flat form or in transformers' nested one.

    The activations were counted with torch's saved_tensors_hooks in bfloat16: per token in a decoder layer, and per
    patch in a vision block.
    """
    text, tower = {**config, **config.get("text_config", {})}, config["vision_config"]
    h, i, layers, vocabulary = (
        int(text[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    kv = h // text["num_attention_heads"] * text["num_key_value_heads"]
    attention = 2 * h * h + h + 2 * (h * kv + kv)  # q and o, bias of q; k and v with biases
    embeddings = vocabulary * h * (1 if config.get("tie_word_embeddings", False) else 2)
    vh, vi, depth = (int(tower[k]) for k in ("hidden_size", "intermediate_size", "depth"))
    block = 4 * vh * vh + 4 * vh + 3 * vh * vi + 2 * vi + vh + 2 * vh  # qkv and projection, gated MLP, two norms
    patches = tower.get("spatial_merge_size", 2) ** 2
    merged = vh * patches
    merger = vh + merged * merged + merged + merged * h + h
    patch = tower.get("temporal_patch_size", 2) * tower.get("patch_size", 14) ** 2 * tower.get("in_channels", 3)
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return ModelSizes(
        language=layers * (attention + 3 * h * i + 2 * h) + h + embeddings,
        vision=depth * block + patch * vh + merger,
        root=embeddings,
        hidden=h,
        layers=layers,
        kv_width=kv,
        vocabulary=vocabulary,
        layer_bytes=20.6 * h + 4 * kv + 8 * i,
        vision_hidden=vh,
        vision_depth=depth,
        block_bytes=32 * vh + 8 * vi,
        patches_per_token=patches,
        stored_bytes=4 if dtype == "float32" else 2,
    )


def image_inputs(pixels: Sequence[torch.Tensor], media: Sequence[Media], spec: VisionSpec) -> dict[str, torch.Tensor]:
    """pixel_values [patches of all images, values of a patch] and image_grid_thw [images, 3]."""
    import torch

    grids = [grid_thw(item, spec) for item in media]
    return {"pixel_values": torch.cat(list(pixels)), "image_grid_thw": torch.tensor(grids)}


def blank_image(config: Any) -> dict[str, torch.Tensor]:
    """One black image of one token, as `image_inputs` gives it."""
    import torch

    tower = config.vision_config
    side = tower.spatial_merge_size
    width = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
    return {"pixel_values": torch.zeros(side**2, width), "image_grid_thw": torch.tensor([[1, side, side]])}


def image_features(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Features [tokens of all images, hidden]."""
    import torch

    return torch.cat(model.model.get_image_features(**inputs, return_dict=True).pooler_output)


def decode(
    model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """The language model's last hidden states [B, T, hidden]."""
    out = model.model.language_model(
        inputs_embeds=embeddings, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
    )
    return out.last_hidden_state


def generate_inputs(ids: torch.Tensor, spec: VisionSpec) -> dict[str, torch.Tensor]:
    """Which tokens are an image's (1) and which are text (0): transformers builds M-RoPE positions from it."""
    return {"mm_token_type_ids": (ids == spec.image_token_id).int()}


def published_name(name: str) -> str:
    """The name that Qwen2.5-VL's own files use, which every version of transformers and vLLM reads."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def live_name(name: str) -> str:
    """The name that transformers gives in memory to a weight of a file; the inverse of `published_name`."""
    if name.startswith(("lm_head.", "model.language_model.", "model.visual.")):
        return name
    return "model." + name if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


FAMILY = Family(
    name="Qwen2.5-VL",
    published="Qwen/Qwen2.5-VL-3B-Instruct",
    model_class=_model_class,
    tokenizer_class=_tokenizer_class,
    processor_size=processor_size,
    vision=vision,
    sizes=sizes,
    end_of_turn="<|im_end|>",
    image_token="<|image_pad|>",
    num_tokens=num_grid_tokens,
    positions=mrope_positions,
    image_inputs=image_inputs,
    blank_image=blank_image,
    image_features=image_features,
    decode=decode,
    generate_inputs=generate_inputs,
    vision_tower="model.visual",
    vision_blocks="model.visual.blocks",
    layers="model.language_model.layers",
    parts={
        "vision tower": "model.visual.blocks",
        "vision merger": "model.visual.merger",
        "vision patches": "model.visual.patch_embed",
        "language model": "model.language_model.layers",
    },
    vllm_language_model="language_model",
    embeddings="model.language_model.embed_tokens.weight",
    head="lm_head.weight",
    vision_pattern="*visual.*",
    published_name=published_name,
    live_name=live_name,
)
