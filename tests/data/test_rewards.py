"""Reading answers, the reward parts, and the score they make."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import timemaster
from timemaster.grpo import rollout_metrics
from timemaster.rewards import (
    RewardPart,
    accuracy,
    as_reward,
    check_parts,
    format_lenient,
    format_strict,
    load_function,
    predict_label,
    score,
    tag_contents,
)
from timemaster.rewards.extension import GENERIC
from timemaster.rewards.reward_part import RESERVED
from timemaster.types import Example, Group, InputError, Rollout, Score

LABELS = ("Desktop", "Laptop")
EXAMPLE = Example(id="test.parquet:7", messages=[], answer="Laptop", data_source="computer_dataset", extra={"index": 7})
GOLD = "<think>It rests low.</think><class>Laptop</class>"


def rollout(text: str) -> Rollout:
    return Rollout(
        id=EXAMPLE.id, token_ids=[], mask=[], logprobs=[], versions=[], media=[], text=text, finish_reason="stop"
    )


def test_tag_contents_are_in_order_and_unstripped():
    assert tag_contents("<class>A</class> x <class> B\n</class> <class>open", "class") == ["A", " B\n"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (GOLD, "Laptop"),
        ("<class> LAPTOP\n</class>", "Laptop"),
        ("<think><class>Desktop</class>? no</think><class>laptop</class>", "Laptop"),  # weighed in thought: no answer
        ("<think>a</think><class>Desktop</class><class>Laptop</class>", None),  # two answers are none
        ("<think><class>Laptop</class></think>", None),
        ("<think>maybe <class>Laptop</class>", None),  # the thought never ends
        ("<class>Laptop</class> <think>or not", "Laptop"),  # an answer, then an unfinished thought
        ("rests low</think><class>Laptop</class>", "Laptop"),  # some templates write the opening tag themselves
        ("<cla<think>x</think>ss>Laptop</class>", None),  # cutting the thought out must not join a tag …
        ("<class>Lap<think>Desktop</think>top</class>", None),  # … or a label
        ("<class>Laptop<think>x</think></class>", None),
        ("<class>Laptop</class><class>Desktop", None),  # a second answer was begun
        ("<class><class>Laptop</class>", None),
        ("<class>Laptop</class></class>", None),
        ("</class><class>Laptop", None),
        ("<class>Laptop", None),
        ("<class>Tablet</class>", None),
        ("<class>a Laptop</class>", None),
        ("Laptop", None),
        ("", None),
    ],
)
def test_predict_label(text: str, label: str | None):
    assert predict_label(text, LABELS) == label


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (GOLD, 1.0, 1.0),
        (" <think>a\nb</think>\n<class>Tablet</class>\n", 1.0, 0.0),  # well formed, no label
        ("<class>Laptop</class>", 0.0, 1.0),  # no think
        ("<class>Laptop</class><think>a</think>", 0.0, 1.0),  # wrong order
        ("<think> </think><class>Laptop</class>", 0.0, 1.0),  # empty think
        ("<think>a</think><class> </class>", 0.0, 0.0),  # empty class
        ("<think>a<class>Laptop</class></think>", 0.0, 1.0),  # nested
        ("<think>a</think><think>b</think><class>Laptop</class>", 0.0, 1.0),  # two thinks
        ("<think>a</think><class>Laptop</class><class>Laptop</class>", 0.0, 1.0),  # two classes
        ("So: <think>a</think><class>Laptop</class>", 0.0, 1.0),  # text outside
        ("<think>a</think><class>Laptop", 0.0, 0.0),  # cut off
    ],
)
def test_format_rules(text: str, strict: float, lenient: float):
    assert format_strict(rollout(text), EXAMPLE) == strict
    assert format_lenient(LABELS)(rollout(text), EXAMPLE) == lenient


def test_total_is_the_weighted_sum_and_parts_are_unweighted():
    parts = (RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict))
    assert score(rollout(GOLD), EXAMPLE, parts).total == pytest.approx(1.0)  # 0.9 * 1 + 0.1 * 1
    wrong = score(rollout(GOLD.replace("Laptop", "Desktop")), EXAMPLE, parts)
    assert wrong.total == pytest.approx(0.1)  # 0.9 * 0 + 0.1 * 1
    assert wrong.parts == {"accuracy": 0.0, "format": 1.0}
    assert score(rollout("<class>Laptop</class>"), EXAMPLE, parts).total == pytest.approx(0.9)  # 0.9 * 1 + 0.1 * 0


def test_factories_make_picklable_rewards():
    again = pickle.loads(pickle.dumps(accuracy(LABELS)))
    assert again(rollout(GOLD), EXAMPLE) == 1.0


def broken(rollout: Rollout, example: Example) -> float:
    raise KeyError("judge")


@pytest.mark.parametrize(
    "bad", [broken, lambda r, e: math.nan, lambda r, e: math.inf, lambda r, e: "1", lambda r, e: None]
)
def test_a_failing_part_names_example_part_and_cause_or_counts_zero(bad):
    parts = (RewardPart("format", 0.1, format_strict), RewardPart("judge", 0.5, bad))
    with pytest.raises(InputError, match=r"part 'judge' failed on example 'test.parquet:7'"):
        score(rollout(GOLD), EXAMPLE, parts)
    result = score(rollout(GOLD), EXAMPLE, parts, on_error="zero")
    assert result.total == pytest.approx(0.1)  # 0.1 * 1 + 0.5 * 0
    assert result.parts == {"format": 1.0, "judge": 0.0}
    assert "judge" in result.error
    assert "test.parquet:7" in result.error


def test_on_error_is_checked():
    with pytest.raises(InputError, match="raise, zero"):
        score(rollout(GOLD), EXAMPLE, (), on_error="ignore")


def test_verl_form_is_recognised_by_its_parameter_names():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        right = ground_truth in solution_str
        return {"score": 2.0 * right, "acc": right, "index": extra_info["index"], "pred": data_source}

    result = score(rollout(GOLD), EXAMPLE, (RewardPart("custom", 0.5, as_reward(compute_score)),))
    assert result.total == pytest.approx(1.0)  # 0.5 * 2.0
    assert result.parts == {"custom": 2.0, "custom/acc": 1.0, "custom/index": 7.0}  # "pred" is no number


@pytest.mark.parametrize("on_error", ["raise", "zero"])
def test_extras_that_are_no_number_are_left_out(on_error: str):
    more = {"pair": np.array([1.0, 2.0]), "huge": 10**400, "nan": math.nan, "none": None, "one": np.float32(0.5)}
    parts = (RewardPart("judge", 0.5, lambda rollout, example: {"score": 1.0} | more),)
    result = score(rollout(GOLD), EXAMPLE, parts, on_error)
    assert result.parts == {"judge": 1.0, "judge/one": 0.5}
    assert (result.total, result.error) == (0.5, "")


def test_a_dict_with_an_unusable_score_is_a_failure():
    parts = (RewardPart("judge", 0.5, lambda rollout, example: {"score": np.array([1.0, 2.0]), "acc": 1.0}),)
    result = score(rollout(GOLD), EXAMPLE, parts, "zero")
    assert result.parts == {"judge": 0.0}
    assert "a finite number is expected" in result.error


@pytest.mark.parametrize("names", [("a", "a"), ("a", ""), (" ",), ("a/b",), *((name,) for name in RESERVED)])
def test_parts_that_would_overwrite_each_other_in_the_log_are_refused(names: tuple[str, ...]):
    with pytest.raises(InputError, match="a name of its own"):
        check_parts([RewardPart(name, 1.0, format_strict) for name in names])


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_are_finite(weight: float):
    with pytest.raises(InputError, match="'format' has the weight"):
        check_parts([RewardPart("format", weight, format_strict)])


def test_the_reserved_names_are_those_of_the_training_step():
    scored = dataclasses.replace(rollout(GOLD), score=Score(total=0.0, parts={}))
    names = rollout_metrics([Group(EXAMPLE, [scored])], {})
    assert {name.removeprefix("reward/") for name in names if name.startswith("reward/")} == set(RESERVED)


def test_verl_form_may_give_a_float_and_take_fewer_parameters():
    reward = as_reward(lambda solution_str, ground_truth: float(ground_truth in solution_str))
    assert reward(rollout(GOLD), EXAMPLE) == 1.0
    assert as_reward(format_strict) is format_strict


class Grader:
    def __call__(self, rollout, example):
        return 1.0


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda text: 1.0, r"takes \(text\), and too many positional arguments; write it as \(rollout, example\)"),
        (lambda rollout, example, table: 1.0, "missing a required argument: 'table'"),
        (lambda rollout, example, *, table: 1.0, "missing a required argument: 'table'"),
        (lambda solution_str, ground_truth, tokenizer: 1.0, "missing a required argument: 'tokenizer'"),
        (lambda solution_str, ground_truth, /: 1.0, "positional only"),
        (Grader, "is a class: name an object"),
        (min, "has no signature to be read"),
    ],
)
def test_signatures_that_no_call_could_satisfy_are_refused(fn, why: str):
    with pytest.raises(InputError, match=why):
        as_reward(fn)


def test_a_recipes_part_that_no_call_could_satisfy_is_refused():
    with pytest.raises(InputError, match="missing a required argument: 'table'"):
        check_parts([RewardPart("own", 1.0, lambda rollout, example, table: 1.0)])


def test_a_part_may_be_an_object_or_take_more_that_has_a_default():
    for fn in (Grader(), lambda rollout, example, table=None: 1.0, lambda *args: 1.0):
        check_parts([RewardPart("own", 1.0, as_reward(fn))])


def test_load_function_from_module_and_file(tmp_path: Path):
    assert load_function("timemaster.rewards.parts:format_strict") is format_strict
    file = tmp_path / "mine.py"
    file.write_text(
        "def short(rollout, example):\n    return 1.0 if len(rollout.text) < 9 else 0.0\n", encoding="utf-8"
    )
    assert load_function(f"{file}:short")(rollout("brief"), EXAMPLE) == 1.0


def test_a_file_may_hold_what_looks_its_own_module_up(tmp_path: Path):
    text = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Answer:
    text: str
    kind: "ClassVar[str]" = "x"

def judge(rollout, example):
    return float(Answer(rollout.text).text == TEXT)
"""
    for folder, answer in (("a", "yes"), ("b", "no")):  # two files of one name stay apart
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "judge.py").write_text(f"{text}\nTEXT = {answer!r}\n", encoding="utf-8")
    yes, no = (load_function(f"{tmp_path / folder / 'judge.py'}:judge") for folder in ("a", "b"))
    assert [fn(rollout("yes"), EXAMPLE) for fn in (yes, no)] == [1.0, 0.0]
    assert pickle.loads(pickle.dumps(yes)) is yes


def reward_beside(folder: Path, value: float, neighbour: str, lazily: bool = False) -> str:
    """A reward file that imports from a file and a package beside it. Returns its path with the function."""
    (folder / f"{neighbour}_parts").mkdir(parents=True)
    (folder / f"{neighbour}_parts" / "__init__.py").write_text("", encoding="utf-8")
    (folder / f"{neighbour}_parts" / "deep.py").write_text(f"import {neighbour}\n", encoding="utf-8")
    (folder / f"{neighbour}.py").write_text(f"def value():\n    return {value}\n", encoding="utf-8")
    lines = [f"import {neighbour}_parts.deep", f"from {neighbour} import value"]
    function = ["def score(rollout, example):", *(f"    {line}" for line in lines * lazily), "    return value()"]
    text = "\n".join([*(lines * (not lazily)), *function])
    (folder / "reward.py").write_text(text + "\n", encoding="utf-8")
    return f"{folder}/reward.py:score"


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch):
    """Takes back what loading does to the search path and the loaded modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("lazily", [False, True])
def test_a_reward_imports_what_lies_beside_it(tmp_path: Path, as_it_was, lazily: bool):
    fn = load_function(reward_beside(tmp_path / "a", 0.25, "beside_a_reward", lazily))
    assert score(rollout(GOLD), EXAMPLE, [RewardPart("own", 1.0, fn)]).total == 0.25


def test_two_rewards_have_neighbours_of_one_name(tmp_path: Path, as_it_was):
    paths = [reward_beside(tmp_path / folder, value, "neighbour") for folder, value in (("a", 0.25), ("b", 0.75))]
    first, second = map(load_function, paths)
    again = load_function(paths[0])
    assert [fn(rollout(GOLD), EXAMPLE) for fn in (first, second, again)] == [0.25, 0.75, 0.25]


def test_a_neighbour_hides_an_installed_module_from_the_reward_alone(tmp_path: Path, as_it_was):
    import yaml  # loaded already

    fn = load_function(reward_beside(tmp_path / "a", 0.25, "yaml"))
    other = load_function(reward_beside(tmp_path / "b", 0.5, "tabulate"))  # installed or not, and not loaded yet
    late = load_function(reward_beside(tmp_path / "c", 0.75, "this"))  # of the standard library, not loaded yet
    assert [one(rollout(GOLD), EXAMPLE) for one in (fn, other, late)] == [0.25, 0.5, 0.75]
    assert sys.modules["yaml"] is yaml
    assert importlib.import_module("yaml.nodes").ScalarNode
    assert "this" not in sys.modules
    assert importlib.util.find_spec("this").origin != f"{tmp_path}/c/this.py"


def test_a_reward_beside_the_library_uses_the_library_that_is_loaded(tmp_path: Path, as_it_was):
    """As in a clone: the folder of the reward file holds timemaster/, too."""
    (tmp_path / "timemaster").symlink_to(Path(timemaster.__file__).parent)
    (tmp_path / "reward.py").write_text(
        "from timemaster.types import InputError\ndef score(rollout, example):\n    raise InputError('mine')\n",
        encoding="utf-8",
    )
    with pytest.raises(InputError, match="mine"):  # the same class, so the same module
        load_function(f"{tmp_path}/reward.py:score")(rollout(GOLD), EXAMPLE)


def test_the_processes_of_a_run_find_the_neighbours_from_wherever_they_start(tmp_path: Path):
    path = reward_beside(tmp_path / "a", 0.25, "neighbour")
    code = (
        "from timemaster.rewards import load_function\n"
        f"print(load_function({path!r})(None, None))"
    )  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(timemaster.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert (done.stdout, done.stderr) == ("0.25\n", "")


def test_a_file_that_exits_or_fails_when_it_is_imported_is_named(tmp_path: Path):
    for text, why in (
        ("import sys; sys.exit(3)", "SystemExit"),
        ("import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
        ("def score(rollout, example:", "SyntaxError"),
        ("raise BaseException('no')", "BaseException"),
    ):
        (tmp_path / "reward.py").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=f"importing .*reward.py' failed: .*{why}"):
            load_function(f"{tmp_path}/reward.py:score")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("timemaster.rewards", "package.module:function"),
        ("nowhere.at.all:f", "failed"),
        ("missing.py:f", "does not exist"),
        ("timemaster.rewards.parts:nothing", "format_strict"),
    ],
)
def test_load_function_says_what_is_wrong(path: str, message: str):
    with pytest.raises(InputError, match=message):
        load_function(path)


@pytest.mark.parametrize(
    "advice",
    [
        "Further tests are due.",
        "further  tests",
        "further\ntests",
        "Further\u00a0testing",
        "a further test",
        "FURTHER DIAGNOSTIC\tTESTING",
        "ask for the clinical\nhistory",
        "clinical histories",
        "a physical  exam",
        "physical examinations",
        "physically examine the person",
        "refer to specialist",
        "refer to the specialist",
        "referred to  a specialist",
        "referral to specialists",
        "referring to an\nspecialist",
        "confirm diagnosis",
        "confirming the diagnosis",
        "to confirm  a diagnosis",
        "confirmation of the diagnoses",
    ],
)
def test_generic_advice_is_seen_in_any_spacing_and_inflection(advice: str):
    assert GENERIC.search(advice)


@pytest.mark.parametrize(
    "advice",
    [
        "The peaks at reading 40 ask for a nerve conduction test.",
        "It goes further; tests of grip strength show how far.",
        "This refers to the flat stretch, special to this case.",
        "The late peak confirms what the diagnosis rests on.",
        "further testimony",
    ],
)
def test_advice_about_the_case_is_not_generic(advice: str):
    assert not GENERIC.search(advice)
