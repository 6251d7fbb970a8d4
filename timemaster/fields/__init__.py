"""A setting as a field of a dataclass: its default, its meaning and its rule, written once."""

from timemaster.fields.setting import (
    Rule,
    above,
    at_least,
    between,
    meaning_of,
    one_of,
    rule,
    rule_of,
    setting,
    some_of,
)

__all__ = [
    "Rule",
    "above",
    "at_least",
    "between",
    "meaning_of",
    "one_of",
    "rule",
    "rule_of",
    "setting",
    "some_of",
]
