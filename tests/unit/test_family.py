"""A family of models that no file of the library knows: other patches, names and tokens, from rows to an export.

It is found as an installed package would be, by its entry point. The hf engine samples; for vLLM such a model would have
to be registered with vLLM, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import full, picture, question, random_samples, trained_tokens
from timemaster.backends.fsdp import FsdpBackend
from timemaster.backends.state import load_rank, save_rank
from timemaster.config import Config
from timemaster.models.family import family_of
from timemaster.models.folder import load_model_config
from timemaster.models.weights import check_folder, check_weights, read_layers, wanted_shapes
from timemaster.rollout.hf import HfEngine
from timemaster.rollout.wire import pack
from timemaster.run.inputs import check_inputs, decoded, engine_spec, make_renderer
from timemaster.types import InputError, Sample, Sampling


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, process_group: None) -> Iterator[Config]:
    """Settings for the tiny model, and a package that announces its family."""
    with pytest.raises(InputError, match="type fake_vl is not supported"):
        family_of({"model_type": "fake_vl"})
    package = tmp_path_factory.mktemp("packages") / "fake_vl-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: fake_vl\nVersion: 1.0\n", encoding="utf-8")
    (package / "entry_points.txt").write_text(
        "[timemaster.families]\nfake_vl = tests.fake_family:FAMILY\n", encoding="utf-8"
    )
    sys.path.append(str(package.parent))
    from tests.fake_model import write_fake

    family = family_of({"model_type": "fake_vl"})
    config = Config()
    config.model.path = str(write_fake(tmp_path_factory.mktemp("fake"), family.published_name))
    config.model.enable_gradient_checkpointing = True
    config.data.min_pixels, config.data.max_pixels = 1024, 65536
    config.actor.optim.lr, config.actor.use_kl_loss = 1e-2, True
    config.trainer.default_local_dir = str(tmp_path_factory.mktemp("run"))
    yield config
    sys.path.remove(str(package.parent))


@pytest.fixture(scope="module")
def backend(config: Config) -> FsdpBackend:
    return FsdpBackend(config, "cpu", num_updates=10, with_reference=True)


@pytest.fixture(scope="module")
def samples(config: Config) -> list[Sample]:
    return random_samples(make_renderer(config), num_prompts=4, group=2)


def test_rows_become_tokens_of_32_pixels_a_side_and_its_own_special_tokens(config: Config) -> None:
    check_inputs(config, [])
    renderer = make_renderer(config)
    prompt = renderer.prompt(question("row", [picture(1), picture(2, 300, 64)]))
    # 112 x 112 pixels -> 128 x 128 (3.5 rounds to the even 4) -> 4 x 4 tokens; 300 x 64 -> 288 x 64 -> 9 x 2
    assert prompt.token_ids.count(renderer.spec.image_token_id) == 16 + 18
    text = decoded(renderer, prompt.token_ids)
    assert "[16 image tokens]" in text
    assert "<|box_end|>" in text
    assert "<|im_end|>" not in text
    config.data.min_pixels = config.data.max_pixels = 1000
    with pytest.raises(InputError, match="allowed is at least 1024 with a Fake-VL model"):
        check_inputs(config, [])
    config.data.min_pixels, config.data.max_pixels = 1024, 65536


def test_log_probs_equal_transformers_own_forward(backend: FsdpBackend, samples: list[Sample]) -> None:
    """And with them positions and features: plain transformers makes its own."""
    from tests.fake_model import FakeForConditionalGeneration

    model: Any = FakeForConditionalGeneration.from_pretrained(backend.cfg.model.path)
    ours = backend.logprobs([samples[:4]], "policy")[0]
    assert ours == backend.logprobs([samples[:4]], "reference")[0]
    for sample, values in zip(samples[:4], ours, strict=True):
        ids = torch.tensor([sample.token_ids])
        images = backend.collate([sample]).images
        assert images is not None
        assert images.inputs["pixel_values"].shape[1] == 3 * 2 * 16 * 16
        with torch.no_grad():
            inputs = images.inputs | {"mm_token_type_ids": (ids == backend.spec.image_token_id).int()}
            logits = model(input_ids=ids, **inputs).logits
        logits[..., list(backend.spec.banned_token_ids)] = -torch.inf
        reference = logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        expected = [float(reference[i - 1]) for i, trained in enumerate(sample.mask) if trained]
        assert values == pytest.approx(expected, abs=2e-5)


def test_its_parameters_are_counted_by_part_and_for_the_estimate_of_memory(backend: FsdpBackend) -> None:
    model = load_model_config(backend.cfg.model.path)
    sizes = family_of(model).sizes(model)
    in_all = sum(parameter.numel() for parameter in backend.policy.parameters())
    assert sizes.language + sizes.vision == in_all
    table = backend.parameter_table()
    assert list(table) == ["vision tower", "vision joiner", "vision patches", "language model", "embeddings"]
    assert sum(size for size, _ in table.values()) == in_all - sizes.hidden  # all but the last norm
    assert all(trained for _, trained in table.values())


class Parity:
    """An engine beside the backend, with the same weights at first."""

    def __init__(self, backend: FsdpBackend, preserve: list[str]) -> None:
        self.backend, self.renderer = backend, make_renderer(backend.cfg)
        spec = engine_spec(backend.cfg, "cpu", backend.cfg.model.path, 2, self.renderer.end_of_turn)
        assert spec.preserve == preserve
        self.engine = HfEngine(spec)

    def push(self) -> None:
        self.engine.start_weight_update()
        for layer in self.backend.weights(self.engine.own_head()):
            self.engine.update_weights({"chunk": pack(layer)})
        self.engine.finish_weight_update()

    def difference(self, seed: int) -> float:
        """Mean |trainer - engine| log-prob of sampled tokens."""
        prompts = [
            self.renderer.prompt(question("one", [picture(1)])),
            self.renderer.prompt(question("two", [picture(2, 140, 112), picture(3)])),
        ]
        for prompt in prompts:
            self.engine.submit(prompt.id, prompt, Sampling(n=4, temperature=1.0, max_tokens=16, seed=seed))
        answers = dict(self.engine.step())
        samples, theirs = [], []
        for prompt in prompts:
            for answer in answers[prompt.id]:
                assert not set(answer.token_ids) & set(self.backend.spec.banned_token_ids)
                ids, before = prompt.token_ids + answer.token_ids, len(prompt.token_ids)
                mask = [0] * before + [1] * len(answer.token_ids)
                samples.append(Sample(id=prompt.id, token_ids=ids, mask=mask, media=prompt.media))
                theirs += answer.logprobs
        ours = [value for row in self.backend.logprobs([samples], "policy")[0] for value in row]
        return float(np.abs(np.array(ours) - np.array(theirs)).mean())


def test_updates_train_every_part_and_a_push_brings_them_to_the_engine(
    backend: FsdpBackend, samples: list[Sample]
) -> None:
    parity = Parity(backend, preserve=[])
    assert parity.difference(1) <= 1e-4
    before = {name: full(p.detach()).clone() for name, p in backend.policy.named_parameters()}
    first = backend.update_sft([samples[:4], samples[4:]], trained_tokens(samples))
    found = backend.update([samples[:4], samples[4:]], trained_tokens(samples))
    assert found["kl"] > 0  # the reference model stayed
    text = Sample(id="text", token_ids=[5, 6, 7], mask=[0, 1, 1], media=[])
    assert backend.update_sft([samples, [text]], trained_tokens([*samples, text]))["loss"] < first["loss"]
    unchanged = [n for n, p in backend.policy.named_parameters() if full(p.detach()).equal(before[n])]
    assert unchanged == []
    assert parity.difference(2) > 1e-2  # not pushed yet
    parity.engine.wipe_weights()
    parity.push()
    assert parity.difference(3) <= 1e-4


def test_a_checkpoint_exports_a_folder_of_the_family_and_resumes(backend: FsdpBackend, tmp_path: Path) -> None:
    from tests.fake_model import FakeForConditionalGeneration

    save_rank(backend, str(tmp_path))
    export = str(tmp_path / "huggingface")
    check_folder(export)
    check_weights(export)
    assert load_model_config(export)["architectures"] == ["FakeForConditionalGeneration"]
    weights = {name: full(p.detach()) for name, p in backend.policy.model.named_parameters()}
    assert weights.keys() == wanted_shapes(export).keys()
    model: Any = FakeForConditionalGeneration.from_pretrained(export)
    assert all(parameter.equal(weights[name]) for name, parameter in model.named_parameters())
    layers = [item for layer in read_layers(export) for item in layer]
    assert {name for name, _ in layers} == weights.keys() | {"voice.weight"}
    resumed = FsdpBackend(backend.cfg, "cpu", num_updates=10, with_reference=False)
    load_rank(resumed, str(tmp_path), backend.updates_done)
    assert all(full(p.detach()).equal(weights[name]) for name, p in resumed.policy.model.named_parameters())


def test_a_frozen_tower_is_neither_trained_nor_sent_nor_wiped(config: Config, samples: list[Sample]) -> None:
    config.model.freeze_vision_tower = True
    backend = FsdpBackend(config, "cpu", num_updates=10, with_reference=False)
    parity = Parity(backend, preserve=["*eye.*"])
    config.model.freeze_vision_tower = False
    backend.update([samples], trained_tokens(samples))
    parity.engine.wipe_weights()
    parity.push()
    assert parity.difference(4) <= 1e-4
    assert not [name for layer in backend.weights(tied_head=True) for name, _ in layer if "eye" in name]
