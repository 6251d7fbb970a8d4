"""A rollout in progress: its tokens, its turns, and what its budgets leave. No engine, no threads."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from timemaster.environments import EnvironmentSpec
from timemaster.rollout.environments import OpenEnvironment
from timemaster.tokens.render import Renderer, parts_of
from timemaster.types import (
    Completion,
    Example,
    InputError,
    Media,
    Prompt,
    Reply,
    Rollout,
    Sampling,
    Score,
    Turn,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to be answered `sampling.n` times. Example: Request(key=3, example=e, prompt=p, sampling=s, …)"""

    key: int  # chosen by the caller; comes back with the group
    example: Example
    prompt: Prompt
    sampling: Sampling  # `max_tokens`: of all sampled turns of a rollout together
    version: int  # of the weights, recorded for every sampled token
    seed: str  # seeds the sampling, with the example's id, the answer's number and the turn; the same on any engine


@dataclass(slots=True, kw_only=True, eq=False)
class Progress:
    """One unfinished answer to a request. Tokens that were added never change."""

    request: Request
    answer: int  # its number among the answers to the request
    environment: OpenEnvironment | None
    token_ids: list[int]
    mask: list[int]
    logprobs: list[float]
    versions: list[int]
    temperatures: list[float]
    media: list[Media]
    sampling: Sampling  # of the turn that is being sampled
    turns: list[Turn] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    reply: Future[Reply] | None = None  # the environment's reply to the last turn, while it is awaited

    @classmethod
    def start(cls, request: Request, answer: int, sampling: Sampling, spec: EnvironmentSpec | None) -> Progress:
        """A rollout with only the prompt. `sampling`: for the first turn of all answers to the request."""
        size = len(request.prompt.token_ids)
        seed = None if sampling.seed is None else sampling.seed + answer
        return cls(
            request=request,
            answer=answer,
            environment=OpenEnvironment(spec, request.example) if spec else None,
            token_ids=list(request.prompt.token_ids),
            mask=[0] * size,
            logprobs=[0.0] * size,
            versions=[-1] * size,
            temperatures=[sampling.temperature] * size,
            media=list(request.prompt.media),
            sampling=replace(sampling, n=1, seed=seed),
        )

    @property
    def num_sampled_turns(self) -> int:
        return sum(turn.kind == "sampled" for turn in self.turns)

    @property
    def key(self) -> str:
        """Key of the engine's request for the next turn."""
        return f"{self.request.key}/{self.answer}/{self.num_sampled_turns}"

    def add_sampled(self, completion: Completion, renderer: Renderer) -> None:
        """Append the turn that was sampled."""
        token_ids = completion.token_ids
        is_closed = token_ids[-1:] == [renderer.end_of_turn]
        text = renderer.decode(token_ids[:-1] if is_closed else token_ids, skip_special_tokens=False)
        self.turns.append(
            Turn(
                kind="sampled",
                text=text,
                token_ids=list(token_ids),
                finish_reason=completion.finish_reason,
                stop=completion.stop,
                # Sampling ended at the first occurrence.
                overshoot=text.partition(completion.stop)[2] if completion.stop else "",
                sampling=self.sampling,
            )
        )
        self._append(token_ids, completion.logprobs)

    def add_reply(self, reply: Reply, renderer: Renderer, max_model_len: int) -> str:
        """Append the environment's reply if the rollout goes on, else record it without tokens.

        Returns why the rollout ends, one of FINISH_REASONS; "" when it goes on. Raises InputError when the reply cannot
        be tokenised.
        """
        assert self.environment is not None
        self.numbers |= reply.numbers
        token_ids: list[int] = []
        media = [part.media for part in parts_of(reply) if part.media is not None]
        reason = self._end_of(reply, len(media))
        if not reason:
            token_ids, _ = renderer.reply(reply, self.request.example.id)
            if reply.messages and self.turns[-1].stop:
                token_ids = [renderer.end_of_turn, *token_ids]  # a stop string has not closed the assistant's turn
            if max_model_len - len(self.token_ids) - len(token_ids) < 1:
                reason, token_ids = "no_room", []
        turn = Turn(kind="environment", text=_text_of(reply), token_ids=token_ids, media=media, error=reply.error)
        self.turns.append(turn)
        if not reason:
            self._append(token_ids, None)
            self.media = self.media + media
            self.sampling = self._next_sampling(reply, max_model_len)
        return reason

    def _end_of(self, reply: Reply, num_images: int) -> str:
        """Why the rollout ends with this reply, "" when only the sequence's length could still end it."""
        assert self.environment is not None
        spec = self.environment.spec
        if reply.failure:
            return "failure"
        if reply.done:
            return "done"
        if not reply.messages and not reply.parts:
            return "stop"
        if reply.parts and not self.turns[-1].stop:
            raise InputError("Reply has parts, but the policy had ended its turn: give messages, or done=True")
        if self.num_sampled_turns >= spec.max_turns:
            return "max_turns"
        added = len(self.media) - len(self.request.prompt.media)
        if added + num_images > spec.max_images:
            return "max_images"
        return "length" if sum(self.mask) >= self.request.sampling.max_tokens else ""

    def _next_sampling(self, reply: Reply, max_model_len: int) -> Sampling:
        assert self.environment is not None
        spec, run = self.environment.spec, self.request.sampling
        seed = stable_seed(f"{self.request.seed}/{self.request.example.id}/{self.answer}/{self.num_sampled_turns}")
        limits = [run.max_tokens - sum(self.mask), max_model_len - len(self.token_ids)]
        limits += [limit for limit in (spec.max_segment_tokens, reply.max_tokens) if limit]
        return replace(
            run,
            n=1,
            temperature=run.temperature if reply.temperature is None else reply.temperature,
            stop=spec.stop if reply.stop is None else reply.stop,
            max_tokens=min(limits),
            seed=seed,
        )

    def _append(self, token_ids: list[int], logprobs: list[float] | None) -> None:
        """`logprobs`: None for tokens that were not sampled."""
        size, is_sampled = len(token_ids), logprobs is not None
        self.token_ids += token_ids
        self.mask += [int(is_sampled)] * size
        self.logprobs += logprobs if logprobs is not None else [0.0] * size
        self.versions += [self.request.version if is_sampled else -1] * size
        self.temperatures += [self.sampling.temperature] * size

    def rollout(self, finish_reason: str, failure: str = "") -> Rollout:
        """The finished rollout. If it failed, it has a score, which is unknown."""
        is_uniform = set(self.temperatures) == {self.request.sampling.temperature}
        unknown = Score(total=0.0, parts={}, error=failure, unknown=("environment",))
        return Rollout(
            id=self.request.example.id,
            token_ids=self.token_ids,
            mask=self.mask,
            logprobs=self.logprobs,
            versions=self.versions,
            media=self.media,
            text="\n".join(turn.text for turn in self.turns if turn.kind == "sampled"),
            finish_reason=finish_reason,
            turns=self.turns,
            has_environment=self.environment is not None,
            temperatures=None if is_uniform else self.temperatures,
            numbers=self.numbers,
            failure=failure,
            score=unknown if failure else None,
        )


def first_sampling(request: Request, spec: EnvironmentSpec | None, max_model_len: int) -> Sampling:
    """How the first turn of all answers to a request is sampled."""
    seed = stable_seed(f"{request.seed}/{request.example.id}")
    if spec is None:
        return replace(request.sampling, seed=seed)
    limits = [request.sampling.max_tokens, max_model_len - len(request.prompt.token_ids)]
    limits += [spec.max_segment_tokens] if spec.max_segment_tokens else []
    return replace(request.sampling, seed=seed, stop=spec.stop, max_tokens=min(limits))


def _text_of(reply: Reply) -> str:
    """The texts of a reply with <image> where its images stand, a line break between messages."""
    groups = [message.parts for message in reply.messages] or [reply.parts]
    return "\n".join("".join(part.text if part.kind == "text" else "<image>" for part in group) for group in groups)


def stable_seed(text: str) -> int:
    """A seed of 31 bits that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
