"""The house: layers import downwards only, each heavy library has one door, four files lead to the loss."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.rooms import PAGES, block, room_of

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "timemaster"
DOORS = {
    "openai": ["judge/chat.py"],
    "ray": ["workers/"],
    "vllm": ["rollout/vllm.py", "rollout/vllm_plugins.py", "rollout/engines.py"],
    "hydra": ["cli.py"],
    "omegaconf": ["cli.py"],
    "matplotlib": ["series/plot.py", "series/plot_fonts.py", "results/plot_"],
    "sktime": ["series/splits.py", "results/baselines.py"],
    "wfdb": ["series/recordings.py"],
    "soundfile": ["series/recordings.py"],
}


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


def test_a_room_imports_only_rooms_below_it() -> None:
    for path in files():
        name = str(path.relative_to(LIBRARY))
        if name == "__init__.py":
            continue
        for module in imports(path):
            if module.startswith("timemaster."):
                other = module.removeprefix("timemaster.")
                same = name.split("/")[0].removesuffix(".py") == other.split(".")[0]
                job = room_of(name) == room_of(other) == room_of("grpo.py")  # which calls evaluate.py
                assert same or job or room_of(name) < room_of(other), f"{name} imports {other}, which stands above it"


def test_the_library_does_not_import_its_own_public_names() -> None:
    """`timemaster/__init__.py` is for users; inside, each name comes from the room where it lies."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "timemaster":
                assert [alias.name for alias in node.names] == ["__version__"], path


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Also not inside functions: a circle cannot be read from either end."""
    graph: dict[str, set[str]] = {}
    for path in files():
        name = str(path.relative_to(LIBRARY)).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        graph[name] = {
            module.removeprefix("timemaster.") for module in imports(path) if module.startswith("timemaster.")
        }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle of imports: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_few_files_lie_at_the_top() -> None:
    assert len([path for path in LIBRARY.iterdir() if path.is_file()]) <= 8


def test_engines_and_backends_do_not_know_each_other() -> None:
    for folder, other in (("rollout", "timemaster.backends"), ("backends", "timemaster.rollout")):
        for path in (LIBRARY / folder).glob("*.py"):
            assert not [m for m in imports(path) if m.startswith(other)], path


def test_recipes_import_tasks_rewards_series_media_and_types_only() -> None:
    rooms = ("tasks", "rewards", "environments", "series", "media", "types")
    allowed = tuple(f"timemaster.{room}" for room in rooms)
    for path in (ROOT / "recipes").glob("*.py"):
        for module in imports(path):
            if module.startswith("timemaster") and module != "timemaster":  # the package offers public names
                assert module.startswith(allowed), f"{path.name} imports {module}"


def test_only_models_knows_a_family_of_models() -> None:
    """Classes and modules of one family, and names of its tensors; a fake family passes tests/unit/test_family.py."""
    names = {"visual", "merger", "patch_embed", "language_model", "pixel_values", "image_grid_thw", "mm_token_type_ids"}
    for path in files():
        if path.parent.name != "models":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"qwen2_?5|qwen2_?vl|<\|(image|vision|video)_", text, re.IGNORECASE), path
            used = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
            assert not used & names, f"{path}: {used & names}"


def test_each_heavy_library_has_its_door() -> None:
    for path in files():
        name = str(path.relative_to(LIBRARY))
        for module in imports(path):
            doors = DOORS.get(module.split(".")[0])
            assert doors is None or name.startswith(tuple(doors)), f"{name} imports {module}; its door is {doors}"


def test_four_files_lead_from_the_entry_point_to_the_loss() -> None:
    chain = ["grpo.py", "workers/handle.py", "backends/fsdp.py", "algo/losses.py"]
    hops = [r"workers\.update\(", r"self\.backend\.update\(", r"policy_loss\(", r"def policy_loss\("]
    for name, hop in zip(chain, hops, strict=True):
        assert re.search(hop, (LIBRARY / name).read_text(encoding="utf-8")), f"{hop} not found in {name}"
    assert re.search(r"def update\(", (LIBRARY / "workers" / "handle.py").read_text(encoding="utf-8"))
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


def test_the_pages_show_the_list_of_rooms() -> None:
    """`python -m tests.rooms` writes them anew."""
    for name, mark, text in PAGES:
        assert block(mark, text()) in (ROOT / name).read_text(encoding="utf-8"), f"{name}: python -m tests.rooms"
