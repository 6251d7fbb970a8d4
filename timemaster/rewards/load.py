"""Loading a function by its path: from a module, or from a file, which may import the files beside it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from timemaster.types import InputError


def load_function(path: str) -> Callable[..., Any]:
    """The function that `path` names: "package.module:function" or "some/file.py:function".

    A file may import its neighbours, as with `python some/file.py`; see `_neighbours_first` for names that clash.
    Raises InputError when the path has another form, when importing fails, and when the name is missing.
    """
    module_name, colon, name = path.rpartition(":")
    if not colon or not module_name or not name:
        raise InputError(f"Function path {path!r}: write 'package.module:function' or 'folder/file.py:function'.")
    try:
        module = (
            _import_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a script without a main guard exits when it is imported
        raise InputError(f"Function path {path!r}: importing {module_name!r} failed: {error!r}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise InputError(f"Function path {path!r}: {module_name!r} has no function {name!r}; it has {known}.")
    return function


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"Function file {str(path)!r} does not exist (current directory: {Path.cwd()}).")
    # A unique name: two files may be called reward.py, and none may hide an installed module.
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look up a function's module
    try:
        with _neighbours_first(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@contextmanager
def _neighbours_first(folder: Path) -> Iterator[None]:
    """Inside this context, imports find the modules of `folder` first, as in a script in that folder.

    Afterwards the folder stays at the end of the search path, for imports inside functions. If another module (an
    installed one, or one beside another reward) has the same name as a neighbour, the name then means that other module
    again. So such a neighbour must be imported at the top of the file. Loaded modules of the standard library are never
    replaced.
    """
    names = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    clashing = {name for name in names - sys.stdlib_module_names if not _is_neighbour(name, folder)}
    others = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in clashing}
    for name in others:
        del sys.modules[name]
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may change the search path, too
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        new = [name for name in sys.modules.keys() - known if _is_neighbour(name, folder)]
        for name in new:
            if not _leads_to(name.partition(".")[0], folder):
                del sys.modules[name]
        sys.modules.update(others)


def _is_neighbour(name: str, folder: Path) -> bool:
    """Whether the loaded module `name`, or its top-level package, lies in `folder`."""
    top = name.partition(".")[0]
    return _lies_in(getattr(sys.modules.get(top), "__file__", None), top, folder)


def _leads_to(top: str, folder: Path) -> bool:
    """Whether the search path finds the module `top` in `folder`."""
    specs = (finder.find_spec(top, None) for finder in sys.meta_path)
    spec = next((spec for spec in specs if spec is not None), None)
    return spec is not None and _lies_in(spec.origin, top, folder)


def _lies_in(file: str | None, top: str, folder: Path) -> bool:
    candidates = (folder / f"{top}.py", folder / top / "__init__.py")
    return bool(file) and Path(str(file)).resolve() in [path.resolve() for path in candidates]
