"""Pictures of results: what they say in words, however odd the labels and answers. Read from the figures themselves."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.helpers import picture
from timemaster.metrics.answers import how_sampled
from timemaster.results.plot_evaluation import picture_title
from timemaster.results.plot_results import (
    PLOT_WIDTH,
    DrawnAnswer,
    confusion_png,
    overview_png,
    wrapped,
)
from timemaster.series.plot_fonts import fonts_for
from timemaster.series.sheet import contact_sheet


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    found: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k)))
    return found


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text().strip()]


def answer(outcome: str, text: str = "<class>B</class>", truth: str = "A") -> DrawnAnswer:
    image = picture(1).data
    assert image is not None
    prediction = {"right": truth, "wrong": "B", "measured": "0.4"}.get(outcome)
    value = "error 0.07" if outcome == "measured" else None
    return DrawnAnswer(image=image, truth=truth, prediction=prediction, text=text, outcome=outcome, value=value)


def write_metrics(folder: Path, rows: str) -> Path:
    (folder / "metrics.jsonl").write_text(rows, encoding="utf-8")
    return folder


def test_right_and_wrong_are_said_in_words_with_a_mark_and_a_legend(figures: list[Figure], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("rollout: {temperature: 0.7}", encoding="utf-8")
    run = write_metrics(tmp_path, '{"step": 1, "reward/mean": 0.5, "rollout/logprob_diff_max": 1e-6}\n')
    overview_png(run, [answer("right"), answer("wrong"), answer("unparsed", "")], "title")
    found = texts(figures[0])
    for words in ("\u2713 right", "\u2717 wrong", "? unparsed"):
        assert words in found  # the legend
        assert any(words in text and "truth: A" in text for text in found)  # a plot
    assert "truth: A\n\u2717 wrong: B" in found
    overview_png(run, [answer("measured"), answer("unparsed", "")], "title")
    assert {"\u2022 measured", "truth: A\n\u2022 error 0.07: 0.4"} <= set(texts(figures[1]))
    assert "(empty)" in found
    assert "Mean reward of the training answers, sampled at temperature 0.7" in found
    assert {"GRPO step", "mean over a step", "|difference|, nats, log scale"} <= set(found)


def test_figures_that_a_run_lacks_are_absent_and_not_zero(figures: list[Figure], tmp_path: Path) -> None:
    rows = '{"step": 1, "reward/mean": null, "reward/accuracy": 0.5}\n{"step": 2, "reward/accuracy": 0.75}\n'
    overview_png(write_metrics(tmp_path, rows), [answer("right")], "title")
    reward, difference = figures[0].axes[1:]
    (line,) = reward.get_lines()
    assert line.get_label() == "accuracy"
    assert list(line.get_ydata()) == [0.5, 0.75]
    assert not difference.get_lines()
    assert "not recorded in this run" in [text.get_text() for text in difference.texts]


def test_a_reward_below_zero_stays_in_view(figures: list[Figure], tmp_path: Path) -> None:
    overview_png(write_metrics(tmp_path, '{"step": 1, "reward/mean": -2}\n'), [answer("right")], "title")
    assert figures[0].axes[1].get_ylim()[0] < -2


HARD = ["walking_upstairs", "$x$_{y}^\\frac", "a" * 70, "\u0635\u0639\u0648\u062f", "\u6b65\u884c", "", "A & <b>", "7"]


def test_any_label_and_any_answer_can_be_drawn(figures: list[Figure], tmp_path: Path) -> None:
    confusion_png({truth: dict.fromkeys([*HARD, "(unparsed)"], 1) for truth in HARD}, "$title")
    hard = [answer("wrong", text, truth) for text, truth in zip([*HARD[1:], "\x07\ud800 $" * 400], HARD, strict=True)]
    overview_png(write_metrics(tmp_path, '{"step": 1}\n'), hard, "$title")
    grid = [axes for axes in figures[1].axes if axes.images]
    assert len(grid) == 8  # six in a row, two below
    figures[1].canvas.draw()
    for text in (text for axes in grid for text in (axes.xaxis.label, axes._left_title)):
        assert text.get_window_extent().width < PLOT_WIDTH * figures[1].dpi  # else it runs into the next one


@pytest.mark.parametrize("num_classes", [1, 7, 26])
def test_the_confusion_matrix_has_title_axes_and_every_count(figures: list[Figure], num_classes: int) -> None:
    labels = [f"class_{i}_with_a_long_name" for i in range(num_classes)]
    counts = {t: {s: 10 * i + j for j, s in enumerate([*labels, "(unparsed)"])} for i, t in enumerate(labels)}
    confusion_png(counts, "test rows after step 4")
    found = texts(figures[0])
    assert "test rows after step 4" in found
    assert {"truth", "(unparsed)"} <= set(found)
    assert any(text.startswith("answer (") for text in found)
    (axes,) = figures[0].axes
    drawn = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    expected = {(i, j): str(n) for i, row in enumerate(counts.values()) for j, n in enumerate(row.values())}
    assert drawn == {place: n for place, n in expected.items() if n != "0" or num_classes < 24}


def test_the_title_of_an_evaluation_tells_rows_step_sampling_and_accuracy() -> None:
    about = {"rows": "test", "step": 44, "blank_images": False}
    about |= {"sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": -1}}
    summary = {"accuracy": 0.9051, "accuracy_ci95": [0.869, 0.933], "n": 328}
    assert picture_title(about, summary) == (
        "test rows after step 44, greedy\naccuracy 0.905 of 328 rows, 95 %: 0.869 to 0.933"
    )
    about |= {"step": 0, "blank_images": True, "sampling": {"temperature": 0.4, "top_p": 0.9, "top_k": 20}}
    title = picture_title(about, summary | {"num_samples": 8})
    assert title.startswith(
        "test rows before training, sampled at temperature 0.4, top-p 0.9, top-k 20, blanked images\n"
    )
    assert "of 328 rows x 8 answers" in title
    assert how_sampled(1) == "sampled at temperature 1"


def test_words_stay_whole() -> None:
    text = "<think>Low at 3, peaks at 10 and 19.</think><class>walking_upstairs</class>"
    lines = wrapped(text, 30, 9).split("\n")
    assert lines == ["<think>Low at 3, peaks at 10", "and 19.</think><class>", "walking_upstairs</class>"]
    assert wrapped("1 < 2 and <3", 80, 3) == "1 < 2 and <3"
    assert wrapped("walking_upstairs", 10, 3).split("\n") == ["walking_", "upstairs"]  # longer than a line
    assert wrapped("x" * 25, 10, 3).split("\n") == ["x" * 10, "x" * 10, "x" * 5]
    assert wrapped("\u6b65" * 7, 10, 3).split("\n") == ["\u6b65" * 5, "\u6b65" * 2]  # each is two columns wide
    assert wrapped("a b c d e f g", 1, 5).split("\n") == ["a", "b", "\u2026", "f", "g"]


@pytest.fixture
def one_font() -> Iterator[None]:
    """No font is installed beside matplotlib's own."""
    known = list(font_manager.fontManager.ttflist)
    own = font_manager.findfont("DejaVu Sans")
    font_manager.fontManager.ttflist[:] = [font for font in known if font.fname == own]
    yield
    font_manager.fontManager.ttflist[:] = known


@pytest.fixture
def chinese(one_font: None, tmp_path: Path) -> str:
    """Installs a font that holds U+6B65 and the Latin letters; gives its file."""
    font = TTFont(font_manager.findfont("DejaVu Sans"))
    for table in font["cmap"].tables:
        table.cmap = {code: name for code, name in table.cmap.items() if code < 256}
        table.cmap |= {0x6B65: "A"} if table.isUnicode() else {}
    font["name"].names = [name for name in font["name"].names if name.nameID not in (1, 16)]
    font["name"].setName("Made Up Han", 1, 3, 1, 0x409)
    font["name"].setName("Made Up Han", 1, 1, 0, 0)
    font.save(tmp_path / "han.ttf")
    font_manager.fontManager.addfont(tmp_path / "han.ttf")
    return str(tmp_path / "han.ttf")


def test_letters_of_other_scripts_are_drawn_in_a_font_that_has_them(
    chinese: str, figures: list[Figure], caplog: pytest.LogCaptureFixture
) -> None:
    assert [font.name for font in fonts_for(["abc"])] == ["DejaVu Sans"]
    assert [font.fname for font in fonts_for(["abc \u6b65"])][1:] == [chinese]
    confusion_png({"\u6b65": {"\u6b65": 1, "(unparsed)": 0}}, "title")
    labels = [text for text in figures[0].findobj(Text) if isinstance(text, Text) and text.get_text() == "\u6b65"]
    assert labels
    assert all("Made Up Han" in text.get_fontfamily() for text in labels)
    assert not caplog.records


@pytest.mark.usefixtures("one_font")
def test_letters_without_a_font_are_named_in_one_line(caplog: pytest.LogCaptureFixture, recwarn: Any) -> None:
    confusion_png({"\u6b65\u884c": {"\u6b65\u884c": 1, "(unparsed)": 0}}, "title")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["no installed font has \u6b65\u884c"]
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


@pytest.mark.usefixtures("chinese")
def test_a_contact_sheet_can_show_labels_of_any_script() -> None:
    plot = picture(1).data
    assert plot is not None

    def heading(label: str) -> bytes:
        sheet = Image.open(io.BytesIO(contact_sheet("t", {label: [plot]})))
        return sheet.crop((12, 40, 60, 60)).tobytes()

    assert heading("\u6b65") != heading("\u884c")  # the second has no glyph anywhere: its box
    assert heading("\u0635") != heading("\u0639")
