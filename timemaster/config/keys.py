"""Settings by their dotted keys, such as "actor.optim.lr"."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from timemaster.config.settings import Config
from timemaster.fields import Rule, meaning_of, rule_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a Config. Example: Setting(key="data.seed", type=int, value=1, meaning="seed of …", rule=None)"""

    key: str
    type: object  # as annotated: int, list[str], …
    value: Any
    meaning: str
    rule: Rule[Any] | None  # None: every value of the type is allowed


def all_settings(cfg: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a Config, or of a section of one, in order."""
    types = get_type_hints(type(cfg))
    for item in fields(cfg):
        value, key = getattr(cfg, item.name), prefix + item.name
        if is_dataclass(value):
            yield from all_settings(value, f"{key}.")
        else:
            yield Setting(key=key, type=types[item.name], value=value, meaning=meaning_of(item), rule=rule_of(item))


def get(cfg: Config, key: str) -> Any:
    """The value at a key. Example: get(cfg, "actor.optim.lr")"""
    value: Any = cfg
    for name in key.split("."):
        value = getattr(value, name)
    return value


def with_settings(cfg: Config, changes: Mapping[str, object]) -> Config:
    """A copy of `cfg` with other values. Example: with_settings(cfg, {"rollout.n": 8})

    Raises AttributeError for a key that does not exist.
    """
    changed = copy.deepcopy(cfg)
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        node = get(changed, section)
        getattr(node, name)
        setattr(node, name, value)
    return changed
