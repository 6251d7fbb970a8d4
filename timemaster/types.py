"""The records: the only things that cross a process boundary.

Plain frozen data without behaviour. No torch, no tokenizer, no engine: a record can be pickled, printed, written to
JSON and compared. Tokens are the truth between engine and trainer; text is for people and for rewards.

There is no prompt/response split. A `Rollout` is one flat token sequence with a mask over the sampled tokens, so
supervised rows, single-turn answers and several turns with images arriving midway are the same thing to the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class InputError(ValueError):
    """Bad input from the user. The message says what, where, what is allowed and what to do next."""


class WorkerDied(RuntimeError):
    """A trainer rank or an engine died. The message names the process and the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One image or video by reference. Example: Media(kind="image", uid="9f2c…", data=b"…", height=230, width=580)"""

    kind: str  # "image" or "video"
    uid: str  # content hash: equal uid means equal pixels, and is the key of every cache
    data: bytes | None = None  # the encoded file; None when `path` is set
    path: str = ""  # where the encoded file is; "" when `data` is set
    height: int = 0  # pixels, before any resizing
    width: int = 0  # pixels, before any resizing
    num_frames: int = 1  # frames given to the model; 1 for an image
    fps: float = 0.0  # frames per second after sampling; 0.0 for an image
    window: tuple[float, float] | None = None  # seconds [start, end] of the source video; None means all of it


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message. Example: Part("text", text="Which class?") or Part("image", media=Media(...))"""

    kind: str  # "text", "image" or "video"
    text: str = ""
    media: Media | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Example: Message("user", [Part("image", media=m), Part("text", text="Desktop or Laptop?")])"""

    role: str  # "system", "user", "assistant" or "tool"
    parts: list[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One dataset row. Example: Example(id="test.parquet:17", messages=[…], answer="Laptop", data_source="ctu")"""

    id: str  # unique within a run
    messages: list[Message]  # ends with a user turn (to be answered) or an assistant turn (a demonstration)
    answer: str  # the ground truth as text: for people and metrics
    truth: Any = None  # the ground truth with its type in the file, for rewards with verl's signature; None: `answer`
    data_source: str  # which task the row belongs to
    extra: dict[str, Any] = field(default_factory=dict)  # further data of the row, for rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The input of an engine. Example: Prompt(id="train:3", token_ids=[151644, …], media=[Media(...)])"""

    id: str  # the example's id
    token_ids: list[int]  # every placeholder token of every image already in place
    media: list[Media]  # in the order of their placeholders


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A dataset row that is to be answered. Example: PromptRow(example, prompt)"""

    example: Example
    prompt: Prompt  # of the example


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an engine samples. Example: Sampling(n=8, temperature=1.0, max_tokens=256, seed=17)"""

    n: int = 1  # answers per prompt, from one request
    temperature: float = 1.0  # 0.0 is greedy
    top_p: float = 1.0
    top_k: int = -1  # -1 keeps the whole vocabulary
    max_tokens: int = 1024
    seed: int | None = None  # answer k of the request is sampled with seed + k; None: not reproducible
    stop: tuple[str, ...] = ()  # sampling ends after the token that completes one of these strings


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer of an engine. Example: Completion(token_ids=[9, 15], logprobs=[-0.2, 0.0], finish_reason="stop")"""

    token_ids: list[int]  # as sampled, the end-of-turn token included
    logprobs: list[float]  # of the sampling policy (after temperature and bans), one per token
    finish_reason: str  # "stop" (end of turn), "stop_string" or "length"
    stop: str = ""  # the stop string that ended it; "" when none did


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The result of the rewards. Example: Score(total=1.0, parts={"accuracy": 1.0, "format": 1.0})"""

    total: float  # the weighted sum of the parts that are known
    parts: dict[str, float]  # by name, unweighted
    error: str = ""  # why a part could not be computed; "" without an error
    unknown: tuple[str, ...] = ()  # parts that a judge could not settle


# Why a rollout ended.
FINISH_REASONS = {
    "stop": "the policy ended its turn, and nothing follows",
    "length": "a sampled turn, or all of them together, reached the limit of tokens",
    "done": "the environment ended it",
    "max_turns": "the environment's limit of sampled turns",
    "max_images": "the environment's limit of added images",
    "no_room": "the environment's reply does not fit into the sequence",
    "failure": "the environment failed or took too long",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A piece of a rollout, in order. Example: Turn(kind="sampled", text="<code>1+1</code>", stop="</code>", …)"""

    kind: str  # "sampled" by the policy, or appended by the "environment"
    text: str  # decoded, without a sampled end-of-turn token; media of a reply appear as <image>
    token_ids: list[int] = field(default_factory=list)  # as in the rollout; empty: the model never saw this turn
    media: list[Media] = field(default_factory=list)  # images that the turn added, in order
    finish_reason: str = ""  # sampled: "stop" (end of turn), "stop_string" or "length"; environment: ""
    stop: str = ""  # the stop string that ended a sampled turn; "" when none did
    overshoot: str = ""  # text that the last token holds after the stop string; `text` ends with stop + overshoot
    sampling: Sampling | None = None  # how a sampled turn was sampled; None for a turn of the environment
    error: str = ""  # environment: Reply.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An environment's answer to a sampled turn. Example: Reply(parts=[Part("text", text="<output>2</output>")])

    `messages` are new chat turns (user or tool), after which the policy starts a new assistant turn. `parts` are
    appended inside the assistant's own turn, which goes on; they need a turn that a stop string ended. Give one of the
    two. A reply with neither ends the rollout.
    """

    messages: list[Message] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    done: bool = False  # the rollout ends here; messages and parts are kept in `Rollout.turns` without tokens
    numbers: dict[str, float] = field(default_factory=dict)  # for the log and for rewards; later values replace earlier
    error: str = ""  # a mistake of the model, such as code that raises: counted, and scored like any answer
    failure: str = ""  # a failure of the infrastructure: the rollout ends, is not scored and not trained on
    temperature: float | None = None  # for the next sampled turn, above 0; None: the run's temperature
    stop: tuple[str, ...] | None = None  # stop strings of the next sampled turn; None: the environment's
    max_tokens: int | None = None  # for the next sampled turn, at least 1; None: all that the budgets leave


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """All turns of one sample, flat. Example: token_ids=[5, 6, 7, 8], mask=[0, 0, 1, 1], versions=[-1, -1, 3, 3]"""

    id: str  # the example's id
    token_ids: list[int]
    mask: list[int]  # 1 where the policy sampled the token, else 0
    logprobs: list[float]  # of the sampling policy; 0.0 where mask is 0
    versions: list[int]  # version of the weights that sampled the token; -1 where mask is 0
    media: list[Media]  # in the order of their placeholders
    text: str  # the sampled turns, decoded, for people and rewards
    finish_reason: str  # why it ended, one of FINISH_REASONS
    turns: list[Turn] = field(default_factory=list)  # the sampled and the environment's turns, in order
    has_environment: bool = False  # whether its task has an environment
    temperatures: list[float] | None = None  # sampling temperature of each token; None: the run's for all tokens
    numbers: dict[str, float] = field(default_factory=dict)  # numbers that its environment reported
    failure: str = ""  # why its environment failed (infrastructure): not scored; "" without a failure
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt. Example: Group(example, [rollout_0, …, rollout_7])"""

    example: Example
    rollouts: list[Rollout]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sequence that a backend trains on. Example: token_ids=[5, 6, 7, 8], mask=[0, 0, 1, 1], advantage=0.7"""

    id: str  # the example's id, for error messages
    token_ids: list[int]
    mask: list[int]  # 1 where the token is trained
    media: list[Media]
    logprobs: list[float] | None = None  # old log-probs, one per token; None for supervised rows
    ref_logprobs: list[float] | None = None  # of the reference model, one per token; None without a KL term
    temperatures: list[float] | None = None  # sampling temperature of each token; None: the run's for all tokens
    advantage: float = 1.0
    data_source: str = ""  # of the example


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A dataset row that is trained on as it stands. Example: SampleRow(example, sample)"""

    example: Example
    sample: Sample  # of the example
