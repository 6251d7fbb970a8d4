"""From the command line to a checked `Config`: the only file that imports hydra and omegaconf.

    python -m timemaster.grpo data.recipes=recipes.ctu data.train_files=data/ctu_image/train.parquet ...

Unknown keys and wrong types are errors. `--help` prints every setting with its default.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from timemaster.checks import check
from timemaster.config import Config
from timemaster.types import InputError, WorkerDied

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


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


def end_on_sigterm() -> None:
    """SIGTERM (SLURM, Kubernetes, `kill`) ends this process as Ctrl-C does: what is unfinished is cleaned up."""
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt("SIGTERM")
        os._exit(143)  # a forked child, which has nothing of its own to clean up

    signal.signal(signal.SIGTERM, end)


def launch(main: Callable[[Config], None], mode: str) -> None:
    """Compose the configuration, check it for `mode` ("grpo" or "sft"), run `main`; turn user errors into messages."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        usage = f"python -m timemaster.{mode} KEY=VALUE ...\n\nSettings with their defaults:\n\n"
        sys.stdout.write(usage + help_text(Config()))
        return
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=Config)

    def run(composed: DictConfig) -> None:
        from timemaster.run import setup_logging

        setup_logging()
        end_on_sigterm()
        try:
            cfg = OmegaConf.to_object(composed)
            assert isinstance(cfg, Config)
            check(cfg, "eval" if cfg.trainer.val_only and mode == "grpo" else mode)
            main(cfg)
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

    hydra.main(config_path="pkg://timemaster.conf", config_name="config", version_base="1.3")(run)()
