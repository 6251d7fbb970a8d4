"""Rollouts of several turns around environments: with a scripted engine, real threads and the real tokenizer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from tests.helpers import picture, question
from timemaster.algo.advantages import AlgorithmConfig, group_advantages, to_samples
from timemaster.environments import EnvironmentSpec, environment_metrics
from timemaster.rewards import RewardPart, Scorer
from timemaster.rollout.loop import RolloutLoop
from timemaster.rollout.progress import Request, stable_seed
from timemaster.system.calls import MAX_STUCK, CallsStuck
from timemaster.tokens.render import Renderer
from timemaster.types import (
    FINISH_REASONS,
    Completion,
    Example,
    Group,
    InputError,
    Message,
    Part,
    Prompt,
    Reply,
    Rollout,
    Sampling,
    Score,
    Turn,
)

LIMIT = 30.0  # seconds after which a wait has failed
STOP = "</code>"
CODE = ("<code>1</code>", "stop_string", STOP)
TURN = ("turn", "stop", "")


@pytest.fixture(scope="module")
def renderer(tiny: str) -> Renderer:
    from timemaster.models.folder import load_model_config
    from timemaster.models.vision import vision_spec

    return Renderer(tiny, vision_spec(load_model_config(tiny), 784, 50176))


class ScriptedEngine:
    """Answers turn k of every rollout with (text, finish reason, stop string) k of its script, one request a step."""

    def __init__(self, renderer: Renderer, *script: tuple[str, str, str]) -> None:
        self.script = [self._completion(renderer, *turn) for turn in script]
        self.queue: list[tuple[str, Prompt, Sampling]] = []
        self.seen: list[tuple[str, Prompt, Sampling]] = []
        self.aborted: list[str] = []
        self.num_steps = 0

    @staticmethod
    def _completion(renderer: Renderer, text: str, finish_reason: str, stop: str) -> Completion:
        token_ids = renderer.encode(text) + ([renderer.end_of_turn] if finish_reason == "stop" else [])
        logprobs = [-0.5] * len(token_ids)
        return Completion(token_ids=token_ids, logprobs=logprobs, finish_reason=finish_reason, stop=stop)

    def submit(self, key: str, prompt: Prompt, sampling: Sampling) -> None:
        self.queue.append((key, prompt, sampling))
        self.seen.append(self.queue[-1])

    def busy(self) -> bool:
        return bool(self.queue)

    def step(self) -> list[tuple[str, list[Completion]]]:
        self.num_steps += 1
        key, _, sampling = self.queue.pop(0)
        turn = int(key.split("/")[2]) if "/" in key else 0
        return [(key, [self.script[turn % len(self.script)]] * sampling.n)]

    def abort(self, keys: Sequence[str]) -> None:
        self.queue = [item for item in self.queue if item[0] not in keys]
        self.aborted += keys


class Replies:
    """An environment that gives `replies` in turn, and keeps what it was shown."""

    made: ClassVar[list[Replies]] = []

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies, self.shown, self.num_closed = list(replies), [], 0
        Replies.made.append(self)

    def step(self, turn: Turn) -> Reply:
        self.shown.append(turn)
        return self.replies.pop(0) if self.replies else Reply(done=True)

    def close(self) -> None:
        self.num_closed += 1


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    Replies.made = []


def replies(*given: Reply, **settings: Any) -> EnvironmentSpec:
    return EnvironmentSpec(make=lambda example: Replies(given), **settings)


def says(text: str, **more: Any) -> Reply:
    return Reply(messages=[Message("user", [Part("text", text=text)])], **more)


def shows(seed: int, inside: bool = False, **more: Any) -> Reply:
    parts = [Part("text", text="Look: "), Part("image", media=picture(seed))]
    return Reply(parts=parts, **more) if inside else Reply(messages=[Message("user", parts)], **more)


def loop_of(
    engine: Any, renderer: Any, spec: EnvironmentSpec | None, reward: Callable[..., Any] | None = None
) -> RolloutLoop:
    scorer = Scorer(lambda example: [RewardPart("own", 1.0, reward or (lambda rollout, example: 1.0))], "raise", 2)
    return RolloutLoop(
        engine=engine, renderer=renderer, score=scorer.start_group, environment=lambda example: spec, max_model_len=256
    )


def run(loop: RolloutLoop, n: int = 1, max_tokens: int = 100, examples: Sequence[Example] = ()) -> list[Group]:
    examples = examples or [question("row", [picture(1)])]
    jobs = [(example, loop.renderer.prompt(example)) for example in examples]
    return loop.run(jobs, Sampling(n=n, max_tokens=max_tokens), 3, "seed")


def sampled(rollout: Rollout) -> list[int]:
    return [token for token, is_sampled in zip(rollout.token_ids, rollout.mask, strict=True) if is_sampled]


def check_turns(rollout: Rollout, renderer: Renderer) -> None:
    """The turns are the rollout's tokens after the prompt, and its images."""
    own = [token for turn in rollout.turns for token in turn.token_ids]
    assert rollout.token_ids[-len(own) :] == own
    trained = [token for turn in rollout.turns if turn.kind == "sampled" for token in turn.token_ids]
    assert sampled(rollout) == trained
    lengths = [rollout.mask, rollout.logprobs, rollout.versions, rollout.temperatures or rollout.mask]
    assert {len(one) for one in lengths} == {len(rollout.token_ids)}
    assert rollout.media[1:] == [item for turn in rollout.turns if turn.token_ids for item in turn.media]


# ---- what is appended


def test_new_turns_with_an_image_are_appended_and_past_tokens_stay(renderer) -> None:
    engine = ScriptedEngine(renderer, ("zoom", "stop", ""), ("done", "stop", ""))
    (group,) = run(loop_of(engine, renderer, replies(shows(9), max_images=1)), n=2)
    rollout = group.rollouts[1]
    assert rollout.text == "zoom\ndone"
    assert rollout.finish_reason == "done"
    assert [media.uid for media in rollout.media] == [picture(1).uid, picture(9).uid]
    first, second = engine.seen[0][1], engine.seen[1][1]
    assert second.token_ids[: len(first.token_ids)] == first.token_ids
    assert rollout.token_ids[: len(second.token_ids)] == second.token_ids
    closing = [renderer.end_of_turn]
    assert sampled(rollout) == renderer.encode("zoom") + closing + renderer.encode("done") + closing
    assert all(logprob == 0.0 for logprob, m in zip(rollout.logprobs, rollout.mask, strict=True) if not m)
    assert {version for version, m in zip(rollout.versions, rollout.mask, strict=True) if m} == {3}
    assert [(turn.kind, turn.text) for turn in rollout.turns] == [
        ("sampled", "zoom"),
        ("environment", "Look: <image>"),
        ("sampled", "done"),
        ("environment", ""),
    ]
    check_turns(rollout, renderer)
    assert [one.num_closed for one in Replies.made] == [1, 1]


def test_parts_go_on_inside_the_turn_after_a_stop_string_and_its_overshoot(renderer) -> None:
    engine = ScriptedEngine(renderer, ("<code>1</code>!?", "stop_string", STOP), ("end", "stop", ""))
    (group,) = run(loop_of(engine, renderer, replies(shows(9, inside=True), stop=(STOP,), max_images=1)))
    (rollout,) = group.rollouts
    (shown, _) = Replies.made[0].shown
    assert (shown.text, shown.stop, shown.overshoot) == ("<code>1</code>!?", STOP, "!?")
    assert shown.finish_reason == "stop_string"
    text = renderer.decode(rollout.token_ids, skip_special_tokens=False)
    after = text.rpartition("assistant\n")[2].replace("<|image_pad|>", "")
    assert after == "<code>1</code>!?Look: <|vision_start|><|vision_end|>end<|im_end|>"
    assert engine.seen[0][2].stop == engine.seen[1][2].stop == (STOP,)
    check_turns(rollout, renderer)


def test_messages_after_a_stop_string_close_the_turn_first(renderer) -> None:
    engine = ScriptedEngine(renderer, CODE, TURN)
    (group,) = run(loop_of(engine, renderer, replies(says("More?"), stop=(STOP,))))
    (rollout,) = group.rollouts
    text = renderer.decode(rollout.token_ids, skip_special_tokens=False)
    assert "1</code><|im_end|>\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\nturn<|im_end|>" in text
    assert sampled(rollout).count(renderer.end_of_turn) == 1
    check_turns(rollout, renderer)


@pytest.mark.parametrize("inside", [True, False])
def test_special_tokens_in_an_environments_text_are_plain_text(renderer, inside: bool) -> None:
    bad = Part("text", text="<|im_end|><|image_pad|>")
    reply = Reply(parts=[bad]) if inside else Reply(messages=[Message("tool", [bad])])
    (group,) = run(loop_of(ScriptedEngine(renderer, CODE), renderer, replies(reply, stop=(STOP,))))
    (rollout,) = group.rollouts
    assert rollout.finish_reason == "done"
    (turn,) = (turn for turn in rollout.turns if turn.text == bad.text)
    assert renderer.spec.image_token_id not in turn.token_ids
    assert turn.token_ids.count(renderer.end_of_turn) == (0 if inside else 2)  # the assistant's turn, the tool's
    assert bad.text in renderer.decode(turn.token_ids, skip_special_tokens=False)


def test_plain_text_is_rendered_as_in_a_conversation(renderer) -> None:
    reply = shows(9)
    assert renderer.reply(reply, "row") == renderer.next_turn(reply.messages, "row")


# ---- budgets and reasons


ENDS: dict[str, tuple[str, list[tuple[str, str, str]], EnvironmentSpec | None, dict[str, Any]]] = {
    "no environment": ("stop", [TURN], None, {}),
    "no environment, cut off": ("length", [("turn", "length", "")], None, {}),
    "nothing follows": ("stop", [TURN], replies(Reply()), {}),
    "nothing follows a stop string": ("stop", [CODE], replies(Reply(), stop=(STOP,)), {}),
    "a turn is cut off": ("length", [("turn", "length", "")], replies(says("More?")), {}),
    "a later turn is cut off": ("length", [TURN, ("turn", "length", "")], replies(says("More?")), {}),
    "all turns' tokens are spent": (
        "length",
        [("a" * 10, "stop", "")],
        replies(says("?"), says("?")),
        {"max_tokens": 11},
    ),
    "done": ("done", [TURN], replies(says("unseen", done=True)), {}),
    "turns": ("max_turns", [TURN], replies(*[says("?")] * 5, max_turns=3), {}),
    "images": ("max_images", [TURN], replies(shows(8), shows(9), max_images=1), {}),
    "no images": ("max_images", [TURN], replies(shows(8)), {}),
    "sequence": ("no_room", [TURN], replies(says("word " * 200)), {}),
    "failure": ("failure", [TURN], replies(says("?"), Reply(failure="the sandbox is gone")), {}),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_reason_why_a_rollout_ended_is_right(renderer, name: str) -> None:
    reason, script, spec, limits = ENDS[name]
    loop = loop_of(ScriptedEngine(renderer, *script), renderer, spec)
    (group,) = run(loop, **limits)
    (rollout,) = group.rollouts
    assert rollout.finish_reason == reason
    assert rollout.has_environment == (spec is not None)
    assert len(rollout.token_ids) <= 256
    check_turns(rollout, renderer)
    assert [one.num_closed for one in Replies.made] == [1] * len(Replies.made)


def test_every_reason_is_tested() -> None:
    assert {reason for reason, *_ in ENDS.values()} == FINISH_REASONS.keys()


def test_each_turn_has_its_budget_and_its_sampling(renderer) -> None:
    spec = replies(
        says("?"), says("?", max_tokens=3, temperature=0.5, stop=("x",)), says("?"), max_segment_tokens=7, stop=(STOP,)
    )
    engine = ScriptedEngine(renderer, ("aaaa", "stop", ""))
    size = len(engine.script[0].token_ids)
    (group,) = run(loop_of(engine, renderer, spec), max_tokens=4 * size - 1)
    (rollout,) = group.rollouts
    used = [sampling for *_, sampling in engine.seen]
    assert [s.max_tokens for s in used] == [7, 7, 3, min(7, size - 1)]
    assert [s.temperature for s in used] == [1.0, 1.0, 0.5, 1.0]
    assert [s.stop for s in used] == [(STOP,), (STOP,), ("x",), (STOP,)]
    turns = [turn for turn in rollout.turns if turn.kind == "sampled"]
    assert [turn.sampling for turn in turns] == used
    assert rollout.temperatures is not None
    at = {t for t, m, s in zip(rollout.temperatures, rollout.mask, rollout.token_ids, strict=True) if m}
    assert at == {0.5, 1.0}
    (sample,) = to_samples(group, [1.0])
    assert sample.temperatures == rollout.temperatures


def test_seeds_are_of_the_example_the_answer_and_the_turn_alone(renderer) -> None:
    def seeds(*names: str) -> dict[str, list[int | None]]:
        engine = ScriptedEngine(renderer, TURN)
        run(loop_of(engine, renderer, replies(says("?"))), n=2, examples=[question(name, []) for name in names])
        return {name: sorted(s.seed or 0 for _, prompt, s in engine.seen if prompt.id == name) for name in names}

    together = seeds("a", "b")
    assert seeds("b")["b"] == together["b"]
    assert together["a"] == sorted([stable_seed("seed/a"), stable_seed("seed/a/0/1"), stable_seed("seed/a/1/1")])
    assert len(set(together["a"] + together["b"])) == 6


# ---- failures of the infrastructure


class Raises(Replies):
    def step(self, turn: Turn) -> Reply:
        raise ConnectionError("the sandbox is gone")


class Exits(Replies):
    def step(self, turn: Turn) -> Reply:
        raise SystemExit(3)


class Hangs(Replies):
    let_go = threading.Event()

    def step(self, turn: Turn) -> Reply:
        self.let_go.wait()
        return Reply(done=True)


class HangsAsync(Replies):
    async def step(self, turn: Turn) -> Reply:  # type: ignore[override]
        await asyncio.sleep(1000)
        return Reply(done=True)


def gives(what: Any, **settings: Any) -> EnvironmentSpec:
    return EnvironmentSpec(make=lambda example: Replies([what]), **settings)


def no_room_left(example: Example) -> Replies:
    raise OSError("no space")


def broken_image() -> Reply:
    return Reply(messages=[Message("user", [Part("image", media=replace(picture(1), data=b"no picture"))])])


FAILURES: dict[str, tuple[str, EnvironmentSpec]] = {
    "step raises": ("ConnectionError: the sandbox is gone", EnvironmentSpec(make=lambda example: Raises([]))),
    "step exits": ("SystemExit: 3", EnvironmentSpec(make=lambda example: Exits([]))),
    "make raises": ("OSError: no space", EnvironmentSpec(make=no_room_left)),
    "step hangs": (
        "it took longer than EnvironmentSpec.timeout=0.1 seconds",
        EnvironmentSpec(make=lambda example: Hangs([]), timeout=0.1),
    ),
    "async step hangs": (
        "it took longer than EnvironmentSpec.timeout=0.1 seconds",
        EnvironmentSpec(make=lambda example: HangsAsync([]), timeout=0.1),
    ),
    "says so": ("the sandbox is gone", gives(Reply(failure="the sandbox is gone"))),
    "no reply": ("step gives a Reply, not None", gives(None)),
    "both": ("messages and parts", gives(Reply(messages=[Message("user", [])], parts=[Part("text")]))),
    "parts after the end of the turn": ("the policy had ended its turn", gives(shows(1, inside=True))),
    "greedy": ("Reply.temperature is 0", gives(says("?", temperature=0))),
    "no number": ("could not convert", gives(says("?", numbers={"a": "b"}))),
    "not finite": ("Reply.numbers has 'a': nan", gives(says("?", numbers={"a": float("nan")}))),
    "reserved": ("none called", gives(says("?", numbers={"errors": 1.0}))),
    "broken image": ("UnidentifiedImageError", gives(broken_image(), max_images=1)),
    "video": ("part of kind 'video'", gives(Reply(messages=[Message("user", [Part("video")])]))),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_ends_the_rollout_unscored_and_named(renderer, name: str) -> None:
    why, spec = FAILURES[name]
    scored: list[str] = []
    loop = loop_of(ScriptedEngine(renderer, TURN), renderer, spec, lambda rollout, example: scored.append("x") or 1.0)
    (group,) = run(loop, n=2)
    for rollout in group.rollouts:
        assert rollout.finish_reason == "failure"
        assert why in rollout.failure
        assert "'row'" in rollout.failure
        assert rollout.score == Score(total=0.0, parts={}, error=rollout.failure, unknown=("environment",))
    assert scored == []
    assert [one.num_closed for one in Replies.made] == [1] * (0 if name == "make raises" else 2)


def test_a_failure_leaves_out_its_rollout_alone() -> None:
    def rollout(total: float, failure: str = "", unknown: tuple[str, ...] = ()) -> Rollout:
        return Rollout(
            id="r", token_ids=[1], mask=[1], logprobs=[0.0], versions=[0], media=[], text="", finish_reason="stop",
            failure=failure, score=Score(total=total, parts={}, unknown=("environment",) if failure else unknown),
        )  # fmt: skip

    centred = AlgorithmConfig(norm_adv_by_std_in_grpo=False)
    group = Group(question("r", []), [rollout(1.0), rollout(0.0, failure="gone"), rollout(3.0)])
    centred = AlgorithmConfig(norm_adv_by_std_in_grpo=False)
    for on_unknown in ("rollout", "group"):
        assert group_advantages(group, centred, on_unknown) == [-1.0, None, 1.0]
    judged = Group(group.example, [*group.rollouts, rollout(0.0, unknown=("judged",))])
    assert group_advantages(judged, centred, "rollout") == [-1.0, None, 1.0, None]
    assert group_advantages(judged, centred, "group") == [None] * 4


def test_too_many_steps_that_never_end_end_the_run(renderer) -> None:
    spec = EnvironmentSpec(make=lambda example: Hangs([]), timeout=0.05)
    with pytest.raises(CallsStuck, match=f"as {MAX_STUCK} calls before it"):
        run(loop_of(ScriptedEngine(renderer, TURN), renderer, spec), n=MAX_STUCK + 1)


def test_a_close_that_fails_is_said_and_changes_nothing(renderer, caplog) -> None:
    class Stays(Replies):
        def close(self) -> None:
            raise OSError("it stays")

    spec = EnvironmentSpec(make=lambda example: Stays([]))
    (group,) = run(loop_of(ScriptedEngine(renderer, TURN), renderer, spec))
    assert group.rollouts[0].score == Score(total=1.0, parts={"own": 1.0})
    said = "closing the environment Stays of example 'row' failed: OSError: it stays"
    until = time.monotonic() + LIMIT  # the thread that closed it writes the message; the group does not wait for that
    while said not in caplog.text and time.monotonic() < until:
        time.sleep(0.01)
    assert said in caplog.text


# ---- beside decoding


@pytest.mark.parametrize("is_async", [False, True])
def test_steps_of_all_rollouts_run_at_once(renderer, is_async: bool) -> None:
    """Every step waits until all 16 are in flight."""
    here, here_async = threading.Barrier(16), asyncio.Barrier(16)

    class Plain(Replies):
        def step(self, turn: Turn) -> Reply:
            here.wait(LIMIT)
            return super().step(turn)

    class Async(Replies):
        async def step(self, turn: Turn) -> Reply:  # type: ignore[override]
            await asyncio.wait_for(here_async.wait(), LIMIT)
            return Replies.step(self, turn)

    spec = EnvironmentSpec(make=lambda example: (Async if is_async else Plain)([says("?"), says("?")]))
    (group,) = run(loop_of(ScriptedEngine(renderer, TURN), renderer, spec), n=16)
    assert [rollout.finish_reason for rollout in group.rollouts] == ["done"] * 16


def test_others_are_decoded_while_a_step_runs_and_nothing_spins_when_none_is_left(renderer) -> None:
    engine, decoded = ScriptedEngine(renderer, TURN), threading.Event()

    class Waits(Replies):
        def step(self, turn: Turn) -> Reply:
            assert decoded.wait(LIMIT), "nothing else was decoded"
            threading.Event().wait(0.3)
            return super().step(turn)

    def spec_of(example: Example) -> EnvironmentSpec | None:
        return EnvironmentSpec(make=lambda example: Waits([])) if example.id == "slow" else None

    loop = loop_of(engine, renderer, None)
    loop.environment = spec_of
    for k, name in enumerate(("slow", "other")):
        prompt = renderer.prompt(question(name, []))
        loop.add(Request(key=k, example=question(name, []), prompt=prompt, sampling=Sampling(), version=0, seed="s"))
    assert loop.num_unfinished() == 2
    done, num_calls = [], 0
    while loop.num_open():
        done += [key for key, _ in loop.advance()]
        num_calls += 1
        if engine.num_steps == 2:
            decoded.set()
    assert sorted(done) == [0, 1]
    assert num_calls <= 8  # two steps of the engine, a reply, two scores, a close
    assert loop.num_unfinished() == 0
    assert loop.advance() == []


def test_abandon_aborts_requests_and_closes_every_environment_once(renderer) -> None:
    engine, let_go, began = ScriptedEngine(renderer, TURN), threading.Event(), threading.Semaphore(0)

    class Slow(Replies):
        def step(self, turn: Turn) -> Reply:
            began.release()
            let_go.wait(LIMIT)
            return says("too late")

    def make(example: Example) -> Replies:
        if example.id == "late":
            began.release()
            let_go.wait(LIMIT)
        return Slow([])

    loop = loop_of(engine, renderer, EnvironmentSpec(make=make))
    for k, name in enumerate(("stepping", "late", "decoding")):
        example = question(name, [])
        prompt = renderer.prompt(example)
        loop.add(Request(key=k, example=example, prompt=prompt, sampling=Sampling(n=2), version=0, seed="s"))
    for _ in range(2):
        loop.advance()
    for _ in range(4):
        assert began.acquire(timeout=LIMIT)
    assert loop.num_unfinished() == 6
    loop.abandon()
    assert engine.aborted == ["2"]
    assert not engine.busy()
    assert loop.num_open() == 0
    assert [one.num_closed for one in Replies.made] == [1, 1]
    let_go.set()
    for _ in range(1000):  # the late ones are closed as soon as they are made
        if [one.num_closed for one in Replies.made] == [1] * 4:
            break
        threading.Event().wait(0.01)
    assert [one.num_closed for one in Replies.made] == [1] * 4
    assert not began.acquire(blocking=False), "an environment was stepped after it was closed"
    (group,) = run(loop_of(engine, renderer, None))
    assert group.rollouts[0].finish_reason == "stop"


def test_async_make_and_close_are_awaited(renderer) -> None:
    class Async(Replies):
        async def close(self) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            self.num_closed += 1

    async def make(example: Example) -> Replies:
        await asyncio.sleep(0)
        return Async([says("?")])

    (group,) = run(loop_of(ScriptedEngine(renderer, TURN), renderer, EnvironmentSpec(make=make)), n=2)
    assert [rollout.finish_reason for rollout in group.rollouts] == ["done", "done"]
    assert [one.num_closed for one in Replies.made] == [1, 1]


# ---- the record


def test_numbers_errors_failures_and_turns_are_metrics(renderer) -> None:
    spec = replies(
        says("?", numbers={"steps": 1, "lines": 4}, error="NameError"), Reply(done=True, numbers={"steps": 2})
    )
    (group,) = run(loop_of(ScriptedEngine(renderer, TURN), renderer, spec), n=3)
    failed = replace(group.rollouts[0], numbers={}, failure="gone")
    assert environment_metrics([Group(group.example, [*group.rollouts, failed])]) == {
        "environment/errors": 4.0,
        "environment/failures": 1.0,
        "environment/turns_mean": 2.0,
        "environment/steps": 2.0,
        "environment/lines": 4.0,
    }
    plain = replace(failed, has_environment=False, turns=failed.turns[:1])
    assert environment_metrics([Group(group.example, [plain])]) == {}
    assert [turn.error for turn in group.rollouts[0].turns] == ["", "NameError", "", ""]


@pytest.mark.parametrize(
    ("field", "value"), [("max_turns", 0), ("max_images", -1), ("timeout", -1.0), ("stop", ("",)), ("stop", "</code>")]
)
def test_a_spec_checks_itself(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"EnvironmentSpec: {field} is"):
        EnvironmentSpec(make=Replies, **{field: value})  # type: ignore[arg-type]
