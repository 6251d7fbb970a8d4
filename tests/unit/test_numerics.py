"""Losses, advantages and the fused head against numbers worked out by hand; gradients however the batch is cut."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.helpers import full, random_samples, trained_tokens
from timemaster.algo.advantages import AlgorithmConfig, group_advantages, grpo, to_samples
from timemaster.algo.losses import LossConfig, LossInputs, difference, k3, policy_loss, ppo_clip
from timemaster.algo.token_metrics import add_up, means
from timemaster.sft import step_metrics
from timemaster.tokens.plan import spread
from timemaster.types import Example, Group, InputError, Rollout, Sample, Score


def inputs(
    logprobs: list[float], old: list[float], advantages: list[float], ref: list[float] | None = None
) -> LossInputs:
    return LossInputs(
        logprobs=torch.tensor(logprobs, requires_grad=True),
        entropy=torch.tensor([0.5] * len(logprobs), requires_grad=True),
        old_logprobs=torch.tensor(old),
        ref_logprobs=torch.tensor(ref) if ref else None,
        advantages=torch.tensor(advantages),
    )


def test_grpo_advantage_by_hand() -> None:
    # mean 0.55; squared deviations 0.2025 x 2, 0.2025 x 2 -> sum 0.81; / 3 = 0.27; std 0.519615
    got = grpo([1.0, 0.1, 1.0, 0.1], AlgorithmConfig())
    assert got == pytest.approx([0.45 / 0.519616, -0.45 / 0.519616, 0.45 / 0.519616, -0.45 / 0.519616], rel=1e-5)
    assert grpo([1.0, 0.1], AlgorithmConfig(norm_adv_by_std_in_grpo=False)) == pytest.approx([0.45, -0.45])


def test_a_group_without_spread_has_exactly_no_advantage() -> None:
    # 0.1 + 0.1 + 0.1 is not 0.3 in floats: a mean of equal scores may differ from them in the last bit
    for score in (0.1, 0.9, 1.0, 1 / 3):
        assert grpo([score] * 7, AlgorithmConfig()) == [0.0] * 7


def test_ppo_clip_by_hand() -> None:
    # ratios: e^0.5 = 1.6487 (A = 1: held at 1.3), e^-0.5 = 0.6065 (A = -1: held at 0.8), e^0 = 1 (A = 2: free)
    x = inputs([-1.0, -2.0, -3.0], [-1.5, -1.5, -3.0], [1.0, -1.0, 2.0])
    per_token, metrics = ppo_clip(x, LossConfig(clip_ratio_low=0.2, clip_ratio_high=0.3))
    assert per_token.tolist() == pytest.approx([-1.3, 0.8, -2.0], rel=1e-6)
    assert metrics["clip_fraction_high"].tolist() == [1, 0, 0]
    assert metrics["clip_fraction_low"].tolist() == [0, 1, 0]


def test_clipping_never_hides_a_worse_ratio() -> None:
    # A = 1 and ratio e^-0.5 = 0.6065: the unclipped term is the pessimistic one and stays
    per_token, metrics = ppo_clip(inputs([-2.0], [-1.5], [1.0]), LossConfig())
    assert per_token.tolist() == pytest.approx([-math.exp(-0.5)])
    assert metrics["clip_fraction_high"] + metrics["clip_fraction_low"] == 0


def test_policy_loss_with_kl_and_entropy_by_hand() -> None:
    # surrogate -1 (ratio 1, A 1); k3 with d = ref - lp = 0.2: e^0.2 - 0.2 - 1 = 0.0214028; entropy 0.5
    cfg = LossConfig(entropy_coeff=0.1, use_kl_loss=True, kl_loss_coef=0.5)
    loss, metrics = policy_loss(inputs([-1.0], [-1.0], [1.0], [-0.8]), cfg, denominator=4.0)
    assert float(loss) == pytest.approx((-1 - 0.1 * 0.5 + 0.5 * 0.0214028) / 4, rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(0.0214028, rel=1e-5)


def test_metrics_are_means_over_the_tokens_of_all_ranks_and_of_each_source() -> None:
    """Of a: tokens 1, 2 and 6, the last on another rank; of b: token 3."""
    first: dict[str, torch.Tensor] = {}
    add_up(first, {"x": torch.tensor([1.0, 2.0]), "x_max": torch.tensor([1.0, 2.0])}, ["a"], [2])
    add_up(first, {"x": torch.tensor([3.0]), "x_max": torch.tensor([3.0])}, ["b"], [1])
    second: dict[str, torch.Tensor] = {}
    add_up(second, {"x": torch.tensor([6.0]), "x_max": torch.tensor([6.0])}, ["b", "a"], [0, 1])
    found = means([{key: float(value) for key, value in one.items()} for one in (first, second)])
    assert found == {"x": 3.0, "x@a": 3.0, "x@b": 3.0, "x_max": 6.0, "x_max@a": 6.0, "x_max@b": 3.0}


def test_k3_is_never_negative_and_limited() -> None:
    values = k3(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -9.0, 30.0]))
    assert values.tolist() == pytest.approx([0.0, math.exp(-8) + 8 - 1, 10.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounded_to", [torch.float32, torch.bfloat16])
def test_k3_of_small_differences_is_never_negative_and_right(dtype: torch.dtype, rounded_to: torch.dtype) -> None:
    """exp(d) - d - 1 rounds below 0 for a third of the |d| < 1e-3, by up to 6e-8: more than d^2 / 2 itself.

    The error allowed: one unit in the last place of expm1(d), and half a unit of the result.
    """
    steps = 10 ** torch.linspace(-9, 1, 4001, dtype=torch.float64)
    d = torch.cat([steps, -steps])
    logprobs = torch.linspace(-12, 0, len(d)).to(rounded_to).to(dtype)
    ref = (logprobs.double() + d).to(rounded_to).to(dtype)
    got = k3(logprobs, ref)
    assert got.min() >= 0
    exact = (ref - logprobs).double()
    expected = (torch.expm1(exact) - exact).clamp(max=10)
    unit = torch.finfo(dtype).eps
    assert ((got.double() - expected).abs() <= 2 * unit * torch.maximum(exact.abs(), expected)).all()
    assert difference(ref, logprobs)["logprob_diff_k3"].clamp(max=10).equal(got)
    alone = k3(torch.zeros_like(d, dtype=dtype), d.to(dtype))  # differences down to 1e-9, which a sum rounds away
    assert alone.min() >= 0


def test_k3_is_not_negative_where_expm1_is_off_by_a_unit_in_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.expm1  # as CUDA's may be: its documentation grants one unit
    monkeypatch.setattr(torch, "expm1", lambda d: torch.nextafter(exact(d), torch.tensor(-math.inf)))
    d = torch.cat([torch.zeros(1), 10 ** torch.linspace(-12, -6, 1001)])
    assert k3(torch.zeros_like(d), d).min() == 0
    assert k3(d, torch.zeros_like(d)).min() == 0


def test_samples_carry_their_rollouts_advantage() -> None:
    def rollout(score: float) -> Rollout:
        return Rollout(
            id="r", token_ids=[1, 2], mask=[0, 1], logprobs=[0.0, -1.0], versions=[-1, 0], media=[], text="",
            finish_reason="stop", score=Score(total=score, parts={}),
        )  # fmt: skip

    group = Group(Example(id="r", messages=[], answer="", data_source=""), [rollout(0.0), rollout(1.0)])
    samples = to_samples(group, group_advantages(group, AlgorithmConfig(), "group"))
    # mean 0.5, std sqrt(0.5) = 0.70711
    assert [s.advantage for s in samples] == pytest.approx([-0.5 / 0.70711, 0.5 / 0.70711], rel=1e-4)
    assert samples[0].logprobs == [0.0, -1.0]


# ---- the backend: the same gradient, however the mini-batch is cut


@pytest.fixture(scope="module")
def setting(tiny: str, process_group: None):
    from timemaster.backends.fsdp import FsdpBackend
    from timemaster.config import Config
    from timemaster.tokens.render import Renderer

    config = Config()
    config.model.path = tiny
    config.data.min_pixels, config.data.max_pixels = 784, 50176
    config.actor.use_kl_loss, config.actor.entropy_coeff = True, 0.01
    config.model.enable_gradient_checkpointing = True
    backend = FsdpBackend(config, "cpu", num_updates=10, with_reference=False)
    return backend, random_samples(Renderer(tiny, backend.spec), num_prompts=4, group=2)


def gradients(setting, sizes: list[int], padded: bool) -> tuple[float, torch.Tensor]:
    """(loss, flat gradient) when the samples are cut into micro-batches of these sizes."""
    from timemaster.algo.losses import LossConfig
    from timemaster.tokens.batch import Collator

    backend, samples = setting
    backend.collate = Collator(backend.cfg.model.path, backend.spec, 0, padded)
    cfg = LossConfig(entropy_coeff=0.01, use_kl_loss=True, kl_loss_coef=0.01)
    backend.optimizer.zero_grad()
    total, cursor = 0.0, 0
    for size in sizes:
        loss = backend._loss(samples[cursor : cursor + size], trained_tokens(samples), 1.0, cfg, {})
        loss.backward()
        total += float(loss)
        cursor += size
    assert cursor == len(samples)
    flat = torch.cat([full(p.grad).flatten() for p in backend.policy.parameters() if p.grad is not None])
    return total, flat.clone()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 8, [2] * 4, [8], [3, 5]])
def test_gradients_do_not_depend_on_micro_batches_or_packing(setting, sizes: list[int], padded: bool) -> None:
    loss, gradient = gradients(setting, [8], padded=False)
    other_loss, other = gradients(setting, sizes, padded)
    assert gradient.norm() > 0
    assert abs(other_loss - loss) <= 1e-5 * abs(loss)
    assert (other - gradient).norm() <= 1e-5 * gradient.norm()


def test_each_source_has_its_own_supervised_loss(setting) -> None:
    from timemaster.tokens.batch import Collator

    backend, samples = setting
    backend.collate = Collator(backend.cfg.model.path, backend.spec, 0, False)

    def loss(some, sizes: list[int]) -> dict[str, float]:
        cuts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        micros = [some[a:b] for a, b in pairwise(cuts)]
        return backend.evaluate_sft(micros, trained_tokens(some))

    mixed = [replace(sample, data_source="ab"[i % 2]) for i, sample in enumerate(samples)]
    alone = {source: [s for s in mixed if s.data_source == source] for source in "ab"}
    found = loss(mixed, [3, 5])
    assert found.keys() >= {"loss", "entropy", "loss@a", "entropy@a", "loss@b", "entropy@b"}
    for source, own in alone.items():
        for name in ("loss", "entropy"):
            assert found[f"{name}@{source}"] == pytest.approx(loss(own, [4])[name], rel=1e-5)
    assert step_metrics(mixed, found, 1.0).keys() >= {"sft/loss", "sft/loss@a", "sft/entropy@b"}
    assert not [name for name in step_metrics(alone["a"], loss(alone["a"], [4]), 1.0) if "@" in name]


def test_a_rank_without_samples_joins_in_and_counts_nothing(setting) -> None:
    from timemaster.tokens.batch import Collator

    backend, samples = setting
    for padded in (False, True):
        backend.collate = Collator(backend.cfg.model.path, backend.spec, 0, padded)
        assert backend.logprobs([[]], "policy") == [[]]
        assert backend.evaluate_sft([[]], 1.0) == {}
        whole = backend.evaluate_sft([samples], trained_tokens(samples))
        assert backend.evaluate_sft([samples, []], trained_tokens(samples)) == pytest.approx(whole)


def test_logprobs_equal_transformers_own_forward(setting) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    from timemaster.tokens.batch import Collator

    backend, samples = setting
    backend.collate = Collator(backend.cfg.model.path, backend.spec, 0, padded=False)
    ours = backend.logprobs([samples[:4]], "policy")[0]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(backend.cfg.model.path)
    for sample, values in zip(samples[:4], ours, strict=True):
        ids = torch.tensor([sample.token_ids])
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                **backend.collate([sample]).images.inputs,
                mm_token_type_ids=(ids == backend.spec.image_token_id).int(),
            ).logits
        logits[..., list(backend.spec.banned_token_ids)] = -torch.inf
        reference = logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        expected = [float(reference[i - 1]) for i, trained in enumerate(sample.mask) if trained]
        assert values == pytest.approx(expected, abs=2e-5)


def test_a_tokens_own_temperature_takes_the_place_of_the_runs(setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of each sample at 0.5, and a sample without temperatures beside them: as two runs at one temperature each."""
    from dataclasses import replace

    backend, samples = setting

    def logprobs(some) -> list[list[float]]:
        return backend.logprobs([some], "policy")[0]

    warm = logprobs(samples)
    same = logprobs([replace(s, temperatures=[1.0] * len(s.token_ids)) for s in samples])
    assert same == warm
    monkeypatch.setattr(backend.cfg.rollout, "temperature", 0.5)
    cool = logprobs(samples)
    monkeypatch.undo()
    halves = [sum(s.mask) // 2 for s in samples]
    starts = [len(s.mask) - sum(s.mask) + half for s, half in zip(samples, halves, strict=True)]
    mixed = [
        replace(s, temperatures=[1.0] * start + [0.5] * (len(s.mask) - start))
        for s, start in zip(samples, starts, strict=True)
    ]
    expected = [w[:half] + c[half:] for w, c, half in zip(warm, cool, halves, strict=True)]
    for found, wanted in zip(logprobs([*mixed[:-1], samples[-1]]), [*expected[:-1], warm[-1]], strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
    assert warm[0] != pytest.approx(expected[0], abs=1e-2)


def test_an_image_is_processed_once_however_many_rollouts_show_it(setting) -> None:
    from timemaster.tokens.batch import Collator

    backend, samples = setting
    backend.collate = Collator(backend.cfg.model.path, backend.spec, 0, padded=False)
    backend.logprobs([samples[:4], samples[4:]], "policy")
    distinct = {media.uid for sample in samples for media in sample.media}
    assert backend.collate.pixels.num_processed == len(distinct)


def test_a_micro_batch_without_images_or_without_samples_takes_part(setting) -> None:
    from dataclasses import replace

    backend, samples = setting
    text_only = replace(samples[0], token_ids=[5, 6, 7, 8], mask=[0, 0, 1, 1], media=[], logprobs=[0, 0, -5.0, -5.0],
                        ref_logprobs=[0, 0, -5.0, -5.0])  # fmt: skip
    alone = backend.update([[text_only]], 2.0)
    assert math.isfinite(alone["loss"])
    assert alone["grad_norm"] > 0
    again = backend.logprobs([[text_only], []], "policy")
    assert len(again[0][0]) == 2
    assert again[1] == []


def test_every_rank_gets_as_many_micro_batches_and_no_sample_is_lost(setting) -> None:
    _, samples = setting
    for ranks in (1, 2, 3):
        for padded in (False, True):
            plan = spread(samples, ranks, max_tokens=120, padded=padded)
            assert len({len(micros) for micros in plan}) == 1
            assert sorted(i for micros in plan for micro in micros for i in micro) == list(range(len(samples)))
            for micro in (m for micros in plan for m in micros if len(m) > 1):
                lengths = [len(samples[i].token_ids) for i in micro]
                assert (max(lengths) * len(lengths) if padded else sum(lengths)) <= 120


def test_a_bfloat16_folder_gets_float32_masters_and_a_frozen_tower_stays_whole(cfg, process_group, tmp_path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    from timemaster.backends.fsdp import FsdpBackend

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(cfg.model.path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if Path(cfg.model.path, name).exists():
            shutil.copy(Path(cfg.model.path, name), tmp_path)
    cfg.model.path, cfg.model.freeze_vision_tower = str(tmp_path), True
    backend = FsdpBackend(cfg, "cpu", num_updates=10, with_reference=True)
    masters = {name: p for name, p in backend.policy.model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in masters.values())
    assert not any("visual" in name for name in masters)
    for name, parameter in model.named_parameters():
        if name in masters:
            assert full(masters[name].detach()).equal(parameter.float()), name
    frequencies = backend.policy.model.model.visual.rotary_pos_emb.inv_freq
    assert frequencies.equal(model.model.visual.rotary_pos_emb.inv_freq.float())
    text = Sample(id="text", token_ids=[5, 6, 7, 8], mask=[0, 0, 1, 1], media=[])
    policy, reference = (backend.logprobs([[text]], which)[0][0] for which in ("policy", "reference"))
    assert policy == pytest.approx(reference, abs=1e-6)


def test_the_entropy_of_a_sure_policy_is_not_negative(setting) -> None:
    """One logit far above the others. log Z - (mean logit), two numbers near 200 here, was wrong by 0.02."""
    backend, _ = setting
    generator = torch.Generator().manual_seed(1)
    weight = 50 * torch.randn(64, 16, generator=generator)
    hidden = torch.randn(2000, 16, generator=generator)
    banned = backend.policy.banned
    backend.policy.banned = torch.tensor([3])
    logprobs, entropy = backend.policy._head(hidden, weight, torch.zeros(2000, dtype=torch.long), 1.0, False)
    backend.policy.banned = banned
    logits = torch.nn.functional.linear(hidden.double(), weight.double()).index_fill(-1, torch.tensor([3]), -torch.inf)
    exact = torch.distributions.Categorical(logits=logits)
    assert entropy.min() >= 0
    assert (entropy - exact.entropy()).abs().max() < 1e-3
    assert logprobs.max() <= 0
    assert (logprobs - exact.logits[:, 0]).abs().max() < 1e-3


def test_entropy_has_a_gradient_only_when_it_is_trained(setting) -> None:
    backend, samples = setting
    _, entropy = backend.policy(backend.collate(samples[:2]), 1.0)
    assert not entropy.requires_grad
    _, entropy = backend.policy(backend.collate(samples[:2]), 1.0, train_entropy=True)
    assert entropy.requires_grad


def test_a_push_gathers_each_sharded_module_once_and_whole(setting) -> None:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from timemaster.models.weights import wanted_shapes

    backend, samples = setting
    backend.policy(backend.collate(samples[:2]), 1.0)  # without a backward pass: the root's weights stay gathered
    assert not isinstance(backend.policy.model.lm_head.weight, DTensor)
    backend.release()
    masters = dict(backend.policy.model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in masters.values())
    masters["lm_head.weight"] = backend.policy.model.lm_head.weight
    portions = list(backend.weights(tied_head=True))
    assert len(portions) == sum(isinstance(module, FSDPModule) for module in backend.policy.modules())
    pushed = [item for portion in portions for item in portion]  # a sender may hold tensors of several portions at once
    assert [(name, tuple(tensor.shape)) for name, tensor in pushed] == backend.weight_shapes(tied_head=True)
    assert all(tensor.equal(full(masters[name].detach())) for name, tensor in pushed)
    assert {name for name, _ in pushed} == wanted_shapes(backend.cfg.model.path).keys() | {"lm_head.weight"}
    assert "lm_head.weight" not in dict(backend.weight_shapes(tied_head=False))


def test_colocated_engines_take_gpus_of_one_node_each() -> None:
    from timemaster.workers.placement import share_gpus

    trainers = [("a", ["0"]), ("b", ["0"]), ("a", ["1"]), ("b", ["1"])]
    assert share_gpus(trainers, 2) == [("a", ["0", "1"]), ("b", ["0", "1"])]
    assert share_gpus(trainers, 1) == [("a", ["0"]), ("a", ["1"]), ("b", ["0"]), ("b", ["1"])]
    with pytest.raises(InputError, match="tensor_model_parallel_size=4 must divide the 2 trainer ranks of a node"):
        share_gpus(trainers, 4)
