"""The command `timemaster`: one subcommand for each program of the library.

    timemaster --help
    timemaster grpo data.recipes=recipes.ctu ...     the same as python -m timemaster.grpo ...

The module of a subcommand is imported when the subcommand is called: `--help` needs no heavy library.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from timemaster import __version__
from timemaster.system.console import print_any_letter


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A subcommand. Example: Command(module="timemaster.tasks.audit", summary="check a data set")"""

    module: str  # import path; its function `main` is called
    summary: str  # one line for --help
    mode: str = ""  # "grpo", "evaluate" or "sft": takes settings (see `cli.launch`); "": takes options
    settings: tuple[str, ...] = ()  # settings that the subcommand adds, after those of the user


COMMANDS = {
    "prepare": Command(module="timemaster.tasks.prepare", summary="make the data of a recipe: plots and parquet files"),
    "audit": Command(
        module="timemaster.tasks.audit", summary="check data: classes, duplicates, leaking labels, plot sizes"
    ),
    "conversations": Command(
        module="timemaster.tasks.conversations", summary="convert conversations in JSON to a parquet file for SFT"
    ),
    "traces": Command(
        module="timemaster.tasks.traces", summary="collect demonstrations for SFT from a model or an explainer"
    ),
    "tiny": Command(module="timemaster.models.tiny", summary="make the tiny Qwen2.5-VL that trains on a CPU"),
    "sft": Command(module="timemaster.sft", summary="supervised fine-tuning", mode="sft"),
    "grpo": Command(module="timemaster.grpo", summary="reinforcement learning with GRPO", mode="grpo"),
    "evaluate": Command(
        module="timemaster.grpo",
        summary="evaluate checkpoints on test files: grpo with trainer.val_only=true",
        mode="evaluate",
        settings=("trainer.val_only=true",),
    ),
    "report": Command(module="timemaster.results.report.__main__", summary="write a run as one HTML page"),
    "compare": Command(
        module="timemaster.results.compare", summary="compare runs, baselines and API models in one table"
    ),
    "modalities": Command(
        module="timemaster.results.modalities", summary="compare a run on plots with a run on numbers"
    ),
    "summary": Command(module="timemaster.results.summary", summary="print the closing table of the quickstart"),
}


def help_text() -> str:
    """The text of `timemaster --help`."""
    lines = "".join(f"  {name:15}{command.summary}\n" for name, command in COMMANDS.items())
    return (
        f"usage: timemaster SUBCOMMAND ...\n\n{lines}\n"
        "`timemaster SUBCOMMAND --help` explains a subcommand. grpo, sft and evaluate take settings (KEY=VALUE).\n"
        "`timemaster --version` prints the version.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand that the command line names. Unknown subcommands end with exit code 2."""
    print_any_letter()
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    if name in ("--help", "-h"):
        sys.stdout.write(help_text())
    elif name == "--version":
        sys.stdout.write(f"timemaster {__version__}\n")
    elif not name:
        sys.stderr.write(help_text())
        sys.exit(2)
    elif name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, cutoff=0.5)
        advice = f"Did you mean {' or '.join(close)}? " if close else ""
        sys.stderr.write(f"timemaster: no subcommand {name!r}. {advice}`timemaster --help` lists them.\n")
        sys.exit(2)
    else:
        run(name, rest)


def run(name: str, arguments: Sequence[str]) -> None:
    """Call the program of a subcommand. Its exit code becomes that of the command."""
    command = COMMANDS[name]
    here = str(Path.cwd())
    if here not in sys.path:  # a reward or recipe in the current directory is importable, as with `python -m`
        sys.path.insert(0, here)
    sys.argv = [f"timemaster {name}", *arguments, *command.settings]
    program = importlib.import_module(command.module)
    if command.mode:
        from timemaster.cli import launch

        launch(program.main, command.mode)
    else:
        program.main()


if __name__ == "__main__":
    main()
