"""From prompts to scored rollouts: the turn loop around an engine.

Rewards and environments are called while other sequences are decoded. A rollout whose task has an environment goes
on for several turns: replies (images included) are tokenised alone and appended, past tokens are never touched.
Knows nothing of training, weights or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from timemaster.environments import EnvironmentSpec
from timemaster.rollout.engine import Engine
from timemaster.rollout.environments import Environments
from timemaster.rollout.progress import Progress, Request, first_sampling
from timemaster.system.calls import CallsStuck, described
from timemaster.tokens.render import Renderer
from timemaster.types import Completion, Example, Group, InputError, Prompt, Rollout, Sampling, Score

SECONDS_TO_CLOSE = 10.0  # time that `abandon` gives environments to close


class Scoring(Protocol):
    """What scores the rollouts of one prompt."""

    def add(self, index: int, rollout: Rollout) -> Future[Score | None]:
        """Start to score rollout number `index`, without waiting. The Future gives None for one with `failure`."""


StartGroup = Callable[[Example, int], Scoring]  # given the example and the number of its rollouts


@dataclass(frozen=True, slots=True)
class _Ended:
    """A rollout that has ended, while it is scored and its environment is closed."""

    rollout: Rollout
    score: Future[Score | None]
    closed: Future[None] | None  # None: it has no environment

    def is_settled(self) -> bool:
        return self.score.done() and (self.closed is None or self.closed.done())

    def scored(self) -> Rollout:
        """Raises what a reward raised. A rollout that failed keeps the score that says so."""
        score = self.score.result()
        return self.rollout if score is None else replace(self.rollout, score=score)


@dataclass(slots=True, kw_only=True)
class _Open:
    """A group in progress."""

    request: Request
    scoring: Scoring
    answers: list[Progress]
    ended: dict[int, _Ended]  # by the number of the answer

    def is_complete(self) -> bool:
        return len(self.ended) == len(self.answers) and all(ended.is_settled() for ended in self.ended.values())

    def group(self) -> Group:
        """Raises what a reward raised."""
        return Group(self.request.example, [self.ended[k].scored() for k in range(len(self.answers))])


class RolloutLoop:
    """An engine, a renderer and a way to score. `add` prompts at any time; `advance` gives the groups that are done."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        score: StartGroup,
        environment: Callable[[Example], EnvironmentSpec | None],  # of an example's task; None: one turn only
        max_model_len: int,
    ) -> None:
        self.engine, self.renderer, self.score, self.environment = engine, renderer, score, environment
        self.max_model_len = max_model_len
        self._environments = Environments()
        self._open: dict[int, _Open] = {}  # by the key of the request
        self._decoding: dict[str, list[Progress]] = {}  # by the engine's key
        # What finished outside the engine: a reply (with its rollout), or a score or a closed environment (None).
        self._arrived: SimpleQueue[Progress | None] = SimpleQueue()

    def add(self, request: Request) -> None:
        """Begin to answer a prompt."""
        assert request.key not in self._open
        spec = self.environment(request.example)
        sampling = first_sampling(request, spec, self.max_model_len)
        answers = [Progress.start(request, k, sampling, spec) for k in range(sampling.n)]
        scoring = self.score(request.example, sampling.n)
        self._open[request.key] = _Open(request=request, scoring=scoring, answers=answers, ended={})
        self._decoding[str(request.key)] = answers
        self.engine.submit(str(request.key), request.prompt, sampling)

    def num_open(self) -> int:
        """Prompts that were added and are not done."""
        return len(self._open)

    def num_unfinished(self) -> int:
        """Sequences that are not done: sampled now, waiting for the engine, or with their environment."""
        return sum(len(group.answers) - len(group.ended) for group in self._open.values())

    def advance(self, seconds: float | None = None) -> list[tuple[int, Group]]:
        """Decode a little. Returns the complete groups, every rollout scored, with the keys of their requests.

        Waits only when nothing is left to decode, and for at most `seconds` (None: no limit): for a reply of an
        environment, or a score. Raises what a reward raises, and CallsStuck when too many steps of environments never
        end.
        """
        if not self._open:
            return []
        if self.engine.busy():
            for key, completions in self.engine.step():
                for progress, completion in zip(self._decoding.pop(key), completions, strict=True):
                    self._take_turn(progress, completion)
        else:
            with suppress(Empty):
                self._take_arrived(self._arrived.get(timeout=seconds))
        with suppress(Empty):
            while True:
                self._take_arrived(self._arrived.get_nowait())
        complete = [key for key, group in self._open.items() if group.is_complete()]
        return [(key, self._open.pop(key).group()) for key in complete]

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
        """Drop everything that is open, after an error: requests are aborted, environments are closed."""
        self.engine.abort(list(self._decoding))
        closing = [ended.closed for group in self._open.values() for ended in group.ended.values() if ended.closed]
        for group in self._open.values():
            for progress in group.answers:
                if progress.environment and progress.answer not in group.ended:
                    closing.append(self._environments.close(progress.environment))
        self._open, self._decoding, self._arrived = {}, {}, SimpleQueue()
        wait(closing, timeout=SECONDS_TO_CLOSE)

    def _take_turn(self, progress: Progress, completion: Completion) -> None:
        """Take what the engine sampled for a rollout: its end, or a turn for its environment."""
        progress.add_sampled(completion, self.renderer)
        if completion.finish_reason == "length":
            self._end(progress, "length")
        elif progress.environment is None:
            self._end(progress, "stop")
        else:
            progress.reply = self._environments.step(progress.environment, progress.turns[-1])
            self._announce(progress.reply, progress)

    def _take_arrived(self, progress: Progress | None) -> None:
        """Take an environment's reply: the rollout goes on, or ends. None: there is nothing to take."""
        if progress is None:
            return
        assert progress.reply is not None
        answer, progress.reply = progress.reply, None
        error, reason, failure = answer.exception(), "failure", ""
        if isinstance(error, CallsStuck):
            raise error
        if error is None:
            try:
                reason = progress.add_reply(answer.result(), self.renderer, self.max_model_len)
                failure = answer.result().failure
            except InputError as unusable:
                error = unusable
        if reason:
            self._end(progress, reason, described(error) if error else failure)
            return
        prompt = Prompt(id=progress.request.example.id, token_ids=list(progress.token_ids), media=progress.media)
        self._decoding[progress.key] = [progress]
        self.engine.submit(progress.key, prompt, progress.sampling)

    def _end(self, progress: Progress, reason: str, failure: str = "") -> None:
        """Close the environment and start to score; a rollout that failed is not scored."""
        example = progress.request.example
        if failure:
            failure = f"the environment of example {example.id!r} failed: {failure}"
        closed = self._environments.close(progress.environment) if progress.environment else None
        rollout = progress.rollout(reason, failure)
        group = self._open[progress.request.key]
        score = group.scoring.add(progress.answer, rollout)
        group.ended[progress.answer] = _Ended(rollout, score, closed)
        self._announce(score, None)
        if closed:
            self._announce(closed, None)

    def _announce(self, future: Future[Any], progress: Progress | None) -> None:
        """Have `advance` woken up when the future is done."""
        queue = self._arrived
        future.add_done_callback(lambda _: queue.put(progress))
