"""Write the report of a run: one HTML file with curves, evaluation and rollouts, for any browser.

timemaster report checkpoints/quickstart/grpo [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timemaster.results.report.page import write_report
from timemaster.system.console import print_any_letter
from timemaster.types import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and print its path."""
    print_any_letter()
    parser = argparse.ArgumentParser(prog="timemaster report", description="Write a run as one HTML page.")
    parser.add_argument("run", type=Path, help="the run's folder, checkpoints/<project>/<experiment>")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the run's folder)")
    parser.add_argument(
        "--max-rollouts",
        type=int,
        default=5000,
        help="beyond this number, steps are left out evenly (default: 5000)",
    )
    options = parser.parse_args(arguments)
    if options.max_rollouts < 0:
        parser.error("--max-rollouts must be 0 or more")
    try:
        path, data = write_report(options.run, options.out, options.max_rollouts)
    except (InputError, OSError) as error:
        parser.exit(2, f"{error}\n")
    steps, rollouts, evaluations = (len(data[name]) for name in ("steps", "rollouts", "evaluations"))
    size = path.stat().st_size / 1e6
    sys.stdout.write(f"{path}: {steps} steps, {evaluations} evaluations, {rollouts} rollouts, {size:.1f} MB\n")
    sys.stdout.writelines(f"  {note}\n" for note in data["notes"])


if __name__ == "__main__":
    main()
