"""The house: layers import downwards only, each heavy library has one door, four files lead to the loss."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "timemaster"
LAYERS = {
    "types": 0, "config": 0, "checks": 0, "conf": 0, "locks": 0, "console": 0, "reaper": 0,
    "judge": 1, "algo": 1, "rewards": 1, "data": 1, "models": 1, "metrics": 1, "memory": 1, "memory_estimate": 1, "plot_results": 1, "plot_modalities": 1,
    "predictions": 1, "published": 1, "sinks": 1,
    "tasks": 2, "backends": 2, "rollout": 2,
    "workers": 3, "workers_start": 3,
    "run": 4, "cli": 4, "inputs": 4, "summary": 4, "traces": 4,
    "baselines": 4, "prompting": 4,
    "evaluate": 5, "compare": 5, "modalities": 5, "report": 5,
    "grpo": 6, "sft": 6,
}  # fmt: skip
DOORS = {
    "openai": ["judge/chat.py"],
    "ray": ["workers.py", "workers_start.py"],
    "vllm": ["rollout/vllm.py", "rollout/vllm_plugins.py", "rollout/engine.py"],
    "hydra": ["cli.py"],
    "omegaconf": ["cli.py"],
    "matplotlib": ["data/plot.py", "data/fonts.py", "plot_results.py", "plot_modalities.py"],
    "sktime": ["data/series.py", "baselines.py"],
    "wfdb": ["data/recordings.py"],
    "soundfile": ["data/recordings.py"],
}
SCRIPTS = {"data/prepare.py"}  # a command of its own, above the tasks it prepares


def files() -> list[Path]:
    return sorted(p for p in LIBRARY.rglob("*.py") if p.name != "__init__.py" or p.stat().st_size)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append(node.module)
    return found


def layer(module: str) -> int:
    return LAYERS[module.split(".")[1]]


def test_every_module_imports_only_from_its_layer_or_below() -> None:
    for path in files():
        name = str(path.relative_to(LIBRARY))
        if name in SCRIPTS or name == "__init__.py":
            continue
        own = LAYERS[name.split("/")[0].removesuffix(".py")]
        for module in imports(path):
            if module.startswith("timemaster."):
                assert layer(module) <= own, f"{name} (layer {own}) imports {module} (layer {layer(module)})"


def test_engines_and_backends_do_not_know_each_other() -> None:
    for folder, other in (("rollout", "timemaster.backends"), ("backends", "timemaster.rollout")):
        for path in (LIBRARY / folder).glob("*.py"):
            assert not [m for m in imports(path) if m.startswith(other)], path


def test_recipes_import_tasks_rewards_data_and_types_only() -> None:
    allowed = ("timemaster.tasks", "timemaster.rewards", "timemaster.data", "timemaster.types")
    for path in (ROOT / "recipes").glob("*.py"):
        for module in imports(path):
            assert not module.startswith("timemaster") or module.startswith(allowed), f"{path.name} imports {module}"


def test_each_heavy_library_has_its_door() -> None:
    for path in files():
        name = str(path.relative_to(LIBRARY))
        for module in imports(path):
            doors = DOORS.get(module.split(".")[0])
            assert doors is None or name in doors, f"{name} imports {module}; its door is {doors}"


def test_four_files_lead_from_the_entry_point_to_the_loss() -> None:
    chain = ["grpo.py", "workers.py", "backends/fsdp.py", "algo/losses.py"]
    hops = [r"workers\.update\(", r"self\.backend\.update\(", r"policy_loss\(", r"def policy_loss\("]
    for name, hop in zip(chain, hops, strict=True):
        assert re.search(hop, (LIBRARY / name).read_text(encoding="utf-8")), f"{hop} not found in {name}"
    assert re.search(r"def update\(", (LIBRARY / "workers.py").read_text(encoding="utf-8"))
    assert re.search(r"def update\(", (LIBRARY / "backends" / "fsdp.py").read_text(encoding="utf-8"))


def test_files_and_functions_are_short() -> None:
    for path in files():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 80, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_text_files_are_read_and_written_as_utf8_whatever_the_locale() -> None:
    for path in [*files(), *sorted((ROOT / "recipes").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [
                str(a.value) for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)
            ]
            of_text = name in ("read_text", "write_text") or (
                name == "open"
                and not any(re.fullmatch(r"[rwxa+]*b[rwxa+]*", mode) for mode in modes)
                and ast.unparse(node.func) not in ("os.open", "Image.open", "av.open")
            )
            assert not of_text or any(k.arg == "encoding" for k in node.keywords), f"{path}:{node.lineno}: encoding?"


def test_every_command_prints_any_letter_in_any_locale() -> None:
    for path in files():
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text and path.name not in ("memory.py", "reaper.py"):  # which print nothing
            assert re.search(r"^    print_any_letter\(\)\n|^    launch\(", text, re.MULTILINE), path


def test_the_readmes_tree_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", readme, re.S)
    assert tree, "README.md has no tree between <!-- tree --> and the closing fence"
    listed = {line.split()[0] for line in tree[1].splitlines() if line.strip()}
    for name in listed:
        assert (ROOT / name).exists(), f"README lists {name}, which is not there"
    for path in files():
        name = str(path.relative_to(ROOT))
        assert name in listed or name.endswith("__init__.py"), f"README's tree misses {name}"
