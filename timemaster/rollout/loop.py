"""From prompts to scored rollouts: the turn loop around an engine.

Answers are scored beside other sequences' decoding, by rewards of any speed. A task with `respond` goes on for several
turns: its messages (images included) are tokenised alone and appended, past tokens are never touched.
Knows nothing of training, weights or Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from timemaster.rollout.engine import Engine
from timemaster.tokens.render import Renderer
from timemaster.types import Completion, Example, Group, Media, Message, Prompt, Rollout, Sampling, Score

ScoreFn = Callable[[Rollout, Example], Future[Score]]  # starts to score; does not wait
Respond = Callable[[Example, str], list[Message] | None]


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


@dataclass(slots=True, kw_only=True)
class RolloutLoop:
    """An engine, a renderer and a way to score; `run` answers a batch of prompts."""

    engine: Engine
    renderer: Renderer
    score: ScoreFn
    respond: Callable[[Example], Respond | None]  # the next turns of an example's task, None for single turns
    max_model_len: int

    def run(self, jobs: Sequence[tuple[Example, Prompt]], sampling: Sampling, version: int, seed: str) -> list[Group]:
        """Answer every prompt `sampling.n` times. `version` tags the tokens, `seed` makes them reproducible.

        Returns one Group per job, in order, every rollout scored. Raises what a reward raises.
        """
        answers: list[list[tuple[Rollout, Future[Score]] | None]] = [[None] * sampling.n for _ in jobs]
        live: dict[str, tuple[int, int, _Sequence]] = {}
        for i, (example, prompt) in enumerate(jobs):
            params = replace(sampling, seed=stable_seed(f"{seed}/{example.id}"))
            self.engine.submit(f"{i}", prompt, params)
        while self.engine.busy():
            for key, completions in self.engine.step():
                if key in live:
                    i, j, sequence = live.pop(key)
                    started = [(i, j, sequence)]
                else:
                    i = int(key)
                    started = [(i, j, _start(jobs[i][1])) for j in range(sampling.n)]
                for (i, j, sequence), completion in zip(started, completions, strict=True):
                    follow_up = self._take(jobs[i][0], sequence, completion, version, sampling)
                    if follow_up is None:
                        rollout = _finish(jobs[i][0], sequence, completion.finish_reason)
                        answers[i][j] = rollout, self.score(rollout, jobs[i][0])
                        continue
                    key = f"{i}/{j}/{len(sequence.texts)}"
                    live[key] = (i, j, sequence)
                    prompt = Prompt(id=jobs[i][0].id, token_ids=list(sequence.token_ids), media=sequence.media)
                    self.engine.submit(key, prompt, replace(follow_up, seed=stable_seed(f"{seed}/{prompt.id}/{key}")))
        return [
            Group(example, [replace(answer[0], score=answer[1].result()) for answer in row if answer is not None])
            for (example, _), row in zip(jobs, answers, strict=True)
        ]

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
