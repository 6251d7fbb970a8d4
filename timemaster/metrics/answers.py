"""The answer row: one answer as a line of predictions.jsonl and of rollouts/step_<N>.jsonl. One writer, one reader.

    {"id": "test.parquet:17", "prediction": "Laptop", "data_source": "computer_dataset", "truth": "Desktop",
     "response": "<think>…</think><class>Laptop</class>", "numbers": {"accuracy": 0.0}, "outcome": "wrong", …}

`prediction` is what was read in the response; it is null when the response could not be read. Rollouts whose
data_source has no recipe lack it, because nothing knows how to read their responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from timemaster.types import Example, InputError, Rollout, Turn

OUTCOMES = {
    "right": "right",
    "wrong": "wrong",
    "unparsed": "nothing could be read in the response",
    "measured": "read; its worth is a number, not right or wrong",
    "unscored": "nothing says what it is worth",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. Example: Answer(id="test.parquet:17", data_source="ctu", truth="Desktop", prediction="Laptop", …)"""

    id: str  # of the example
    data_source: str
    truth: str
    prediction: str | None  # None: the response could not be read
    is_read: bool = True  # False: the data source has no recipe, so nothing tried to read the response
    prompt: str = ""
    media: list[str] = field(default_factory=list)  # uids
    response: str = ""
    score: float | None = None  # total of the reward parts that are known; None: nothing scored the answer
    parts: dict[str, float] = field(default_factory=dict)  # of the reward, unweighted
    error: str = ""  # why a part of the score could not be computed, or the environment failed
    unknown: list[str] = field(default_factory=list)  # parts of the score that a judge could not settle
    tokens: int = 0  # sampled tokens
    prompt_tokens: int = 0  # tokens before the first sampled one, image tokens included
    finish_reason: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)  # see `turn_row`; [] for a single turn
    choices: tuple[str, ...] = ()  # the possible predictions; () for open answers; not in the files
    numbers: dict[str, float] = field(default_factory=dict)  # what the task's evaluation measured; the headline first
    outcome: str = ""  # one of OUTCOMES; "" before the answer is measured

    @property
    def reward(self) -> float | None:
        """The score when all its parts are known, else None."""
        return None if self.unknown else self.score


def answer_of_rollout(example: Example, rollout: Rollout) -> Answer:
    """A rollout as an answer that is not read yet; see `Evaluation.read_answer`."""
    score = rollout.score
    return Answer(
        id=rollout.id,
        data_source=example.data_source,
        truth=example.answer,
        prediction=None,
        prompt=prompt_text(example),
        media=[media.uid for media in rollout.media],
        response=rollout.text,
        score=score.total if score else None,
        parts=score.parts if score else {},
        error=score.error if score else rollout.failure,
        unknown=list(score.unknown) if score else [],
        tokens=sum(rollout.mask),
        prompt_tokens=rollout.mask.index(1) if 1 in rollout.mask else len(rollout.mask),
        finish_reason=rollout.finish_reason,
        turns=[turn_row(turn) for turn in rollout.turns] if len(rollout.turns) > 1 else [],
    )


def turn_row(turn: Turn) -> dict[str, Any]:
    """A turn as a JSON object. Example: {"kind": "sampled", "text": "…", "media": [], "finish_reason": "stop"}"""
    media = [media.uid for media in turn.media]
    row = {"kind": turn.kind, "text": turn.text, "media": media, "finish_reason": turn.finish_reason}
    return row | ({"error": turn.error} if turn.error else {})


def answer_of_text(example: Example, response: str, prediction: str | None) -> Answer:
    """An answer from outside a run, such as a classifier's or an API model's."""
    media = [part.media.uid for message in example.messages for part in message.parts if part.media]
    return Answer(
        id=example.id,
        data_source=example.data_source,
        truth=example.answer,
        prediction=prediction,
        prompt=prompt_text(example),
        media=media,
        response=response,
    )


def prompt_text(example: Example) -> str:
    """The text of an example's messages, with "[image]" and "[video]" in place of media."""
    return "\n".join(part.text or f"[{part.kind}]" for message in example.messages for part in message.parts)


def to_row(answer: Answer) -> dict[str, Any]:
    """The answer as a JSON object. An answer that was not read has no prediction, numbers or outcome."""
    row = asdict(answer)
    hidden = {"choices", "is_read"} | (set() if answer.is_read else {"prediction", "numbers", "outcome"})
    first = {name: row[name] for name in ("id", "prediction") if name not in hidden}
    return first | {name: value for name, value in row.items() if name not in hidden and (name != "turns" or value)}


def from_row(row: Mapping[str, Any]) -> Answer:
    """The answer of a JSON object. An object that an older version wrote may lack some names.

    Raises InputError when id, data_source, truth or prediction has the wrong type.
    """
    fields: dict[str, Any] = {}
    for name, kind in (("id", str), ("data_source", str), ("truth", str), ("prediction", str | None)):
        if not isinstance(row.get(name, None if name == "prediction" else ()), kind):
            raise InputError(f"{name} is {row.get(name, 'missing')!r}")
        fields[name] = row.get(name)
    for name in ("media", "parts", "unknown", "turns", "numbers"):
        fields[name] = row.get(name) or ({} if name in ("parts", "numbers") else [])
    for name in ("prompt", "response", "error", "finish_reason", "outcome"):
        fields[name] = str(row.get(name) or "")
    for name in ("tokens", "prompt_tokens"):
        fields[name] = row.get(name) or 0
    return Answer(**fields, score=row.get("score"), is_read="prediction" in row)


def how_sampled(temperature: float, top_p: float = 1.0, top_k: int = -1) -> str:
    """How answers were sampled, in words. Examples: "greedy", "sampled at temperature 0.4, top-p 0.9" """
    if temperature == 0:
        return "greedy"
    limits = (f", top-p {top_p:g}" if top_p < 1 else "") + (f", top-k {top_k}" if top_k > 0 else "")
    return f"sampled at temperature {temperature:g}{limits}"
