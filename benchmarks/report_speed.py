"""Seconds of a run's report: writing the page, opening it, and from a click to the rollout shown.

    python benchmarks/report_speed.py [--steps 50]

The run is made up: 40 rollouts a step, 2,000 by default, over 120 plots. The page is opened in headless Chromium, as in
tests/e2e/test_report.py; a click counts until the browser has painted the frame with the text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.report_run import chromium, make_run
from timemaster.results.report.page import write_report

# Each of `count` acts, timed in the page: the act, then two frames, of which the first has painted what it did.
MEASURE = """async ([acts, count]) => {
    const act = new Function("i", acts), seconds = [];
    for (let i = 0; i < count; i++) {
        const start = performance.now();
        act(i);
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        seconds.push((performance.now() - start) / 1000);
    }
    return seconds;
}"""
ACTS = {
    "click on a row": "const rows = document.querySelectorAll('#list .row'); rows[i % rows.length].click();",
    "next by key": "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true}));",
    "filter by outcome": "document.getElementById('only-wrong').click();",
    "search": "const field = document.getElementById('search'); field.value = ['near', '17', ''][i % 3];"
    "field.dispatchEvent(new Event('input'));",
    "scroll the list": "document.getElementById('list').scrollTop = (i * 7919) % 100000;",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="steps of the run, 40 rollouts each (default: 50)")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        run = make_run(Path(folder) / "run", steps)
        started = time.perf_counter()
        path, data = write_report(run, max_rollouts=10**9)
        print(f"{len(data['rollouts'])} rollouts, {path.stat().st_size / 1e6:.1f} MB")
        print(f"{'write the page':20} {time.perf_counter() - started:.3f} s")
        browser = driver.chromium.launch(executable_path=chromium())
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        started = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("#detail .answer")
        print(f"{'open it':20} {time.perf_counter() - started:.3f} s")
        for name, acts in ACTS.items():
            seconds = page.evaluate(MEASURE, [acts, 60])
            print(f"{name:20} {statistics.median(seconds):.3f} s in the middle, {max(seconds):.3f} s at most")
        browser.close()
        if errors:
            parser.exit(1, f"{len(errors)} errors in the page, the first: {errors[0]}\n")


if __name__ == "__main__":
    main()
