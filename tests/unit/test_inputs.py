"""What goes into a model: image arithmetic, positions, rendering, the order of rows. Golden against the libraries."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers import picture, question
from timemaster.data.stream import Stream
from timemaster.media.images import blank
from timemaster.models.family import VisionSpec, default_family
from timemaster.models.folder import load_model_config
from timemaster.models.grid import fitted_size, grid_thw
from timemaster.models.positions import find_spans, mrope_positions
from timemaster.models.vision import check_pixels, num_tokens, vision_spec
from timemaster.tokens.render import Renderer
from timemaster.types import Example, InputError, Media, Message, Part, Reply

SPEC = VisionSpec(
    family=default_family(), image_token_id=1000, video_token_id=1001, banned_token_ids=(1000, 1001, 1002, 1003),
    patch_size=14, merge_size=2, temporal_patch_size=2, tokens_per_second=2, min_pixels=3136, max_pixels=1003520,
)  # fmt: skip


@pytest.fixture(scope="module")
def renderer(tiny: str) -> Renderer:
    return Renderer(tiny, vision_spec(load_model_config(tiny), 784, 50176))


def test_resizing_arithmetic_equals_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.RandomState(0)
    for height, width in [
        (230, 580),
        (112, 112),
        (1, 150),
        (42, 42),
        (14, 70),
        *rng.randint(1, 3000, (500, 2)).tolist(),
    ]:
        if max(height, width) > 200 * min(height, width):
            continue
        expected = smart_resize(height, width, 28, SPEC.min_pixels, SPEC.max_pixels)
        assert fitted_size(height, width, SPEC) == expected


def test_no_image_is_smaller_than_a_token() -> None:
    check_pixels(replace(SPEC, min_pixels=100, max_pixels=784))
    with pytest.raises(InputError, match=r"max_pixels=783: allowed is at least 784 with a Qwen2\.5-VL model"):
        check_pixels(replace(SPEC, min_pixels=100, max_pixels=783))


def test_a_ctu_plot_costs_160_tokens() -> None:
    # 571 x 230 pixels -> 560 x 224 -> 20 x 8 tokens of 28 x 28 pixels
    assert num_tokens(Media(kind="image", uid="a", height=230, width=571), SPEC) == 20 * 8


def test_an_image_no_model_can_take_is_an_error() -> None:
    with pytest.raises(InputError, match="200-fold"):
        fitted_size(10, 2010, SPEC)


def vllm_clock(item: Media, dtype: str) -> Any:
    """`second_per_grid_ts` of a video as vLLM keeps it for a model of `dtype`: a tensor of its processor, then cast."""
    import torch
    from transformers import BatchFeature

    context = pytest.importorskip("vllm.multimodal.processing.context").InputProcessingContext
    multimodal = SimpleNamespace(mm_tensor_ipc="direct_rpc")
    model_config = SimpleNamespace(dtype=getattr(torch, dtype), get_multimodal_config=lambda: multimodal)
    processed = BatchFeature({"second_per_grid_ts": [SPEC.temporal_patch_size / item.fps]}, tensor_type="pt")
    return context._postprocess_output(SimpleNamespace(model_config=model_config), processed.data)["second_per_grid_ts"]


def vllm_positions(
    token_ids: list[int], media: list[Media], dtype: str = "float32", spec: VisionSpec = SPEC
) -> np.ndarray:
    """vLLM's own function for Qwen2.5-VL, called without a model."""
    import torch

    Model = pytest.importorskip("vllm.model_executor.models.qwen2_5_vl").Qwen2_5_VLForConditionalGeneration

    class Field:
        def __init__(self, data: torch.Tensor) -> None:
            self.data = data

    class Feature:
        def __init__(self, item: Media, offset: int) -> None:
            self.modality = item.kind
            self.mm_position = type("Position", (), {"offset": offset})
            self.data = {f"{item.kind}_grid_thw": Field(torch.tensor(grid_thw(item, spec)))}
            if item.kind == "video":
                self.data["second_per_grid_ts"] = Field(vllm_clock(item, dtype)[0])

    vision = type("Vision", (), {"spatial_merge_size": spec.merge_size, "tokens_per_second": spec.tokens_per_second})
    fake = type("Fake", (), {"config": type("Config", (), {"vision_config": vision})})()
    fake.iter_mm_grid_thw = lambda features: Model.iter_mm_grid_thw(fake, features)
    spans = find_spans(token_ids, media, spec)
    features = [Feature(item, start) for item, (start, _) in zip(media, spans, strict=True)]
    return Model.get_mrope_input_positions(fake, token_ids, features)[0].numpy()


def sequence(media: list[Media]) -> list[int]:
    """Text, then each item between its markers with text behind."""
    ids = [1, 2, 3]
    for item in media:
        pad = SPEC.image_token_id if item.kind == "image" else SPEC.video_token_id
        ids += [1002, *[pad] * num_tokens(item, SPEC), 1003, 4, 5]
    return ids


def image(height: int, width: int) -> Media:
    return Media(kind="image", uid=f"{height}x{width}", height=height, width=width)


def video(seconds: float, fps: float) -> Media:
    return Media(kind="video", uid=f"{seconds}s", height=224, width=224, num_frames=int(seconds * fps), fps=fps)


CASES = {
    "one image": [image(230, 571)],
    "two images": [image(112, 112), image(600, 200)],
    "tall image": [image(900, 120)],
    "short video at 2 fps": [video(4, 2.0)],
    "long video at 2 fps": [video(60, 2.0)],
    "video at 0.67 fps": [video(48, 0.67)],
    "video at 1.28 fps": [video(30, 1.28)],
    "video at 4 fps": [video(9, 4.0)],
    "image, video, image": [image(112, 112), video(16, 1.8), image(230, 571)],
    "no media": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_positions_equal_vllms(name: str) -> None:
    media = CASES[name]
    ids = sequence(media)
    ours = mrope_positions(ids, media, SPEC)
    assert ours.shape == (3, len(ids))
    expected = vllm_positions(ids, media) if media else np.broadcast_to(np.arange(len(ids)), (3, len(ids)))
    assert (ours == expected).all()


@pytest.mark.parametrize("inside", [False, True])
def test_positions_of_images_that_arrive_in_later_turns_equal_vllms(renderer: Renderer, inside: bool) -> None:
    """In new chat turns, and inside the assistant's turn; at every turn, whose tokens so far are the next prompt."""
    prompt = renderer.prompt(question("row", [picture(1)]))
    token_ids, media = list(prompt.token_ids), list(prompt.media)
    for later in (picture(2, 140, 112), picture(3, 112, 196), picture(1)):
        parts = [Part("text", text="Look: "), Part("image", media=later), Part("text", text="And?")]
        reply = Reply(parts=parts) if inside else Reply(messages=[Message("user", parts)])
        token_ids += renderer.encode("<code>zoom</code>") + renderer.reply(reply, "row")[0]
        media.append(later)
        ours = mrope_positions(token_ids, media, renderer.spec)
        assert (ours == vllm_positions(token_ids, media, spec=renderer.spec)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_positions_follow_vllms_clock_at_every_rate_and_stride(dtype: str) -> None:
    spec = replace(SPEC, clock_dtype=dtype)
    differ = 0
    for source in (*range(1, 61), 23.976, 29.97, 59.94):
        for stride in range(1, 17):
            media = [Media(kind="video", uid="v", height=56, width=56, num_frames=96, fps=source / stride)]
            ids = sequence(media)
            expected = vllm_positions(ids, media, dtype)
            assert (mrope_positions(ids, media, spec) == expected).all(), f"{source} fps, every {stride}th frame"
            seconds = SPEC.temporal_patch_size / media[0].fps  # not rounded
            differ += list(expected[0, 4 : 4 + 192 : 4]) != [4 + int(i * seconds * 2) for i in range(48)]
    assert differ > 100  # the pairs tell the rounded clock from the exact one


def test_text_after_an_image_resumes_one_past_its_longer_side() -> None:
    # 3 text tokens and a start marker (0..3), an 8 x 20 grid from 4: widest position 4 + 19 = 23, the end marker at 24
    media = [image(230, 571)]
    positions = mrope_positions(sequence(media), media, SPEC)
    assert positions[:, 4].tolist() == [4, 4, 4]
    assert positions[:, 4 + 160].tolist() == [24, 24, 24]


def test_tokens_and_media_that_disagree_are_an_error() -> None:
    with pytest.raises(InputError, match="found fewer"):
        mrope_positions([1, 1000, 1000, 2], [image(112, 112)], SPEC)
    with pytest.raises(InputError, match="belong to no image"):
        mrope_positions([1, 1000, 2], [], SPEC)


# ---- rendering


def test_a_prompt_holds_every_image_token(renderer: Renderer) -> None:
    media = [picture(1), picture(2, 140, 112)]
    prompt = renderer.prompt(question("row", media))
    # 112 x 112 -> 4 x 4 tokens, 140 x 112 -> 5 x 4 tokens
    assert prompt.token_ids.count(renderer.spec.image_token_id) == 16 + 20
    assert [m.uid for m in prompt.media] == [m.uid for m in media]
    assert renderer.decode(prompt.token_ids).endswith("Which class?\nassistant\n")


def test_a_demonstration_trains_the_answer_and_its_end_only(renderer: Renderer) -> None:
    example = question("row", [picture(1)])
    example = replace(
        example, messages=[*example.messages, Message("assistant", [Part("text", text="<class>Winter</class>")])]
    )
    sample = renderer.sample(example)
    trained = [t for t, m in zip(sample.token_ids, sample.mask, strict=True) if m]
    assert renderer.decode(trained) == "<class>Winter</class>"
    assert trained[-1] == renderer.end_of_turn
    assert sample.token_ids[: -len(trained)] == renderer.prompt(example).token_ids


def test_a_second_turn_with_an_image_continues_the_tokens(renderer: Renderer) -> None:
    user = lambda text, media: Message("user", [*[Part("image", media=m) for m in media], Part("text", text=text)])  # noqa: E731
    said = lambda text: Message("assistant", [Part("text", text=text)])  # noqa: E731
    turns = [user("Look.", [picture(1)]), said("zoom"), user("Here.", [picture(2)]), said("done")]
    sample = renderer.sample(Example(id="row", messages=turns, answer="", data_source=""))
    whole = renderer.tokenizer.apply_chat_template(
        [{"role": m.role, "content": [{"type": p.kind, "text": p.text} for p in m.parts]} for m in turns],
        tokenize=False,
    )
    collapsed = [t for i, t in enumerate(sample.token_ids)
                 if t != renderer.spec.image_token_id or sample.token_ids[i - 1] != t]  # fmt: skip
    assert renderer.decode(collapsed, skip_special_tokens=False) + "\n" == whole
    assert len(sample.media) == 2
    trained = [t for t, m in zip(sample.token_ids, sample.mask, strict=True) if m]
    assert renderer.decode(trained, skip_special_tokens=False) == "zoom<|im_end|>done<|im_end|>"


def test_special_tokens_in_a_rows_text_are_an_error(renderer: Renderer) -> None:
    with pytest.raises(InputError, match="row bad"):
        renderer.prompt(question("bad", [picture(1)], text="see <|image_pad|> here"))


def test_a_row_without_an_answer_cannot_be_learned_from(renderer: Renderer) -> None:
    with pytest.raises(InputError, match="no assistant turn"):
        renderer.sample(question("row", [picture(1)]))


def test_blanked_examples_keep_their_size_and_lose_their_picture() -> None:
    from timemaster.media.images import load_image

    example = blank(question("row", [picture(3, 140, 112)]))
    media = example.messages[0].parts[0].media
    assert media is not None
    assert (media.width, media.height) == (140, 112)
    assert set(load_image(media).getdata()) == {(255, 255, 255)}


def test_a_folder_that_is_no_model_of_a_known_family_is_an_error(tmp_path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_model_config("checkpoints/misspelt/tiny")
    with pytest.raises(InputError, match="cannot be read as a model"):
        load_model_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"type llama is not supported: supported are Qwen2\.5-VL \(qwen2_5_vl\)"):
        load_model_config(str(tmp_path))


# ---- the order of rows


def test_every_epoch_sees_every_row_once_and_no_batch_holds_a_row_twice() -> None:
    stream = Stream(num_rows=10, batch_size=4, seed=1, shuffle=True)
    steps = [stream.batch(step) for step in range(15)]  # 60 rows: 6 epochs
    flat = [row for batch in steps for row in batch]
    for epoch in range(6):
        assert sorted(flat[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert all(len(set(batch)) == 4 for batch in steps)
    assert len({tuple(flat[e * 10 : e * 10 + 10]) for e in range(6)}) == 6


def test_a_resumed_stream_continues_the_same_order() -> None:
    fresh = Stream(num_rows=7, batch_size=3, seed=5, shuffle=True)
    expected = [fresh.batch(step) for step in range(20)]
    resumed = Stream(num_rows=7, batch_size=3, seed=5, shuffle=True)
    assert [resumed.batch(step) for step in range(11, 20)] == expected[11:]
    assert resumed.batch(2) == expected[2]


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(InputError, match=r"train_batch_size=8, but only 5"):
        Stream(num_rows=5, batch_size=8, seed=1, shuffle=True)
