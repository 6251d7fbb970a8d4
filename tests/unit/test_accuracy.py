"""Which answers are right, and what is not known: without labels, with a reward's own word for it, on the console."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.helpers import answer_of, question
from timemaster.grpo import rollout_metrics
from timemaster.metrics.answers import Answer
from timemaster.metrics.classification import is_correct
from timemaster.metrics.intervals import wilson
from timemaster.metrics.summary import in_words
from timemaster.metrics.summary import summarise as summarise_items
from timemaster.types import Group, Rollout, Score

LABELS = ["Desktop", "Laptop"]


def answered(truth: str, predicted: str | None) -> Answer:
    right = float(truth == predicted)
    parts = {"accuracy": right, "format": float(predicted is not None)}
    return answer_of("computer_dataset", truth, predicted, LABELS, score=right, parts=parts, tokens=10)


def summarise(answers: list[Answer]) -> dict[str, Any]:
    return summarise_items([[answer] for answer in answers], {})


def rewarded(reward: float | None, source: str = "own", **more: float) -> Answer:
    """An answer of a task without labels, scored by a reward of the user's own."""
    parts = {} if reward is None else {"score": reward} | {f"score/{name}": value for name, value in more.items()}
    return answer_of(source, "42", None, [], score=reward, parts=parts, tokens=10)


@pytest.mark.parametrize("name", ["acc", "accuracy", "correct"])
def test_the_accuracy_that_a_reward_tells_is_the_accuracy(name: str) -> None:
    scaled = [rewarded(0.5, **{name: 1.0}), rewarded(0.5, **{name: 0.0}), rewarded(0.1, **{name: 1.0})]
    got = summarise([*scaled, rewarded(0.0)])  # the last failed, or was not worth a look
    assert got["accuracy"] == 2 / 4
    assert got["accuracy_ci95"] == list(wilson(2, 4))
    labelled = replace(rewarded(0.5, **{name: 1.0}), choices=tuple(LABELS))  # whose answers no label can be read in
    assert summarise([labelled])["accuracy"] == 1.0


def test_verls_acc_comes_before_other_names() -> None:
    assert is_correct(rewarded(0.5, correct=0.0, acc=1.0)) is True
    assert is_correct(rewarded(0.5, accuracy=1.0, acc=0.0)) is False


def test_without_labels_a_reward_of_0_and_1_is_an_accuracy_and_a_scaled_one_is_none() -> None:
    assert summarise([rewarded(1.0), rewarded(0.0), rewarded(None)])["accuracy"] == 1 / 3  # unknown is not right
    for others in ([rewarded(0.5)], [rewarded(-1.0)], [rewarded(1.5)]):
        got = summarise([rewarded(1.0), rewarded(0.0), *others])
        assert got["accuracy"] is got["accuracy_ci95"] is got["macro_f1"] is got["unparsed"] is None
    two = summarise([rewarded(0.5, "scaled"), answered("Desktop", "Desktop")])
    assert two["accuracy"] is None
    assert [two["by_data_source"][name]["accuracy"] for name in ("computer_dataset", "scaled")] == [1.0, None]
    assert summarise([rewarded(0.5, "scaled"), rewarded(0.5, "told", acc=1.0)])["accuracy"] is None
    assert summarise([rewarded(None)])["accuracy"] is summarise([])["accuracy"] is None


def test_several_samples_without_an_accuracy_have_no_pass_at_k() -> None:
    got = summarise_items([[rewarded(0.5), rewarded(0.1)]] * 3, {})
    assert (got["n"], got["accuracy"], got["accuracy_ci95"], got["pass_at_k"], got["majority"]) == (
        3,
        None,
        None,
        {},
        None,
    )
    assert got["reward_mean"] == pytest.approx(0.3)
    told = summarise_items([[rewarded(0.5, acc=1.0), rewarded(0.1, acc=0.0)]] * 3, {})
    assert (told["accuracy"], told["pass_at_k"]["2"]["value"]) == (0.5, 1.0)


def test_a_majority_vote_is_right_by_its_label_not_by_what_a_reward_says_of_one_sample() -> None:
    item = [
        replace(answered("Desktop", said), parts={"own/acc": float(said == "Desktop")})
        for said in ("Laptop", "Desktop", "Desktop")
    ]
    got = summarise_items([item], {})
    assert (got["accuracy"], got["majority"]["accuracy"]) == (pytest.approx(2 / 3), 1.0)


def test_the_console_tells_what_there_is_and_nothing_else() -> None:
    assert in_words(summarise([rewarded(0.5), rewarded(0.1)])) == "2 rows, reward 0.300, 10.0 tokens each"
    assert in_words(summarise([rewarded(0.5, acc=1.0)])).startswith("accuracy 1.000 [0.207, 1.000] of 1 rows, reward")
    assert in_words(summarise([answered("Desktop", "Desktop")])).endswith(
        "of 1 rows, macro F1 0.500, format 1.000, unparsed 0, reward 1.000, 10.0 tokens each"
    )


def test_a_steps_accuracy_is_what_the_reward_says() -> None:
    def group(*parts: dict[str, float]) -> Group:
        nothing: dict[str, Any] = {key: [] for key in ("token_ids", "mask", "logprobs", "versions", "media")}
        one = Rollout(id="r", text="", finish_reason="stop", **nothing)
        return Group(question("r", []), [replace(one, score=Score(total=0.5, parts=own)) for own in parts])

    assert (
        rollout_metrics([group({"score": 0.5, "score/acc": 1.0}, {"score": 0.5, "score/acc": 0.0})], {})[
            "reward/accuracy"
        ]
        == 0.5
    )
    assert (
        rollout_metrics([group({"accuracy": 1.0, "own/acc": 0.0})], {})["reward/accuracy"] == 1.0
    )  # a part has that name
    assert "reward/accuracy" not in rollout_metrics([group({"score": 0.5})], {})
