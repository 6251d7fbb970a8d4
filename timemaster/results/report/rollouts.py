"""The rollouts of a run, as the page shows them, from rollouts/step_<N>.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from timemaster.metrics.answers import from_row
from timemaster.results.report.json_files import number, read_lines
from timemaster.run.step_names import by_step


def read_rollouts(folder: Path, limit: int, notes: list[str]) -> list[dict[str, Any]]:
    """The logged answers in the order of training. Beyond `limit` answers, whole steps are left out, evenly."""
    files = by_step(folder, "step_*.jsonl")
    steps = list(files)
    counts = [files[step].read_bytes().count(b"\n") for step in steps]  # the text of a long run may not fit in memory
    kept = [step for step, keep in zip(steps, thinned(counts, limit), strict=True) if keep]
    if len(kept) < len(steps):
        notes.append(f"rollouts of {len(kept)} of {len(steps)} steps shown, {sum(counts)} in all; see --max-rollouts")
    return [shown(row, step) for step in kept for row in read_lines(files[step], notes)]


def thinned(counts: list[int], limit: int) -> list[bool]:
    """Which steps to keep, so that at most `limit` rollouts remain: evenly spread, with the first and the last step."""
    total, last = sum(counts), len(counts) - 1
    if total <= limit:
        return [True] * len(counts)
    num_kept = max(int(limit / max(counts)), 1)
    chosen = {round(k * last / (num_kept - 1)) for k in range(num_kept)} if num_kept > 1 else {last}
    return [i in chosen for i in range(len(counts))]


def shown(row: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A row as the page shows it. Rows of older versions lack some fields: see `older_rollouts`."""
    answer = from_row(with_known_types(row))
    media, turns = answer.media, [shown_turn(turn) for turn in answer.turns]
    out = {
        "id": answer.id,
        "step": step,
        "source": answer.data_source,
        "prompt": answer.prompt,
        "media": media,
        "prompt_media": media[: len(media) - num_brought(media, turns)],
        "truth": answer.truth,
        "text": answer.response,
        "turns": turns,
        "score": number(answer.score),
        "parts": {str(name): number(value) for name, value in answer.parts.items()},
        "numbers": {str(name): number(value) for name, value in answer.numbers.items()},
        "unknown": [str(name) for name in answer.unknown],
        "error": answer.error,
        "tokens": number(row.get("tokens")),
        "finish": answer.finish_reason,
        "advantage": number(row.get("advantage")),
    }
    if answer.is_read:
        out["said"] = answer.prediction
    return out | ({"outcome": answer.outcome} if answer.outcome else {})


def with_known_types(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with texts, lists and dicts where `from_row` needs them."""
    known: dict[str, Any] = dict(row)
    known |= {name: str(row.get(name) or "") for name in ("id", "data_source", "truth")}
    for name, kind in (("media", list), ("unknown", list), ("turns", list), ("parts", dict), ("numbers", dict)):
        known[name] = row[name] if isinstance(row.get(name), kind) else kind()
    known["media"] = [str(name) for name in known["media"]]
    if known.get("prediction") is not None:
        known["prediction"] = str(known["prediction"])
    return known


def shown_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn of a rollout as the page shows it."""
    texts = {name: str(turn.get(name) or "") for name in ("kind", "text", "finish_reason", "error")}
    return texts | {"media": [str(name) for name in turn.get("media") or []]}


def num_brought(media: list[str], turns: Iterable[Mapping[str, Any]]) -> int:
    """How many of a rollout's pictures its turns brought: the last ones. The other pictures belong to the prompt.

    A reply that ended its rollout may have pictures that are not in `media`: the policy never saw them.
    """
    brought = [name for turn in turns for name in turn["media"]]
    for count in range(min(len(brought), len(media)), 0, -1):
        if media[-count:] == brought[:count]:
            return count
    return 0
