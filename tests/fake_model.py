"""What transformers would bring for a family that the library has never seen: its classes, and a tiny model of it.

Qwen2.5-VL with patches of 16 pixels, other names for its modules in memory and on disk, and other special tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from timemaster.models.tiny import CHAT_TEMPLATE, DEFAULT_TEXTS, init_weights, make_config, make_tokenizer

IMAGE, END = "<|quad_start|>", "<|box_end|>"


class FakeConfig(Qwen2_5_VLConfig):
    model_type = "fake_vl"


class FakeForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    config_class = FakeConfig
    _tied_weights_keys = {"voice.weight": "model.speech.words.weight"}  # noqa: RUF012

    def post_init(self) -> None:
        rename(self.model.visual, "blocks", "stages")
        rename(self.model.visual, "merger", "joiner")
        rename(self.model.language_model, "layers", "stack")
        rename(self.model.language_model, "embed_tokens", "words")
        rename(self.model, "visual", "eye")
        rename(self.model, "language_model", "speech")
        rename(self, "lm_head", "voice")
        super().post_init()


def rename(module: nn.Module, old: str, new: str) -> None:
    """Give a child module another name; code that is written for the old one still finds it."""
    child = module._modules.pop(old)
    module._modules[new] = child
    module.__dict__[old] = child


register_checkpoint_conversion_mapping(
    "fake_vl", [WeightRenaming(r"^tower\.", "model.eye."), WeightRenaming(r"^text\.", "model.speech.")]
)


def write_fake(folder: Path, on_disk: Any) -> Path:
    """Write a tiny model, its tokenizer and processor. `on_disk`: the name in a file for a name in memory."""
    tokenizer = make_tokenizer(DEFAULT_TEXTS)
    template = CHAT_TEMPLATE.replace("<|image_pad|>", IMAGE).replace("<|im_end|>", END)
    tokenizer.chat_template = template
    values = make_config(tokenizer, hidden_size=64, num_layers=2).to_dict() | {"model_type": "fake_vl"}
    values["image_token_id"] = tokenizer.convert_tokens_to_ids(IMAGE)
    values["vision_config"] |= {"patch_size": 16, "window_size": 128}
    model = FakeForConditionalGeneration(FakeConfig(**values))
    init_weights(model, std=0.1, seed=0)
    save_torch_state_dict({on_disk(name): tensor for name, tensor in model.named_parameters()}, folder)
    model.config.save_pretrained(folder)
    sizes: dict[str, Any] = {"patch_size": 16, "min_pixels": 1024, "max_pixels": 65536}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=template
    )
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "fake_vl"
    return folder
