"""README, docs and CONTRIBUTING: every link, path, command and setting that they name exists; README stays short."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from timemaster.__main__ import COMMANDS
from timemaster.config import Config
from timemaster.rewards import check_parts
from timemaster.types import FINISH_REASONS, Example, Rollout, Turn

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md",
    ROOT / "checkpoints" / "README.md", *sorted(DOCS.glob("*.md")),
]  # fmt: skip
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(
    r"(?<![\w./<>{}*…:$-])"  # not after a part that stands for any name, as in run_<name>.sh
    r"((?:[\w.-]+/)*[\w.-]+\.(?:py|sh|md|txt|toml|png|yml)|(?:timemaster|recipes|example|docs|tests|benchmarks)/[\w./-]*)"
    r"(?![\w<{*])"
)
# Files that the reader or a run makes, and files of datasets.
OTHERS = {
    "my_reward.py", "recipes/sleep.py", "calculator.py", "height.py", "compare.md", "compare.png", "confusion.png", "overview.png",
    "train/y_train.txt", "train/body_acc_x_train.txt",
}  # fmt: skip
SETTING = re.compile(
    r"(?<![\w.-])(?:data|model|algorithm|actor|rollout|reward|judge|eval|trainer)(?:\.[a-z_][a-z_0-9]*)+(?==|`|[^\w/(.]|$)"
)
NOT_SETTINGS = {"rollout.finish_reason", "rollout.numbers", "rollout.text", "rollout.turns", "trainer.json"}
WRITTEN = re.compile(r"`[^`\n]+`|```.*?```", re.DOTALL)  # what a page sets in code


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def words(text: str) -> int:
    """Words of the text as rendered, tables and pictures' descriptions included, code blocks not."""
    text = re.sub(r"<!--.*?-->", "", without_code(text), flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links and pictures: their text
    return len([word for word in re.split(r"[\s|]+", text) if re.search(r"\w", word)])


def test_words_are_counted_as_rendered() -> None:
    text = (
        "# One title\n\n```bash\nnot counted\n```\n| a | 0.5 % |\n|---|---|\n[two words](x.md) and `timemaster grpo`.\n"
    )
    assert words(text) == 9  # One title a 0.5 two words and timemaster grpo


def test_the_readme_is_short() -> None:
    assert words(text_of(ROOT / "README.md")) <= 1300


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(without_code(text_of(page))):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{shown(page)}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", text_of(file), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings], target


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_path_exists(page: Path) -> None:
    for code in WRITTEN.findall(text_of(page)):
        for path in PATH.findall(code):
            places = (ROOT / path, page.parent / path, ROOT / "timemaster" / path)
            assert path in OTHERS or any(place.exists() for place in places), f"{shown(page)}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_command_exists(page: Path) -> None:
    for code in WRITTEN.findall(text_of(page)):
        for name in re.findall(r"^(?:`|\w+=\S+ )?timemaster ([a-z]+)", code, re.MULTILINE):
            assert name in COMMANDS, f"{shown(page)}: timemaster {name}"
        for found in re.findall(r"python -m (timemaster(?:\.\w+)*)", code):
            if page.name != "CHANGELOG.md":  # which names modules of earlier versions
                path = ROOT / found.replace(".", "/")
                assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{shown(page)}: {found}"


def settings(node: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(node):
        yield prefix + item.name
        if is_dataclass(value := getattr(node, item.name)):
            yield from settings(value, f"{prefix}{item.name}.")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=shown)
def test_every_setting_exists(page: Path) -> None:
    known = {*settings(Config()), *NOT_SETTINGS}
    for code in WRITTEN.findall(text_of(page)):
        for name in SETTING.findall(code) if not code.startswith("```python") else ():
            assert name in known, f"{shown(page)}: {name}"


def test_the_training_step_of_the_readme_is_that_of_the_code() -> None:
    (step,) = re.findall(r"The loop is `timemaster/grpo.py`:\n\n```\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)
    code = text_of(ROOT / "timemaster" / "grpo.py").partition("def train(")[2]
    calls = re.findall(r"^([\w.]+\()", step, re.MULTILINE)
    assert len(calls) == step.count("\n")
    places = [code.find(call) for call in calls]
    assert -1 not in places, f"{calls[places.index(-1)]} is not in grpo.py"


def test_the_start_page_lists_every_page() -> None:
    listed = set(LINK.findall(text_of(DOCS / "README.md")))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= listed


def test_every_subcommand_is_described() -> None:
    text = "".join(map(text_of, PAGES))
    assert not [name for name in COMMANDS if f"timemaster {name}" not in text]


def test_the_reasons_why_a_rollout_ends_are_described() -> None:
    _, _, table = text_of(DOCS / "environments.md").partition("| `rollout.finish_reason` | why |")
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*FINISH_REASONS]


def run_file(page: str, name: str) -> dict[str, Any]:
    """What the code block of a page defines whose first line names its file."""
    (code,) = re.findall(rf"```python\n# {name}\n(.*?)```", text_of(DOCS / page), re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(code, name, "exec", dont_inherit=True), made)
    return made


def test_the_new_kind_of_task_is_measured_and_rewarded() -> None:
    task = run_file("tasks.md", "height.py")["TASK"]
    example = Example(id="a", messages=[], answer="0.5", data_source="height")
    texts = ("It is <value>0.75</value>", "It is high")
    found = [task.evaluation.outside_answer(example, text, task.evaluation.read(text)) for text in texts]
    assert [answer.numbers["error"] for answer in found] == [0.25, 1.0]  # |0.75 - 0.5|; not read
    empty: dict[str, Any] = {name: [] for name in ("token_ids", "mask", "logprobs", "versions", "media")}
    rollouts = [Rollout(id="a", text=text, finish_reason="stop", **empty) for text in texts]
    assert [task.rewards[0].fn(rollout, example) for rollout in rollouts] == [0.75, 0.0]  # 1 - 0.25
    assert task.evaluation.test_name == "sign-flip permutation test"


def test_the_environment_of_the_page_computes() -> None:
    one = run_file("environments.md", "calculator.py")["Calculator"](
        Example(id="a", messages=[], answer="3", data_source="sums")
    )
    reply = one.step(Turn(kind="sampled", text="So <sum>1 2</sum>.", stop="</sum>", overshoot="."))
    assert [part.text for part in reply.parts] == ["<result>3</result>"]
    assert (reply.done, reply.numbers, reply.error) == (False, {"calls": 1.0}, "")
    assert "'two'" in one.step(Turn(kind="sampled", text="<sum>1 two</sum>", stop="</sum>")).error
    assert one.step(Turn(kind="sampled", text="It is 3.")).done
    one.close()


def test_the_reward_parts_of_the_page_are_valid() -> None:
    (code,) = re.findall(r"```python\n(rewards = .*?)```", text_of(DOCS / "rewards.md"), re.DOTALL)

    def length(rollout: Rollout, example: Example) -> float:
        return float(len(rollout.text))

    def bonus(rollout: Rollout, example: Example, parts: dict[str, float]) -> float:
        return parts["accuracy"] * parts["format"]

    made: dict[str, Any] = {"LABELS": ("Desktop", "Laptop"), "length": length, "graded": length, "bonus": bonus}
    exec(f"from timemaster import *\n{code}", made)
    check_parts(made["rewards"])


@pytest.mark.parametrize("page", ["installation.md", "settings.md"])
def test_the_python_of_the_page_runs(page: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text_of(DOCS / page), re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
