"""vLLM and the hf engine against the trainer: the same tokens, the same log-probs, before and after a push of weights."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import spec_for
from tests.helpers import picture, question, random_samples, settled, trained_tokens
from timemaster.algo.advantages import to_samples
from timemaster.backends.fsdp import FsdpBackend
from timemaster.config import Config
from timemaster.environments import EnvironmentSpec
from timemaster.models.weights import wanted_shapes
from timemaster.rollout.engines import make_engine
from timemaster.rollout.loop import RolloutLoop
from timemaster.rollout.wire import pack
from timemaster.tokens.render import Renderer
from timemaster.types import Example, Group, InputError, Message, Part, Reply, Sampling, Score, Turn


class Setting:
    """One engine and one backend rank in this process, with the same weights at first."""

    def __init__(self, name: str, model: str) -> None:
        config = Config()
        config.model.path = model
        config.data.min_pixels, config.data.max_pixels = 784, 50176
        config.actor.optim.lr = 1e-2
        self.backend = FsdpBackend(config, "cpu", num_updates=10, with_reference=False)
        self.renderer = Renderer(model, self.backend.spec)
        self.engine = make_engine(name, replace(spec_for(model, self.renderer.end_of_turn), max_images=4))
        self.engine.init_weight_transfer_engine({})

    def push(self, without: str = "nothing") -> None:
        self.engine.start_weight_update()
        for layer in self.backend.weights(self.engine.own_head()):
            self.engine.update_weights({"chunk": pack([(name, w) for name, w in layer if without not in name])})
        self.engine.finish_weight_update()

    def rollouts(
        self,
        seed: str,
        environment: Callable[[Example], EnvironmentSpec | None] = lambda example: None,
        n: int = 4,
        names: Sequence[str] = ("one", "two", "text"),
    ) -> list[Group]:
        media = {"one": [picture(1)], "two": [picture(2, 140, 112), picture(3)], "text": []}
        examples = [question(name, media[name]) for name in names]
        jobs = [(example, self.renderer.prompt(example)) for example in examples]
        loop = RolloutLoop(
            engine=self.engine, renderer=self.renderer, score=settled(Score(total=0.0, parts={})),
            environment=environment, max_model_len=256,
        )  # fmt: skip
        return loop.run(jobs, Sampling(n=n, temperature=1.0, max_tokens=24), 0, seed)

    def difference(self, groups: list[Group]) -> np.ndarray:
        """|trainer - engine| log-prob of every sampled token."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        samples = [sample for group in groups for sample in to_samples(group, [0.0] * len(group.rollouts))]
        ours = [v for row in self.backend.logprobs([samples], "policy")[0] for v in row]
        theirs = [p for r in rollouts for p, m in zip(r.logprobs, r.mask, strict=True) if m]
        return np.abs(np.array(ours) - np.array(theirs))

    def train_a_little(self) -> None:
        samples = random_samples(self.renderer, num_prompts=2, group=2)
        self.backend.update([samples], trained_tokens(samples))


@pytest.fixture(scope="module", params=["hf", "vllm"])
def setting(request: pytest.FixtureRequest, tiny: str, process_group: None) -> Iterator[Setting]:
    import llvmlite.binding.ffi  # as numba does: vLLM's start must not trip over it

    one = Setting(request.param, tiny)
    assert sys.modules["llvmlite.binding.ffi"] is llvmlite.binding.ffi
    yield one
    del one.engine
    gc.collect()


def test_engine_and_trainer_agree_until_a_push_is_skipped(setting: Setting) -> None:
    setting.push()
    before = setting.difference(setting.rollouts("a"))
    assert before.mean() <= 1e-4
    assert before.max() <= 1e-2
    setting.train_a_little()
    stale = setting.difference(setting.rollouts("b"))
    assert stale.mean() > 1e-2, "the check has no teeth: skipping the push went unnoticed"
    setting.push()
    after = setting.difference(setting.rollouts("c"))
    assert after.mean() <= 1e-4
    assert after.max() <= 1e-2


def test_answers_are_reproducible_by_seed_and_differ_within_a_group(setting: Setting) -> None:
    first, again, other = (setting.rollouts(seed) for seed in ("s", "s", "t"))
    assert [r.token_ids for g in first for r in g.rollouts] == [r.token_ids for g in again for r in g.rollouts]
    assert [r.token_ids for g in first for r in g.rollouts] != [r.token_ids for g in other for r in g.rollouts]
    assert len({tuple(r.token_ids) for r in first[0].rollouts}) > 1


def test_vision_tokens_are_never_sampled(setting: Setting) -> None:
    banned = set(setting.backend.spec.banned_token_ids)
    groups = setting.rollouts("ban", n=16)
    sampled = {t for g in groups for r in g.rollouts for t, m in zip(r.token_ids, r.mask, strict=True) if m}
    assert len(sampled) > 100  # random weights: without the ban some of four in 376 would come up
    assert not sampled & banned


# Random weights complete one of these within a few tokens.
STOPS = tuple(a + b for a in "bcdfghjklmnprstvw" for b in "aeiou")


class Shows:
    """Answers the first two turns with an image each: inside the assistant's turn if a stop string ended it."""

    def __init__(self, example: Example) -> None:
        self.name, self.num_steps = example.id, 0

    def step(self, turn: Turn) -> Reply:
        self.num_steps += 1
        if self.num_steps == 3:
            return Reply(done=True)
        parts = [Part("text", text="Now: "), Part("image", media=picture(40 + self.num_steps, 112 + 28, 112))]
        is_inside = turn.stop and (self.name == "two" or (self.name == "text" and self.num_steps == 1))
        reply = Reply(parts=parts) if is_inside else Reply(messages=[Message("user", parts)])
        return replace(reply, temperature=0.7 if self.name == "text" else None)

    def close(self) -> None:
        pass


def test_images_that_arrive_in_turns_two_and_three_keep_parity(setting: Setting) -> None:
    """As new chat turns ("one"), inside the assistant's turn ("two"), and both ("text", at another temperature)."""
    before = setting.backend.policy.model.model.visual.blocks[0].mlp.up_proj.weight.detach().clone()
    setting.train_a_little()
    assert (setting.backend.policy.model.model.visual.blocks[0].mlp.up_proj.weight != before).any()
    setting.push()
    spec = EnvironmentSpec(make=Shows, stop=STOPS, max_images=2, max_segment_tokens=12)
    groups = setting.rollouts("turns", lambda example: spec, n=16)
    for group in groups:
        added = [len(r.media) - len(r.media[: len(group.example.messages[0].parts) - 1]) for r in group.rollouts]
        assert added.count(2) >= 4, group.example.id
        difference = setting.difference([group])
        assert difference.mean() <= 1e-4, group.example.id
        assert difference.max() <= 1e-2, group.example.id
    assert {r.temperatures is None for r in groups[0].rollouts + groups[1].rollouts} == {True}
    assert any(r.temperatures and set(r.temperatures) == {1.0, 0.7} for r in groups[2].rollouts)


def test_stop_strings_end_a_row_with_its_tokens_whole(setting: Setting) -> None:
    """Stop strings that a token completes midway and ones that several tokens spell; rows beside them go on."""
    setting.push()
    spec = EnvironmentSpec(make=lambda example: Stops(), stop=STOPS)
    groups = setting.rollouts("stops", lambda example: spec, n=32)
    turns = [rollout.turns[0] for group in groups for rollout in group.rollouts]
    spelt, overshot = 0, 0
    for turn in turns:
        text = setting.renderer.decode(turn.token_ids, skip_special_tokens=False)
        if turn.finish_reason != "stop_string":
            assert not any(stop in text for stop in STOPS)
            continue
        assert turn.stop in STOPS
        assert not any(stop in setting.renderer.decode(turn.token_ids[:-1]) for stop in STOPS)
        assert text == turn.text
        assert text.endswith(turn.stop + turn.overshoot)
        spelt += turn.stop not in setting.renderer.decode(turn.token_ids[-1:])
        overshot += bool(turn.overshoot)
    assert spelt
    assert overshot
    assert len({len(turn.token_ids) for turn in turns}) > 3
    assert setting.difference(groups).mean() <= 1e-4


class Stops:
    """Has nothing to say."""

    def step(self, turn: Turn) -> Reply:
        return Reply()

    def close(self) -> None:
        pass


def test_an_answer_depends_on_its_own_seed_alone(setting: Setting) -> None:
    setting.push()
    together, alone = setting.rollouts("own"), setting.rollouts("own", names=["two"])
    assert [r.token_ids for r in together[1].rollouts] == [r.token_ids for r in alone[0].rollouts]


def test_an_aborted_request_does_not_come_back(setting: Setting) -> None:
    prompt = setting.renderer.prompt(question("one", [picture(1)]))
    for key in ("a", "b", "c"):
        setting.engine.submit(key, prompt, Sampling(n=2, max_tokens=4))
    setting.engine.abort(["a", "c"])
    done = []
    while setting.engine.busy():
        done += setting.engine.step()
    assert [(key, len(answers)) for key, answers in done] == [("b", 2)]
    setting.engine.submit("a", prompt, Sampling(max_tokens=4))  # the key may be used again
    while setting.engine.busy():
        done += setting.engine.step()
    assert done[-1][0] == "a"


def test_a_wiped_engine_comes_back_whole(setting: Setting) -> None:
    setting.push()
    before, answers = setting.engine.checksums(), setting.rollouts("w")
    setting.engine.wipe_weights()
    assert setting.engine.checksums() != before
    setting.push()
    assert setting.engine.checksums() == before
    assert [r.token_ids for g in setting.rollouts("w") for r in g.rollouts] == [
        r.token_ids for g in answers for r in g.rollouts
    ]


def test_a_tied_head_is_sent_only_to_an_engine_that_keeps_a_copy(setting: Setting, request) -> None:
    assert setting.engine.own_head() == ("vllm" in request.node.name)  # packed, on CPU
    names = [name for layer in setting.backend.weights(setting.engine.own_head()) for name, _ in layer]
    assert names.count("lm_head.weight") == setting.engine.own_head()
    assert len(names) == len(set(names))


def test_an_update_that_lacks_weights_is_refused_by_name(tiny: str, setting: Setting) -> None:
    """Last of the engine's tests: the update stays unfinished."""
    missing = "model.language_model.layers.1.self_attn.k_proj.bias"  # of what vLLM merges into one tensor
    with pytest.raises(
        InputError, match=f"lacks 1 of {len(wanted_shapes(tiny)) + setting.engine.own_head()}: {missing}"
    ):
        setting.push(without=missing)


# ---- vLLM's plugin, where no GPU is needed to see that it fits


def test_the_ban_fits_both_of_vllms_model_runners(tiny: str) -> None:
    from types import SimpleNamespace

    from transformers import AutoConfig
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs

    from timemaster.rollout.vllm_plugins import BanVisionTokens

    (loaded,) = _load_v2_logitsprocs(["timemaster.rollout.vllm_plugins:BanVisionTokens"])  # raises if it does not fit
    assert loaded is BanVisionTokens
    assert issubclass(BanVisionTokens, LogitsProcessor)
    hf_config = AutoConfig.from_pretrained(tiny)
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config))
    state = SimpleNamespace(device=torch.device("cpu"))
    banned = [hf_config.image_token_id, hf_config.video_token_id]
    first, second = BanVisionTokens(vllm_config, torch.device("cpu"), False), BanVisionTokens(vllm_config, state)
    for out in (first.apply(torch.zeros(2, 640)), second.apply(torch.zeros(2, 640), SimpleNamespace())):
        assert out[:, banned].isinf().all()
        assert out.isfinite().sum() == 2 * (640 - 4)
    for one in (first, second):  # what a sleep discards: tensors, which vLLM has its memory pool make while it loads
        assert not [name for name, value in vars(one).items() if isinstance(value, torch.Tensor)]


def test_what_vllm_answers_to_sleep_wake_and_reset_is_looked_at() -> None:
    from types import SimpleNamespace

    from timemaster.rollout.vllm import VllmEngine
    from timemaster.types import Prompt

    engine: Any = VllmEngine.__new__(VllmEngine)
    engine._spec = SimpleNamespace(sleep_level=1)
    engine._arrivals = SimpleNamespace(check=lambda: None)
    core = SimpleNamespace(is_sleeping=lambda: True)
    engine._llm = SimpleNamespace(
        llm_engine=core, wake_up=lambda tags: False, finish_weight_update=lambda: None, reset_prefix_cache=lambda: False
    )
    engine.wake(["weights"])  # the caches sleep on
    with pytest.raises(RuntimeError, match="vLLM has not woken up"):
        engine.wake(["kv_cache"])
    with pytest.raises(RuntimeError, match="vLLM sleeps and would never answer"):
        engine.submit("0", Prompt(id="row", token_ids=[1], media=[]), Sampling())
    with pytest.raises(RuntimeError, match=r"kept its prefix cache .* requests are still running"):
        engine.finish_weight_update()


def test_vllms_head_follows_the_setting(tiny: str) -> None:
    """Read off the layer, in the configuration that vLLM makes for the language model inside this one."""
    from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    for name, dtype in (("float32", torch.float32), ("model", torch.bfloat16)):
        whole = VllmConfig(model_config=ModelConfig(model=tiny, dtype="bfloat16", hf_overrides={"head_dtype": name}))
        inner = whole.with_hf_config(whole.model_config.hf_config, architectures=["Qwen2ForCausalLM"])
        with set_current_vllm_config(inner):
            assert LogitsProcessor(640).head_dtype == dtype


def test_a_wipe_spares_what_is_never_sent() -> None:
    from types import SimpleNamespace

    from timemaster.rollout.vllm_plugins import WorkerExtension

    model = torch.nn.ModuleDict({"visual": torch.nn.Linear(2, 2), "language": torch.nn.Linear(2, 2)})
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace(get_model=lambda: model)
    worker.wipe_weights(["*visual.*"])
    assert model["visual"].weight.abs().sum() > 0
    assert model["language"].weight.abs().sum() == 0
    worker.wipe_weights([])
    assert model["visual"].weight.abs().sum() == 0


def test_the_hf_engine_samples_from_the_softmax_without_banned_tokens() -> None:
    """20,000 rows, a generator each; counts within 4 standard deviations of n p."""
    from timemaster.rollout.hf import Row, RowSampler

    n, temperature = 20_000, 0.7
    rows = [
        Row(sampling=Sampling(temperature=temperature, max_tokens=1), generator=torch.Generator().manual_seed(seed))
        for seed in range(n)
    ]
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 5.0])  # the last one is banned
    RowSampler(rows, [4], [99], lambda _: "")(torch.zeros(n, 1), logits.repeat(n, 1))
    counts = torch.bincount(torch.tensor([row.token_ids[0] for row in rows]), minlength=5)
    expected = torch.softmax(logits[:4] / temperature, 0)
    assert counts[4] == 0
    assert ((counts[:4] - n * expected).abs() < 4 * (n * expected * (1 - expected)).sqrt()).all()
    assert rows[0].logprobs[0] == pytest.approx(float(expected.log()[rows[0].token_ids[0]]), abs=1e-6)
