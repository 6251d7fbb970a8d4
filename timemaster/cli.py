"""From the command line to a checked `Config`: the only file that imports hydra and omegaconf.

    timemaster grpo data.recipes=recipes.ctu data.train_files=data/ctu_image/train.parquet ...

Unknown keys and wrong types are errors. `--help` prints every setting with its default. Text is taken as it is typed,
see `RULE`; all else is written as Hydra reads it.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from timemaster.config import Config
from timemaster.config.checks import check
from timemaster.config.overrides import set_overrides
from timemaster.system.console import print_any_letter
from timemaster.system.signals import end_on_sigterm
from timemaster.types import InputError, WorkerDied

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

RULE = """A setting that is text is taken as it is typed, whatever letters it has: model.path=/a b=1,(c)#d or
trainer.experiment_name=1e-6. There are two exceptions:
  - a value that stands in quotes as a whole is what is between them: 'model.path="a b"'
  - where several are possible (recipes, files, judges, checkpoints), [a,b] is a list; its items take quotes when they
    hold blanks, brackets and the like: "data.train_files=['/a b=1/x.parquet',y.parquet]"
Numbers, true and false, lists, {key: value} and null are written as Hydra reads them.
"""
QUOTED = re.compile(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\"""", re.DOTALL)


def help_text(node: Any, prefix: str = "") -> str:
    """Every setting with its default and its meaning, as config.py has them."""
    meanings = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(type(node)), re.M))
    out = ""
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            out += help_text(value, f"{prefix}{item.name}.")
        else:
            out += f"{prefix}{item.name}={value!r}".ljust(52) + f" {meanings.get(item.name, '')}".rstrip() + "\n"
    return out


def text_settings(node: Any, prefix: str = "") -> dict[str, bool]:
    """The settings that are text, by key, and whether a list of texts is possible, too."""
    found: dict[str, bool] = {}
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            found |= text_settings(value, f"{prefix}{item.name}.")
        elif isinstance(value, str):
            found[prefix + item.name] = item.type == "Any"
    return found


def literal(arguments: Sequence[str]) -> list[str]:
    """The command line with each text quoted for Hydra's grammar, by `RULE`."""
    from hydra.core.override_parser.types import Quote, QuotedString

    texts, out = text_settings(Config()), []
    for argument in arguments:
        key, _, value = argument.partition("=")
        name = key.lstrip("+")
        is_list = texts.get(name, False) and value.startswith("[") and value.endswith("]")
        if "=" in argument and name in texts and not is_list and not QUOTED.fullmatch(value):
            value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # else omegaconf puts in another setting's value
            argument = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
        out.append(argument)
    return out


def launch(main: Callable[[Config], None], mode: str) -> None:
    """Compose the configuration, check it for `mode` and run `main`. User errors become messages and exit codes.

    `mode` is the subcommand: "grpo", "evaluate" or "sft".
    """
    print_any_letter()
    if {"--help", "-h"} & set(sys.argv[1:]):
        usage = f"usage: timemaster {mode} KEY=VALUE ...\n\n{RULE}\nSettings with their defaults:\n\n"
        sys.stdout.write(usage + help_text(Config()))
        return
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import MissingMandatoryValue, OmegaConf

    ConfigStore.instance().store(name="schema", node=Config)
    set_overrides([argument for argument in sys.argv[1:] if "=" in argument])
    sys.argv[1:] = literal(sys.argv[1:])

    def run(composed: DictConfig) -> None:
        from timemaster.system.console import setup_logging

        setup_logging()
        end_on_sigterm()
        try:
            cfg = OmegaConf.to_object(composed)
            assert isinstance(cfg, Config)
            check(cfg, "sft" if mode == "sft" else "eval" if cfg.trainer.val_only else "grpo")
            main(cfg)
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
