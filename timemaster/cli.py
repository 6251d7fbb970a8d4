"""From the command line to the settings of a run: the only file that imports hydra and omegaconf.

    timemaster grpo data.recipes=recipes.ctu data.train_files=data/ctu_image/train.parquet ...

Unknown keys and wrong types are errors. `--help` explains every setting. Text is taken as it is typed, see `RULE`;
everything else follows Hydra's grammar.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from timemaster.config import Config
from timemaster.config.help import help_text
from timemaster.config.keys import all_settings
from timemaster.config.overrides import set_overrides
from timemaster.config.resolve import resolve
from timemaster.system.console import print_any_letter
from timemaster.system.signals import end_on_sigterm
from timemaster.types import InputError, WorkerDied

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
Section = TypeVar("Section")

RULE = """A setting that is text is taken exactly as you type it, with any letters: model.path=/a b=1,(c)#d or
trainer.experiment_name=1e-6. There are two exceptions:
  - if the whole value is in quotes, they are removed: 'model.path="a b"'
  - where several texts are possible (recipes, files, judges, checkpoints), [a,b] is a list; items with blanks, brackets
    and the like need quotes: "data.train_files=['/a b=1/x.parquet',y.parquet]"
Numbers, true, false, null and lists follow Hydra's grammar, and so does {key: value}, which needs a plus sign in front:
'+data.mixture={ctu: 1, ecg: 2}'.
"""
QUOTED = re.compile(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\"""", re.DOTALL)


def schema(section: Any) -> Any:
    """A dataclass for Hydra that has the settings of `section`, and takes one text where several are possible.

    Hydra's types have neither `str | list[str]` nor `object`; `read_settings` checks what they let through.
    """
    types, hydra_types = get_type_hints(section), {list[str]: Any, dict[str, object]: dict[str, Any]}
    new_fields: list[tuple[str, Any, Any]] = []
    for item in fields(section):
        kind = types[item.name]
        if is_dataclass(kind):
            nested = schema(kind)
            new_fields.append((item.name, nested, field(default_factory=nested)))
        else:
            copied = field(default=item.default, default_factory=item.default_factory)
            new_fields.append((item.name, hydra_types.get(kind, kind), copied))
    return make_dataclass(section.__name__, new_fields, kw_only=True)


def read_settings(section: type[Section], values: Mapping[str, Any], prefix: str = "") -> Section:
    """The settings that Hydra composed as a `section`: a Config, or a part of one whose keys start with `prefix`.

    Raises InputError for a setting that does not exist, and for a value that is neither a text nor a list of texts
    where one of these is needed.
    """
    types, read = get_type_hints(section), dict(values)
    for name, value in values.items():
        if name not in types:  # +key=value adds it
            raise InputError(f"{prefix}{name}: there is no such setting. `--help` lists all of them.")
        if is_dataclass(types[name]):
            read[name] = read_settings(types[name], value, f"{prefix}{name}.")
        elif types[name] == list[str]:
            read[name] = _texts(value, prefix + name)
    return section(**read)


def _texts(value: Any, key: str) -> list[str]:
    items = [str(item) if isinstance(item, int) else item for item in (value if isinstance(value, list) else [value])]
    if not all(isinstance(item, str) for item in items):
        raise InputError(f"{key}={value!r}: give one text, or a list such as '{key}=[a,b]'.")
    return items


def literal(arguments: Sequence[str]) -> list[str]:
    """The command line with each text quoted for Hydra's grammar, by `RULE`."""
    from hydra.core.override_parser.types import Quote, QuotedString

    texts = {item.key: item.type for item in all_settings(Config()) if item.type in (str, list[str])}
    out = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        name = key.lstrip("+")
        is_list = texts.get(name) == list[str] and value.startswith("[") and value.endswith("]")
        if "=" in argument and name in texts and not is_list and not QUOTED.fullmatch(value):
            value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # else omegaconf inserts another setting's value
            argument = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
        out.append(argument)
    return out


def launch(main: Callable[[Config], None], mode: str) -> None:
    """Compose the settings, resolve them for `mode` and run `main`. User errors become messages and exit codes.

    `mode` is the subcommand: "grpo", "evaluate" or "sft".
    """
    print_any_letter()
    if {"--help", "-h"} & set(sys.argv[1:]):
        usage = f"usage: timemaster {mode} KEY=VALUE ...\n\n{RULE}\n"
        usage += "Settings with their defaults and, in brackets, what is allowed:\n"
        sys.stdout.write(usage + help_text(Config(), width=shutil.get_terminal_size((120, 24)).columns))
        return
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import MissingMandatoryValue, OmegaConf

    ConfigStore.instance().store(name="schema", node=schema(Config))
    set_overrides([argument for argument in sys.argv[1:] if "=" in argument])
    sys.argv[1:] = literal(sys.argv[1:])

    def run(composed: DictConfig) -> None:
        from timemaster.system.console import setup_logging

        setup_logging()
        end_on_sigterm()
        try:
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            given = read_settings(Config, values)  # type: ignore[arg-type]
            main(resolve(given, "sft" if mode == "sft" else "eval" if given.trainer.val_only else "grpo"))
        except MissingMandatoryValue as error:
            log.error("%s: ??? is Hydra's mark for a value that is missing. Write ./??? for that path", error.full_key)
            sys.exit(2)
        except InputError as error:
            log.error("%s", error)
            sys.exit(2)
        except WorkerDied as error:
            log.error("%s", error)
            log.error("start the same command again to continue from the latest checkpoint")
            sys.exit(1)
        except KeyboardInterrupt as error:
            log.error("interrupted")
            sys.exit(143 if "SIGTERM" in error.args else 130)

    hydra.main(config_path="pkg://timemaster.config", config_name="config", version_base="1.3")(run)()
