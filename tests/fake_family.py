"""The record of a family that the library has never seen. This file is all that such a family needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timemaster.models import qwen2_5_vl


def _model_class() -> Any:
    from tests.fake_model import FakeForConditionalGeneration

    return FakeForConditionalGeneration


def decode(model: Any, embeddings: Any, position_ids: Any, attention_mask: Any) -> Any:
    out = model.model.speech(
        inputs_embeds=embeddings, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
    )
    return out.last_hidden_state


def published_name(name: str) -> str:
    return name.replace("model.speech.", "text.").replace("model.eye.", "tower.")


def live_name(name: str) -> str:
    return name.replace("text.", "model.speech.").replace("tower.", "model.eye.")


FAMILY = replace(
    qwen2_5_vl.FAMILY,
    name="Fake-VL",
    published="fake/Fake-VL",
    model_class=_model_class,
    end_of_turn="<|box_end|>",
    image_token="<|quad_start|>",
    decode=decode,
    vision_tower="model.eye",
    vision_blocks="model.eye.stages",
    layers="model.speech.stack",
    parts={
        "vision tower": "model.eye.stages",
        "vision joiner": "model.eye.joiner",
        "vision patches": "model.eye.patch_embed",
        "language model": "model.speech.stack",
    },
    vllm_language_model="speech",
    embeddings="model.speech.words.weight",
    head="voice.weight",
    vision_pattern="*eye.*",
    published_name=published_name,
    live_name=live_name,
)
