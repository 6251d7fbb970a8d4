"""The report of a run, opened and clicked through in headless Chromium."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import report_speed
from tests.e2e.report_heights import make_heights_run
from tests.e2e.report_run import BROWSERS, chromium, make_run
from timemaster.config import Config
from timemaster.results.report import images
from timemaster.results.report.__main__ import main
from timemaster.results.report.page import write_report
from timemaster.results.report.rollouts import thinned
from timemaster.types import InputError

ROOT = Path(__file__).resolve().parents[2]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the dev packages")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=chromium())
        except playwright.Error as error:
            if "Executable doesn't exist" not in str(error):
                raise
            pytest.skip(f"no Chromium: bash tests/chromium.sh installs one, CHROMIUM=FILE names one ({BROWSERS})")
        yield started
        started.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page from disk. At the end: no script failed, and nothing but the page itself was asked for."""
    pages, problems, requests = [], [], []

    def open_page(path: Path, width: int = 1280) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url) if request.url[:5] != "data:" else None)
        page.set_default_timeout(20_000)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []
    assert all(re.search(r"\.html$|/rollouts/media/\w+$", url) and url.startswith("file:") for url in requests), (
        requests
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rollouts over 50 steps, with its report."""
    folder = make_run(tmp_path_factory.mktemp("checkpoints") / "run")
    write_report(folder)
    return folder


def logged(run: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in (run / "rollouts").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def wait_until(page: Any, condition: str) -> None:
    """Wait for a JavaScript condition. Playwright's wait_for_function evaluates it in the page, which the CSP forbids."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within 20 s: {condition}")


def shown(page: Any) -> int:
    return int(page.inner_text("#status").split(" of ")[0].replace(",", ""))


def write_rows(folder: Path, *rows: dict[str, Any]) -> Path:
    """A run's folder with one step of rollouts."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n', encoding="utf-8")
    (folder / "rollouts" / "step_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_filters_change_the_counts(run: Path, show: Callable[..., Any]) -> None:
    page, rows = show(run / "report.html"), logged(run)
    assert shown(page) == len(rows) == 2000
    right = [row for row in rows if row["parts"]["accuracy"] == 1]
    unparsed = [row for row in rows if "<class>" not in row["response"]]
    page.click("#only-right")
    assert shown(page) == len(right)
    page.click("#only-unparsed")  # both are on
    assert shown(page) == len(right) + len(unparsed)
    page.click("#clear")
    page.select_option("#truth", "Summer")
    assert shown(page) == sum(row["truth"] == "Summer" for row in rows)
    page.select_option("#source", "power_demand")
    page.fill("#from", "11")
    page.fill("#to", "20")
    assert shown(page) == sum(row["truth"] == "Summer" and 11 <= row["step"] <= 20 for row in rows)
    page.click("#clear")
    page.fill("#search", "near 17.")
    assert shown(page) == sum("near 17." in row["response"] for row in rows)
    assert page.inner_text("#detail mark") == "near 17."
    page.fill("#search", "nowhere to be found")
    assert shown(page) == 0
    assert "No rollout matches" in page.inner_text("#detail")


def test_a_rollout_is_shown_in_full_with_its_plot_parts_and_advantage(run: Path, show: Callable[..., Any]) -> None:
    page = show(run / "report.html")
    page.click("#list .row >> nth=2")
    third = json.loads((run / "rollouts" / "step_1.jsonl").read_text(encoding="utf-8").splitlines()[2])
    assert page.inner_text("#detail .answer") == third["response"]
    assert page.evaluate("document.querySelector('#detail img').naturalWidth") == images.MAX_WIDTH
    worth = page.inner_text("#detail .worth")
    for name in ("accuracy", "format", "score", "advantage"):
        assert name in worth
    assert f"{abs(third['advantage']):.2f}" in worth
    assert third["id"] in page.inner_text("#detail")


def test_the_keyboard_reaches_every_rollout_and_only_rows_in_view_are_drawn(
    run: Path, show: Callable[..., Any]
) -> None:
    page = show(run / "report.html")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.inner_text("#place") == "2 of 2,000"
    page.focus("#list")
    page.keyboard.press("End")
    assert page.inner_text("#place") == "2,000 of 2,000"
    last = json.loads((run / "rollouts" / "step_50.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert page.inner_text("#detail .answer") == last["response"]
    assert page.locator("#list .row").count() < 40
    assert page.locator("#row-current").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("j")  # goes into the field, not to the next rollout
    page.keyboard.press("Escape")  # leaves the field, which keeps what it filters by
    assert page.input_value("#search") == "j"
    assert shown(page) == sum("j" in row["response"] + row["id"] for row in logged(run))


def test_keys_work_whatever_they_are_sent_to(run: Path, show: Callable[..., Any]) -> None:
    page = show(run / "report.html")
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'j'}))")  # an extension may do so
    assert page.inner_text("#place") == "2 of 2,000"
    page.evaluate(report_speed.MEASURE, [report_speed.ACTS["next by key"], 2])
    assert page.inner_text("#place") == "4 of 2,000"


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(("act", "code"), [("1 + 1", 0), ("setTimeout(() => { throw new Error('fell over') })", 1)])
def test_the_benchmark_fails_when_the_page_does(act: str, code: int) -> None:
    program = f"from benchmarks import report_speed as b; b.ACTS = {{'act': {act!r}}}; b.main()"
    command = [sys.executable, "-c", program, "--steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    assert ("fell over" in done.stderr) == bool(code)


def test_every_tag_of_an_answer_stands_out(tmp_path: Path, show: Callable[..., Any]) -> None:
    text = "<think>1 < 2 and 3 > 2</think><class>A</class><extension>Go.</extension>"
    page = show(write_report(write_rows(tmp_path / "run", {"id": "a", "response": text, "score": 1.0}))[0])
    tags = ["<think>", "</think>", "<class>", "</class>", "<extension>", "</extension>"]
    assert page.locator("#detail .answer .tag").all_inner_texts() == tags
    assert page.inner_text("#detail .answer") == text


def test_evaluations_alone_make_a_page(tmp_path: Path, show: Callable[..., Any]) -> None:
    (tmp_path / "eval" / "step_0").mkdir(parents=True)
    figures = {"n": 4, "accuracy": 0.5, "accuracy_ci95": [0.15, 0.85], "step": 0}
    (tmp_path / "eval" / "step_0" / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    page = show(write_report(tmp_path)[0])
    assert page.inner_text("#head .kind") == "evaluation run"
    assert "0.150 to 0.850" in page.inner_text(".evaluations")


def test_curves_show_values_and_lead_to_the_rollouts_of_a_step(run: Path, show: Callable[..., Any]) -> None:
    page = show(run / "report.html")
    titles = page.locator("#curves h3").all_inner_texts()
    for title in ("Reward", "Validation", "Response length", "Entropy", "KL to the reference", "Log-prob difference"):
        assert title in titles
    plot = page.locator("#curves .plot >> nth=0")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 46, box["y"] + 60)  # the first step, at the left end of the axis
    assert page.inner_text("#cursor") == "step 1"
    first = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    value = float(page.inner_text("#curves .legend b >> nth=0"))
    assert value == pytest.approx(first["reward/mean"], abs=0.005)
    before = page.locator("#curves .chart path >> nth=0").get_attribute("d")
    page.locator("#smoothing").fill("0.9")
    assert page.locator("#curves .chart path.raw").count() > 5
    assert page.locator("#curves .chart path:not(.raw) >> nth=0").get_attribute("d") != before
    plot.click(position={"x": 46, "y": 60})
    assert shown(page) == 40  # 10 prompts x 4 answers


def test_evaluations_stand_with_interval_control_and_matrix(run: Path, show: Callable[..., Any]) -> None:
    page = show(run / "report.html")
    metrics = json.loads((run / "eval" / "step_50" / "metrics.json").read_text(encoding="utf-8"))
    table, matrix = page.inner_text(".evaluations"), page.inner_text(".confusion")
    low, high = metrics["accuracy_ci95"]
    assert f"{low:.3f} to {high:.3f}" in table
    assert "blanked images" in table
    for row in metrics["confusion"].values():
        assert "\t".join(map(str, row.values())) in matrix
    page.click(".evaluations button >> nth=0")
    assert "before training" in page.inner_text(".matrix h3")


def test_an_evaluation_of_several_samples_shows_vote_and_pass_at_k(tmp_path: Path, show: Callable[..., Any]) -> None:
    folder = write_rows(tmp_path / "run")
    one = {"step": 4, "n": 10, "num_samples": 8, "accuracy": 0.5, "accuracy_ci95": [0.3, 0.7], "unparsed": 4}
    one |= {
        "sampling": {"temperature": 0.4},
        "majority": {"accuracy": 0.625, "accuracy_ci95": [0.4, 0.8], "unparsed": 0},
    }
    one |= {"pass_at_k": {"8": {"value": 0.875, "ci95": [0.6, 0.9]}}}
    (folder / "eval" / "step_4_t0.4_n8").mkdir(parents=True)
    (folder / "eval" / "step_4_t0.4_n8" / "metrics.json").write_text(json.dumps(one), encoding="utf-8")
    rows = show(write_report(folder)[0]).locator(".evaluations tbody tr").all_inner_texts()
    assert rows[0].startswith("step 4, sampled at temperature 0.4, 8 samples")
    assert "4 (5.0 %)" in rows[0]  # of 10 x 8 answers
    assert "majority vote" in rows[1]
    assert "0.625" in rows[1]
    assert "pass@8" in rows[2]
    assert "0.875" in rows[2]


HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"><!--"


def test_markup_in_an_answer_is_shown_as_text_and_does_nothing(tmp_path: Path, show: Callable[..., Any]) -> None:
    row = {
        "id": HOSTILE,
        "data_source": HOSTILE,
        "prompt": HOSTILE,
        "media": ["../../secret", HOSTILE],
        "truth": HOSTILE,
    }
    row |= {
        "response": HOSTILE + "\x07\ud800",
        "error": HOSTILE,
        "parts": {HOSTILE: 1.0},
        "score": 0.5,
        "unknown": [HOSTILE],
    }
    folder = write_rows(tmp_path / HOSTILE.replace("/", "_"), row)
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 1, HOSTILE: 1.0, f"reward/{HOSTILE}": 1.0}) + "\n", encoding="utf-8"
    )
    (folder / "config.yaml").write_text(
        json.dumps({"model": {"path": HOSTILE}, "trainer": {"experiment_name": HOSTILE}}), encoding="utf-8"
    )
    path, data = write_report(folder, tmp_path / "page.html")
    page = show(path)
    assert page.inner_text("#detail .answer").startswith(HOSTILE)
    assert "␇" in page.inner_text("#detail .answer")
    assert HOSTILE in page.inner_text("#head h1")
    assert page.title().startswith(HOSTILE)
    assert page.locator("script").count() == 2  # the data and the page's own
    assert page.locator("img").count() == 0
    assert data["images"] == {}


def test_old_rows_and_missing_pieces_are_shown_as_absent(tmp_path: Path, show: Callable[..., Any]) -> None:
    old = {"id": "train:1", "prompt": "?", "response": "<class>A</class>", "truth": "A", "score": 1.0, "parts": {}}
    page = show(write_report(write_rows(tmp_path / "old", old))[0])
    assert "No plot is recorded" in page.inner_text("#detail")
    assert page.inner_text("#only-right span") == "1"
    assert "No eval/" in page.inner_text("#evaluation")
    assert "No config.yaml" in page.inner_text("#head")
    assert "KL" in page.inner_text("#curves .absent")
    only_config = tmp_path / "begun"
    only_config.mkdir()
    (only_config / "config.yaml").write_text("model: {path: some/model}\n", encoding="utf-8")
    page = show(write_report(only_config)[0])
    assert "no curves" in page.inner_text("#curves")
    assert "no answers were logged" in page.inner_text("#rollouts")


def test_a_run_that_is_being_written_is_readable(tmp_path: Path, show: Callable[..., Any]) -> None:
    folder = write_rows(tmp_path / "live", {"id": "a", "response": "", "score": math.nan})
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 2, "reward/mean": NaN, "actor/entropy": Infinity}\n{"step": 3, "rewa')
    (folder / "eval" / "step_1").mkdir(parents=True)
    (folder / "eval" / "step_1" / "metrics.json").write_text('{"n": ', encoding="utf-8")
    path, data = write_report(folder)
    assert data["steps"] == [1, 2]
    assert data["metrics"]["reward/mean"] == [0.5, None]
    notes = show(path).inner_text(".notes")
    assert "1 unreadable line(s) of metrics.jsonl" in notes
    assert "eval/step_1/metrics.json" in notes


def test_beyond_the_limit_plots_are_links_and_still_seen(
    run: Path, tmp_path: Path, show: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 20_000)
    path, data = write_report(run, tmp_path / "elsewhere.html")
    inside = [one for one in data["images"].values() if one["src"].startswith("data:")]
    assert 0 < sum(len(one["src"]) for one in inside) <= 20_000
    assert len(inside) < len(data["images"]) <= 120
    page = show(path)
    page.focus("#list")
    page.keyboard.press("End")
    wait_until(page, "document.querySelector('#detail img').naturalWidth == 560")  # the file itself


FALLEN_OUT = """() => [...document.querySelectorAll("button, select, input, td, th, summary, .tiles > div, .title, .legend, .ends")]
    .filter((node) => node.clientWidth && getComputedStyle(node).display !== "inline"
        && (node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 2))
    .map((node) => `${node.tagName} ${node.id || node.className}: ${node.textContent.slice(0, 40)}`)"""


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_in_a_window_of_any_width_nothing_falls_out_of_its_place(
    run: Path, tmp_path: Path, show: Callable[..., Any], width: int
) -> None:
    long = {"source": "har_inertial_signals_of_a_smartphone", "truth": "walking_upstairs" + "x" * 60}
    row = {"data_source": long["source"], "truth": long["truth"], "response": "?", "id": "i" * 80, "score": 1}
    hard = write_rows(tmp_path / "run", *[row] * 2000)
    (hard / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "reward/" + "y" * 60: 1.0, "reward/mean": 1.0}) + "\n", encoding="utf-8"
    )
    counts = {truth: dict.fromkeys([long["truth"], "b", "(unparsed)"], 1000) for truth in (long["truth"], "b")}
    figures = {"n": 6000, "accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "step": 1, "confusion": counts}
    figures |= {"by_data_source": {long["source"]: {"n": 6000, "accuracy": 0.5}}}
    (hard / "eval" / "step_1").mkdir(parents=True)
    (hard / "eval" / "step_1" / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    for path in (run / "report.html", write_report(hard)[0]):
        page = show(path, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(FALLEN_OUT) == []


def test_a_table_that_scrolls_says_so_until_its_end(run: Path, show: Callable[..., Any]) -> None:
    page = show(run / "report.html", width=360)
    wait_until(page, "document.querySelector('#evaluation .scroll').className === 'scroll more'")
    assert page.locator("#evaluation .sideways").all_inner_texts()[0] == "scroll sideways for all columns →"
    page.evaluate("document.querySelector('#evaluation .scroll').scrollLeft = 9999")
    wait_until(page, "document.querySelector('#evaluation .scroll').className === 'scroll'")
    show(run / "report.html", width=1400).locator("#evaluation .sideways >> nth=0").wait_for(state="hidden")


def test_every_line_and_axis_has_its_name(run: Path, show: Callable[..., Any]) -> None:
    page = show(run / "report.html")
    page.click(".more summary")
    wait_until(page, "[...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('.axis'))")
    for chart in page.locator("#curves .chart").all():
        y, x = chart.locator("text.axis").all_text_contents()
        assert y.strip()
        assert x == "GRPO step"
        named = [text.strip() for text in chart.locator(".legend span").all_inner_texts()]
        assert all(re.match(r"[^\d\s]", name) for name in named), named  # a name before the value
        looks = [path.get_attribute("class") for path in chart.locator(".legend line").all()]
        dashes = [look.split()[1] for look in looks if look]
        assert len(set(dashes)) == len(named)  # told apart without colour


def test_sampled_and_greedy_values_are_marked(run: Path, tmp_path: Path, show: Callable[..., Any]) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    metrics = folder / "eval" / "step_50" / "metrics.json"
    known = json.loads(metrics.read_text(encoding="utf-8"))
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": -1}
    metrics.write_text(json.dumps(known | {"sampling": sampling}), encoding="utf-8")
    page = show(write_report(folder)[0])
    notes = {
        chart.locator("h3").inner_text(): chart.locator("small").all_inner_texts()
        for chart in page.locator("#curves .charts >> nth=0").locator(".chart").all()
    }
    assert notes["Reward"] == notes["Response length"] == ["sampled at temperature 1"]
    assert notes["Validation"] == ["greedy"]
    assert notes["Entropy"] == []
    assert "test accuracy, step 50, greedy" in page.inner_text(".tiles")
    assert "reward, sampled at temperature 1" in page.inner_text(".tiles")
    assert "step 50, greedy" in page.inner_text(".evaluations")
    assert "step 50, greedy, accuracy 0." in page.inner_text(".matrix h3")
    assert "sampled at temperature 1" in page.inner_text("#rollouts .bar")
    assert "before training, greedy" not in page.inner_text(".evaluations")  # of that one it is not recorded


def test_figures_that_do_not_exist_are_absent(tmp_path: Path, show: Callable[..., Any]) -> None:
    """A class without rows has no recall, one that was never said no precision; free text is never unparsed."""
    nothing = {"n": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    per_class = {"A": {"n": 4, "precision": 0.5, "recall": 0.25, "f1": 0.33}, "B": nothing}
    confusion = {"A": {"A": 1, "B": 0, "(unparsed)": 3}, "B": {"A": 1, "B": 0, "(unparsed)": 0}}
    classed = {"n": 5, "accuracy": 0.2, "per_class": per_class, "confusion": confusion}
    for name, figures in (("x", {"n": 2, "accuracy": 0.5, "unparsed": 0, "per_class": {}}), ("y", classed)):
        (tmp_path / "eval" / f"step_{name}").mkdir(parents=True)
        (tmp_path / "eval" / f"step_{name}" / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    page = show(write_report(tmp_path)[0])
    row = page.locator(".evaluations tbody tr >> nth=0").inner_text().split("\t")
    assert row == ["step_x", "2", "0.500", "–", "–", "–", "–", "–", "–"]
    last = page.locator(".confusion tbody tr").all_inner_texts()
    assert last[0].split("\t")[-4:] == ["4", "0.500", "0.250", "0.330"]
    assert last[1].split("\t")[-4:] == ["0", "–", "–", "–"]
    assert "steps\n–" in page.inner_text(".facts")


def test_the_command_holds_the_settings_that_were_given(tmp_path: Path, show: Callable[..., Any]) -> None:
    folder = write_rows(tmp_path / "run")
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(Config())), encoding="utf-8")
    page = show(write_report(folder)[0])
    assert "which settings were given is not known" in page.inner_text(".settings")
    (folder / "overrides.yaml").write_text("[rollout.n=5, model.path=a folder, rollout.n=8]", encoding="utf-8")
    page = show(write_report(folder)[0])
    assert page.inner_text(".settings summary >> nth=0") == "Command: the 2 settings that were given"
    page.click(".settings summary >> nth=0")
    command = page.inner_text(".settings pre >> nth=0")
    assert command == "timemaster grpo \\\n    rollout.n=8 \\\n    'model.path=a folder'"


def test_a_wrong_folder_says_what_was_looked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run.parent, run / "nothing"):
        with pytest.raises(SystemExit) as stopped:
            main([str(folder)])
        assert stopped.value.code == 2
        assert "checkpoints/<project>/<experiment>" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"neither config.yaml nor metrics.jsonl.*{run}"):
        write_report(run.parent)  # names the run below it
    with pytest.raises(InputError, match="--out FILE"):
        write_report(run, run / "no" / "folder.html")


def test_the_command_prints_where_the_page_lies(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--out", str(tmp_path / "page.html"), "--max-rollouts", "400"])
    assert "page.html: 50 steps, 3 evaluations, 400 rollouts" in capsys.readouterr().out


def test_steps_are_left_out_evenly() -> None:
    # at most 10 of 5 x 4 rollouts: two steps fit, the first and the last
    assert thinned([4] * 5, 10) == [True, False, False, False, True]
    assert thinned([4] * 5, 12) == [True, False, True, False, True]
    assert thinned([4] * 5, 20) == [True] * 5
    assert thinned([4] * 5, 3) == [False] * 4 + [True]
    assert thinned([], 3) == []


def test_numbers_in_several_turns_are_shown_with_their_error_and_pictures(
    tmp_path: Path, show: Callable[..., Any]
) -> None:
    run = make_heights_run(tmp_path / "run", num_steps=4)
    write_report(run)
    rows = [json.loads(line) for line in (run / "rollouts" / "step_1.jsonl").read_text(encoding="utf-8").splitlines()]
    page = show(run / "report.html")
    assert "test mean error, step 4, greedy" in page.inner_text("#head")
    assert "lower is better" in page.inner_text("#head")
    assert page.inner_text(".evaluations thead tr").split("\t")[2:5] == ["mean error", "95 % interval", "close"]
    assert page.evaluate("document.querySelector('.matrix img').naturalWidth") > 300  # the distribution
    page.click(".evaluations tbody tr >> nth=0")
    assert "Distribution: before training" in page.inner_text(".matrix")
    for absent in ("accuracy", "macro F1", "right", "wrong", "class"):
        assert absent not in page.inner_text("body")
    k = next(k for k, row in enumerate(rows) if row["outcome"] == "measured" and len(row["turns"]) == 5)
    page.click(f"#list .row >> nth={k}")
    row, detail = rows[k], page.locator("#detail")
    assert f"truth {row['truth']} answered {row['prediction']}" in detail.inner_text()
    assert detail.locator(".badge").inner_text() == f"• error {row['numbers']['error']:#.3g}"
    turns = detail.locator(".turns li")
    kinds = turns.evaluate_all("all => all.map((one) => one.className)")
    assert kinds == [turn["kind"] for turn in row["turns"]]
    for i, turn in enumerate(row["turns"]):
        assert turn["text"] in turns.nth(i).inner_text()
        assert turns.nth(i).locator("img").count() == len(turn["media"])
    assert detail.locator(".columns .plots img").count() == 1  # the prompt's own picture
    page.select_option("#order", "highest error")
    assert page.inner_text("#list .row >> nth=0").startswith("?")  # what could not be read has the largest error
    page.click("#only-measured")
    assert shown(page) == sum(row["outcome"] == "measured" for row in logged(run))
