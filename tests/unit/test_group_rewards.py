"""Rewards that depend on other parts, see the whole group, are batched, or ask for images, tokens and parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import pytest

from tests.helpers import picture
from timemaster.judge import ChatRefused
from timemaster.rewards import RewardPart, Scorer, as_reward, check_parts, score
from timemaster.types import Example, InputError, Media, Rollout, Score, Turn

LIMIT = 30  # seconds after which a test has hung
EXAMPLE = Example(id="row", messages=[], answer="4", data_source="any")


def rollout(text: str, **fields: Any) -> Rollout:
    return Rollout(
        id="row", token_ids=[5, 6, 7, 8], mask=[0, 1, 0, 1], logprobs=[0.0] * 4, versions=[-1, 0, -1, 0], media=[],
        text=text, finish_reason="stop",
    ) if not fields else replace(rollout(text), **fields)  # fmt: skip


class Group:
    """A scorer with these parts, and one group that is scored."""

    def __init__(
        self, parts: list[RewardPart], num_rollouts: int, on_error: str = "raise", timeout: float = 0.0
    ) -> None:
        check_parts(parts)
        self.scorer = Scorer(lambda _: parts, on_error, num_threads=2, timeout=timeout)
        self.scoring = self.scorer.start_group(EXAMPLE, num_rollouts)

    def scores(self, *texts: str) -> list[Score]:
        futures = [self.scoring.add(i, rollout(text)) for i, text in enumerate(texts)]
        found = [future.result(LIMIT) for future in futures]
        return [one for one in found if one is not None]


@pytest.fixture
def group() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(*args: Any, **options: Any) -> Group:
        made.append(Group(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.scorer.close()


def right(rollout: Rollout, example: Example) -> float:
    return float(rollout.text == example.answer)


def length(rollout: Rollout, example: Example) -> float:
    return float(len(rollout.text))


def raises(rollout: Rollout, example: Example) -> float:
    raise KeyError("gone")


def unsettled(rollout: Rollout, example: Example) -> dict[str, Any]:
    return {"score": None, "reason": "the judge is away"}


class Calls:
    """A reward that counts its calls."""

    def __init__(self, value: Any = 1.0) -> None:
        self.value, self.texts = value, []  # type: ignore[var-annotated]

    def __call__(self, rollout: Rollout, example: Example) -> Any:
        self.texts.append(rollout.text)
        return self.value


# ---- dependencies


def test_a_part_is_called_only_if_the_parts_of_its_condition_are_above_zero(group: Callable[..., Group]) -> None:
    bonus = Calls(0.5)
    parts = [RewardPart("bonus", 2.0, bonus, only_if=("accuracy", "length")), RewardPart("accuracy", 1.0, right),
             RewardPart("length", -0.25, length)]  # fmt: skip
    scores = group(parts, 3).scores("4", "five", "")
    assert [one.parts["bonus"] for one in scores] == [0.5, 0.0, 0.0]
    assert bonus.texts == ["4"]
    # 2 * 0.5 + 1 * 1 - 0.25 * 1; -0.25 * 4; nothing
    assert [one.total for one in scores] == [1.75, -1.0, 0.0]
    assert list(scores[0].parts) == ["bonus", "accuracy", "length"]  # in the order of the recipe


def test_a_part_reads_the_values_of_the_parts_that_it_needs(group: Callable[..., Group]) -> None:
    def per_character(rollout: Rollout, example: Example, parts: dict[str, float]) -> float:
        assert set(parts) == {"accuracy", "length"}
        return parts["accuracy"] / parts["length"] - parts["length"]

    parts = [RewardPart("short", 1.0, per_character, only_if="length", needs="accuracy"),
             RewardPart("length", 0.0, length), RewardPart("accuracy", 0.0, right)]  # fmt: skip
    assert [one.total for one in group(parts, 3).scores("4", "five", "")] == [0.0, -4.0, 0.0]


def test_dependencies_form_chains_over_async_plain_and_group_parts(group: Callable[..., Group]) -> None:
    async def later(rollout: Rollout, example: Example) -> float:
        await asyncio.sleep(0.01)
        return float(rollout.text)

    def share(group: list[Rollout], example: Example, parts: list[dict[str, float]]) -> list[float]:
        total = sum(one["later"] for one in parts)
        return [one["later"] / total for one in parts]

    async def twice(rollout: Rollout, example: Example, *, parts: dict[str, float]) -> float:
        return 2 * parts["share"]

    parts = [RewardPart("twice", 1.0, twice, needs="share"), RewardPart("share", 0.0, share, needs="later"),
             RewardPart("later", 0.0, later)]  # fmt: skip
    assert [one.total for one in group(parts, 3).scores("1", "2", "5")] == [0.25, 0.5, 1.25]


def test_an_unknown_dependency_makes_a_part_unknown_and_a_false_condition_zero(group: Callable[..., Group]) -> None:
    bonus = Calls()
    parts = [RewardPart("accuracy", 1.0, right), RewardPart("judge", 1.0, unsettled),
             RewardPart("bonus", 1.0, bonus, only_if=("accuracy", "judge"))]  # fmt: skip
    first, second = group(parts, 2).scores("4", "5")
    assert first.unknown == ("judge", "bonus")
    assert "reward part 'bonus' is unknown: it depends on 'judge', which is unknown" in first.error
    assert (second.unknown, second.parts) == (("judge",), {"accuracy": 0.0, "bonus": 0.0})
    assert bonus.texts == []


def test_a_failed_dependency_counts_zero_or_ends_the_run(group: Callable[..., Group]) -> None:
    bonus = Calls()
    parts = [RewardPart("accuracy", 1.0, raises), RewardPart("bonus", 1.0, bonus, only_if="accuracy"),
             RewardPart("copy", 1.0, lambda rollout, example, parts: parts["accuracy"], needs="accuracy")]  # fmt: skip
    (one,) = group(parts, 1, "zero").scores("4")
    assert one.parts == {"accuracy": 0.0, "bonus": 0.0, "copy": 0.0}
    assert one.error == "reward part 'accuracy' failed on example 'row': KeyError: 'gone'"
    assert bonus.texts == []
    with pytest.raises(InputError, match="Reward part 'accuracy' failed on example 'row': KeyError: 'gone'"):
        group(parts, 1).scores("4")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([RewardPart("a", 1.0, right, only_if="b")], "'a' depends on 'b', which is no reward part here; there are 'a'"),
        ([RewardPart("a", 1.0, right, needs=("b", "c")), RewardPart("b", 1.0, right)], "'a' depends on 'c'"),
        ([RewardPart("a", 1.0, right, only_if="a")], "in a circle: a -> a"),
        (
            [RewardPart("a", 1.0, right, only_if="b"), RewardPart("b", 1.0, right, needs="c"),
             RewardPart("c", 1.0, right, needs="a")],
            "in a circle: a -> b -> c -> a|in a circle: b -> c -> a -> b|in a circle: c -> a -> b -> c",
        ),
        ([RewardPart("a", 1.0, lambda rollout, example, parts: 1.0)], "'a' takes `parts` but depends on none"),
    ],
)  # fmt: skip
def test_dependencies_that_cannot_be_met_are_found_at_load(parts: list[RewardPart], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_parts(parts)


def test_a_score_of_parts_whose_dependency_is_not_among_them_says_so() -> None:
    with pytest.raises(InputError, match="'a' depends on 'b'"):
        score(rollout("4"), EXAMPLE, [RewardPart("a", 1.0, right, only_if="b")])


# ---- the whole group


def test_a_part_sees_the_group_in_order_once_it_is_complete(group: Callable[..., Group]) -> None:
    def rank(rollout: Rollout, example: Example, *, group: list[Rollout]) -> float:
        return float(sorted(one.text for one in group).index(rollout.text)) + 10 * [g.text for g in group].index("b")

    first_is_done = Event()

    def alone(rollout: Rollout, example: Example) -> float:
        first_is_done.set()
        return 1.0

    one = group([RewardPart("rank", 1.0, rank), RewardPart("alone", 100.0, alone)], 3)
    last = one.scoring.add(2, rollout("a"))
    assert first_is_done.wait(LIMIT)  # what needs no group is called before the group is complete
    assert not last.done()
    middle, first = one.scoring.add(1, rollout("b")), one.scoring.add(0, rollout("c"))
    totals = [future.result(LIMIT).total for future in (first, middle, last)]  # type: ignore[union-attr]
    assert totals == [112.0, 111.0, 110.0]  # "b" is number 1, whatever was finished first


def test_a_batched_part_is_called_once_for_the_rollouts_of_its_condition(group: Callable[..., Group]) -> None:
    calls: list[list[str]] = []

    def shortest(group: list[Rollout], example: Example) -> Any:
        calls.append([one.text for one in group])
        least = min(len(one.text) for one in group)
        return np.array([float(len(one.text) == least) for one in group])

    parts = [RewardPart("long", 0.0, lambda rollout, example: len(rollout.text) > 1),
             RewardPart("shortest", 1.0, shortest, only_if="long")]  # fmt: skip
    scores = group(parts, 4).scores("abc", "a", "ab", "cd")
    assert calls == [["abc", "ab", "cd"]]
    assert [one.total for one in scores] == [0.0, 0.0, 1.0, 1.0]
    assert [one.total for one in group(parts, 2).scores("a", "b")] == [0.0, 0.0]
    assert len(calls) == 1  # nobody met the condition


def test_a_batched_part_may_be_async_and_give_dicts(group: Callable[..., Group]) -> None:
    async def graded(group: list[Rollout], example: Example) -> list[Any]:
        await asyncio.sleep(0)
        return [{"score": 0.5, "clarity": 2}, {"score": None, "reason": "no verdict"}, 1]

    first, second, third = group([RewardPart("graded", 1.0, graded)], 3).scores("a", "b", "c")
    assert first.parts == {"graded": 0.5, "graded/clarity": 2.0}
    assert (second.parts, second.unknown) == ({}, ("graded",))
    assert third.total == 1.0


def test_a_rollout_that_failed_is_not_scored_and_not_in_the_group(group: Callable[..., Group]) -> None:
    def size(group: list[Rollout], example: Example) -> list[int]:
        return [len(group)] * len(group)

    called = Calls()
    one = group([RewardPart("size", 1.0, size), RewardPart("own", 0.0, called)], 3)
    futures = [one.scoring.add(0, rollout("a")), one.scoring.add(1, rollout("b", failure="the sandbox is gone"))]
    futures.append(one.scoring.add(2, rollout("c")))
    found = [future.result(LIMIT) for future in futures]
    assert [score and score.total for score in found] == [2.0, None, 2.0]
    assert sorted(called.texts) == ["a", "c"]
    all_failed = group([RewardPart("size", 1.0, size)], 1)
    assert all_failed.scoring.add(0, rollout("a", failure="gone")).result(LIMIT) is None
    with pytest.raises(InputError, match="'row' has failed and cannot be scored: gone"):
        score(rollout("a", failure="gone"), EXAMPLE, [])


MISBEHAVING: dict[str, tuple[Callable[..., Any], str]] = {  # name -> (batched reward, what the error says)
    "too few": (lambda group, example: [1.0], r"2 values are expected, one per rollout, got 1: \[1.0\]"),
    "too many": (lambda group, example: [1.0] * 3, "2 values are expected, one per rollout, got 3"),
    "a number": (lambda group, example: 1.0, "a list of 2 values is expected, one per rollout, got 1.0"),
    "a dict": (lambda group, example: {"score": 1.0, "b": 2}, "a list of 2 values is expected"),
    "text": (lambda group, example: "12", "a list of 2 values is expected"),
    "a generator": (lambda group, example: (1.0 for _ in group), "a list of 2 values is expected"),
    "raises": (lambda group, example: [1 / 0], "ZeroDivisionError"),
    "never ends": (lambda group, example: Event().wait(), "it took longer than reward.timeout=0.2 seconds"),
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_a_batched_part_that_misbehaves_fails_for_all_its_rollouts(group: Callable[..., Group], name: str) -> None:
    fn, says = MISBEHAVING[name]
    parts = [RewardPart("own", 1.0, fn), RewardPart("right", 1.0, right)]
    timeout = 0.2 if name == "never ends" else 0.0
    scores = group(parts, 2, "zero", timeout).scores("4", "5")
    assert [one.total for one in scores] == [1.0, 0.0]
    for one in scores:
        assert "reward part 'own' failed on example 'row': " in one.error
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(one.error)
    with pytest.raises(InputError, match=says):
        group(parts, 2, "raise", timeout).scores("4", "5")


def test_one_value_of_a_batch_that_is_no_number_fails_alone(group: Callable[..., Group]) -> None:
    parts = [RewardPart("own", 1.0, lambda group, example: [1.0, float("nan"), None, {"acc": 1.0}])]
    scores = group(parts, 4, "zero").scores("a", "b", "c", "d")
    assert [one.total for one in scores] == [1.0, 0.0, 0.0, 0.0]
    assert [bool(one.error) for one in scores] == [False, True, True, True]
    assert "a finite number is expected, got nan" in scores[1].error


def test_a_refusing_judge_ends_the_run_from_a_batched_part(group: Callable[..., Group]) -> None:
    async def refused(group: list[Rollout], example: Example) -> list[float]:
        raise ChatRefused("no key")

    with pytest.raises(ChatRefused, match="no key"):
        group([RewardPart("own", 1.0, refused)], 2, "zero").scores("a", "b")


# ---- images, tokens, turns


def with_pictures() -> Rollout:
    """A picture in the prompt, one that the environment added, and a video."""
    video = Media(kind="video", uid="v", path="missing.mp4")
    turns = [Turn(kind="sampled", text="zoom", token_ids=[6]), Turn(kind="environment", text="", media=[picture(1)])]
    return rollout("4", media=[picture(0), picture(1, width=56), video], turns=turns, numbers={"zooms": 1.0})


async def area_async(rollout: Rollout, example: Example, images: list[Any]) -> float:
    await asyncio.sleep(0)
    return float(sum(image.width * image.height for image in images))


def area(group: list[Rollout], example: Example, images: list[list[Any]]) -> list[float]:
    return [float(sum(image.width * image.height for image in own)) for own in images]


def test_a_reward_is_given_the_pictures_decoded_and_the_sampled_tokens() -> None:
    def tokens_seen(rollout: Rollout, example: Example, tokens: list[int]) -> float:
        return float(sum(tokens))

    for fn in (area_async, area):
        assert score(with_pictures(), EXAMPLE, [RewardPart("area", 1.0, fn)]).total == 112 * 112 + 56 * 112
    assert score(with_pictures(), EXAMPLE, [RewardPart("tokens", 1.0, tokens_seen)]).total == 6 + 8
    broken = rollout("4", media=[Media(kind="image", uid="x", data=b"no picture")])
    for fn in (area_async, area):
        with pytest.raises(InputError, match="'area' failed on example 'row': UnidentifiedImageError"):
            score(broken, EXAMPLE, [RewardPart("area", 1.0, fn)])


def test_a_reward_sees_the_turns_and_changes_nothing_in_them() -> None:
    def greedy(rollout: Rollout, example: Example, group: list[Rollout]) -> float:
        kinds = [turn.kind for turn in rollout.turns]
        for one in (rollout, *group):
            one.turns[0].token_ids.clear()
            one.turns[1].media.clear()
            one.turns.clear()
            one.numbers.clear()
        return float(kinds == ["sampled", "environment"])

    one = with_pictures()
    assert score(one, EXAMPLE, [RewardPart("greedy", 1.0, greedy)]).total == 1.0
    assert one == with_pictures()


# ---- signatures


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (
            lambda rollout, example, pictures: 1.0,
            r"missing a required argument: 'pictures'; .* group, images, tokens, parts",
        ),
        (lambda group, example, weights: [1.0], "missing a required argument: 'weights'"),
        (lambda group: [1.0], "too many positional arguments"),
        (lambda rollout, images: 1.0, "'images' in the place of the rollout or the example"),
        (lambda images, example: 1.0, "'images' in the place of the rollout or the example"),
    ],
)
def test_parameters_that_no_reward_is_given_are_refused_at_load(fn: Callable[..., Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        as_reward(fn)
    with pytest.raises(InputError, match=f"(?s){says}"):
        check_parts([RewardPart("own", 1.0, fn)])
