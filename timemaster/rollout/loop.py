"""From prompts to scored rollouts: the turn loop around an engine.

Answers are scored beside other sequences' decoding, by rewards of any speed. A task with `respond` goes on for several
turns: its messages (images included) are tokenised alone and appended, past tokens are never touched.
Knows nothing of training, weights or Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Protocol

from timemaster.rollout.engine import Engine
from timemaster.tokens.render import Renderer
from timemaster.types import Completion, Example, Group, Media, Message, Prompt, Rollout, Sampling, Score

Respond = Callable[[Example, str], list[Message] | None]


class Scoring(Protocol):
    """What scores the rollouts of one prompt."""

    def add(self, index: int, rollout: Rollout) -> Future[Score | None]:
        """Start to score rollout number `index`, without waiting. The Future gives None for one with `failure`."""


StartGroup = Callable[[Example, int], Scoring]  # given the example and the number of its rollouts


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """A rollout in the making."""

    token_ids: list[int]
    mask: list[int]
    logprobs: list[float]
    versions: list[int]
    media: list[Media]
    texts: list[str] = field(default_factory=list)

    def append(self, token_ids: list[int], logprobs: list[float] | None, version: int) -> None:
        sampled = logprobs is not None
        self.token_ids += token_ids
        self.mask += [int(sampled)] * len(token_ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(token_ids)
        self.versions += [version if sampled else -1] * len(token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to be answered `sampling.n` times. Example: Request(key=3, example=e, prompt=p, sampling=s, …)"""

    key: int  # the caller's; comes back with the group
    example: Example
    prompt: Prompt
    sampling: Sampling
    version: int  # of the weights, put on every sampled token
    seed: str  # with the example's id and the number of the answer it makes sampling reproducible, on any engine


@dataclass(slots=True, kw_only=True)
class _Open:
    """A group in the making."""

    request: Request
    scoring: Scoring
    answers: list[tuple[Rollout, Future[Score | None]] | None]

    def is_complete(self) -> bool:
        return all(answer is not None and answer[1].done() for answer in self.answers)

    def group(self) -> Group:
        """Raises what a reward raised."""
        scored = [replace(answer[0], score=answer[1].result()) for answer in self.answers if answer is not None]
        return Group(self.request.example, scored)


class RolloutLoop:
    """An engine, a renderer and a way to score. `add` prompts at any time; `advance` gives the groups that are done."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        score: StartGroup,
        respond: Callable[[Example], Respond | None],  # the next turns of an example's task, None for single turns
        max_model_len: int,
    ) -> None:
        self.engine, self.renderer, self.score, self.respond = engine, renderer, score, respond
        self.max_model_len = max_model_len
        self._open: dict[int, _Open] = {}
        self._live: dict[str, tuple[int, int, _Sequence]] = {}  # later turns: key of the request, answer, sequence

    def add(self, request: Request) -> None:
        """Begin to answer a prompt."""
        assert request.key not in self._open
        n = request.sampling.n
        scoring = self.score(request.example, n)
        self._open[request.key] = _Open(request=request, scoring=scoring, answers=[None] * n)
        params = replace(request.sampling, seed=stable_seed(f"{request.seed}/{request.example.id}"))
        self.engine.submit(str(request.key), request.prompt, params)

    def num_open(self) -> int:
        """Prompts that were added and are not done."""
        return len(self._open)

    def num_unfinished(self) -> int:
        """Sequences that are not done: sampled now, waiting for the engine, or with their environment."""
        return sum(answer is None for one in self._open.values() for answer in one.answers)

    def advance(self) -> list[tuple[int, Group]]:
        """Decode a little. The groups that are complete, every rollout scored, with the keys of their requests.

        Raises what a reward raises.
        """
        if self.engine.busy():
            for key, completions in self.engine.step():
                self._finished(key, completions)
        else:  # only scores are open
            pending = [a[1] for one in self._open.values() for a in one.answers if a is not None and not a[1].done()]
            wait(pending, return_when=FIRST_COMPLETED)
        done = [key for key, one in self._open.items() if one.is_complete()]
        return [(key, self._open.pop(key).group()) for key in done]

    def run(self, jobs: Sequence[tuple[Example, Prompt]], sampling: Sampling, version: int, seed: str) -> list[Group]:
        """Answer every prompt `sampling.n` times. Returns one Group per job, in order."""
        for i, (example, prompt) in enumerate(jobs):
            self.add(Request(key=i, example=example, prompt=prompt, sampling=sampling, version=version, seed=seed))
        groups: dict[int, Group] = {}
        try:
            while self.num_open():
                groups |= dict(self.advance())
        finally:
            self.abandon()
        return [groups[i] for i in range(len(jobs))]

    def abandon(self) -> None:
        """Drop all that is open, after an error: what the engine still decodes is of no use."""
        while self.engine.busy():
            self.engine.step()
        self._open, self._live = {}, {}

    def _finished(self, key: str, completions: list[Completion]) -> None:
        """Take what the engine answered: the first turns of a group, or a later turn of one rollout."""
        if key in self._live:
            started = [self._live.pop(key)]
        else:
            request = self._open[int(key)].request
            started = [(request.key, j, _start(request.prompt)) for j in range(request.sampling.n)]
        for (i, j, sequence), completion in zip(started, completions, strict=True):
            request = self._open[i].request
            follow_up = self._take(request.example, sequence, completion, request.version, request.sampling)
            if follow_up is None:
                rollout = _finish(request.example, sequence, completion.finish_reason)
                self._open[i].answers[j] = rollout, self._open[i].scoring.add(j, rollout)
                continue
            turn = f"{i}/{j}/{len(sequence.texts)}"
            self._live[turn] = (i, j, sequence)
            prompt = Prompt(id=request.example.id, token_ids=list(sequence.token_ids), media=sequence.media)
            seed = stable_seed(f"{request.seed}/{prompt.id}/{turn}")
            self.engine.submit(turn, prompt, replace(follow_up, seed=seed))

    def _take(
        self, example: Example, sequence: _Sequence, completion: Completion, version: int, sampling: Sampling
    ) -> Sampling | None:
        """Append an answer, and the next turn if the task wants one and it fits. Returns how to sample it, or None."""
        sequence.append(completion.token_ids, completion.logprobs, version)
        ended = completion.token_ids[-1:] == [self.renderer.end_of_turn]
        shown = completion.token_ids[:-1] if ended else completion.token_ids
        sequence.texts.append(self.renderer.decode(shown, skip_special_tokens=False))
        respond = self.respond(example)
        if respond is None or completion.finish_reason != "stop":
            return None
        messages = respond(example, "\n".join(sequence.texts))
        if not messages:
            return None
        token_ids, media = self.renderer.next_turn(messages, example.id)
        room = min(sampling.max_tokens - sum(sequence.mask), self.max_model_len - len(sequence.token_ids + token_ids))
        if room < 1:
            return None
        sequence.append(token_ids, None, version)
        sequence.media = sequence.media + media
        return replace(sampling, n=1, max_tokens=room)


def _finish(example: Example, sequence: _Sequence, finish_reason: str) -> Rollout:
    return Rollout(
        id=example.id,
        token_ids=sequence.token_ids,
        mask=sequence.mask,
        logprobs=sequence.logprobs,
        versions=sequence.versions,
        media=sequence.media,
        text="\n".join(sequence.texts),
        finish_reason=finish_reason,
    )


def _start(prompt: Prompt) -> _Sequence:
    size = len(prompt.token_ids)
    return _Sequence(
        token_ids=list(prompt.token_ids),
        mask=[0] * size,
        logprobs=[0.0] * size,
        versions=[-1] * size,
        media=prompt.media,
    )


def stable_seed(text: str) -> int:
    """A seed of 31 bits that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
