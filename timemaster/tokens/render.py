"""Messages to tokens: prompts for engines, samples for supervised training, and later turns of a rollout.

Text is tokenised once. A later turn is tokenised alone and appended, so that sampled tokens never change. Knows nothing
of rewards or engines. Of a model it knows only the tokenizer and the vision spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from timemaster.models.family import VisionSpec
from timemaster.models.vision import num_tokens
from timemaster.types import Example, InputError, Media, Message, Part, Prompt, Reply, Sample

SENTINEL = "\u2063answer\u2063"  # takes the place of the assistant's text while the template is rendered around it
MARK = "\u2063text\u2063"  # takes the place of an environment's text, in the same way


class Renderer:
    """A tokenizer with its chat template, and the number of tokens of each image."""

    def __init__(self, model_path: str, spec: VisionSpec) -> None:
        family = spec.family
        self.tokenizer = family.tokenizer_class().from_pretrained(model_path)
        self.spec = spec
        self.end_of_turn = self.tokenizer.convert_tokens_to_ids(family.end_of_turn)
        if self.end_of_turn is None or self.tokenizer.chat_template is None:
            raise InputError(
                f"{model_path}: the tokenizer has no chat template, or no token {family.end_of_turn}. A {family.name} "
                "has both: copy or download its tokenizer files again."
            )

    def prompt(self, example: Example) -> Prompt:
        """The prompt up to the assistant's answer. A final assistant turn is left out."""
        messages = example.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages:
            raise InputError(f"row {example.id}: there is no turn before the assistant's; a user turn must come first.")
        text = self._render(messages, add_generation_prompt=True)
        media = media_of(messages)
        return Prompt(id=example.id, token_ids=self._expand(self.encode(text), media, example.id), media=media)

    def sample(self, example: Example) -> Sample:
        """A supervised sample: every assistant turn and its end-of-turn token are trained, the rest is context."""
        token_ids: list[int] = []
        mask: list[int] = []
        media: list[Media] = []
        num_done = 0  # messages that are in the sample
        for k, message in enumerate(example.messages):
            if message.role != "assistant":
                continue
            if num_done == 0:
                context = self.prompt(Example(id=example.id, messages=example.messages[:k], answer="", data_source=""))
                context_ids, new_media = context.token_ids, context.media
            else:
                context_ids, new_media = self.next_turn(example.messages[num_done:k], example.id)
            answer = [*self.encode("".join(part.text for part in message.parts)), self.end_of_turn]
            token_ids += context_ids + answer
            mask += [0] * len(context_ids) + [1] * len(answer)
            media += new_media
            num_done = k + 1
        if num_done == 0:
            raise InputError(f"row {example.id}: no assistant turn to learn from; SFT rows end with one.")
        return Sample(id=example.id, token_ids=token_ids, mask=mask, media=media, data_source=example.data_source)

    def next_turn(self, messages: Sequence[Message], row: str) -> tuple[list[int], list[Media]]:
        """Tokens between an assistant's end-of-turn token and the next answer, for the turns that came in between."""
        media = media_of(messages)
        return self._expand(self.encode(self._after_answer(messages)), media, row), media

    def reply(self, reply: Reply, row: str) -> tuple[list[int], list[Media]]:
        """Tokens of an environment's reply: its messages as in `next_turn`, or its parts inside the assistant's turn.

        Text that looks like a special token is encoded as plain text, because it may be output of code that the policy
        wrote.
        """
        texts = [part.text for part in parts_of(reply) if part.kind == "text"]
        if reply.messages:
            marked = [Message(m.role, _marked(m.parts)) for m in reply.messages]
            rendered = self._after_answer(marked)
        else:
            edge = Part("text", text=SENTINEL)
            turn = [Message("user", []), Message("assistant", [edge, *_marked(reply.parts), edge])]
            rendered = self._render(turn, add_generation_prompt=False).split(SENTINEL)[1]
        first, *others = rendered.split(MARK)
        token_ids = self.encode(first)
        for text, piece in zip(texts, others, strict=True):
            token_ids += self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            token_ids += self.encode(piece)
        media = [part.media for part in parts_of(reply) if part.media is not None]
        return self._expand(token_ids, media, row), media

    def _after_answer(self, messages: Sequence[Message]) -> str:
        """Text between an assistant's end-of-turn token and the next answer."""
        before = [Message("user", []), Message("assistant", [Part("text", text=SENTINEL)])]
        rendered = self._render([*before, *messages], add_generation_prompt=True)
        return rendered.split(SENTINEL, 1)[1].removeprefix(self.spec.family.end_of_turn)

    def encode(self, text: str) -> list[int]:
        """Token ids of text, special tokens recognised, none added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        dicts = [_as_dict(message) for message in messages]
        return self.tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _expand(self, token_ids: list[int], media: Sequence[Media], row: str) -> list[int]:
        pads = (self.spec.image_token_id, self.spec.video_token_id)
        num_places = sum(token in pads for token in token_ids)
        if num_places != len(media):
            raise InputError(
                f"row {row}: the rendered text has {num_places} image or video tokens for {len(media)} images and "
                f"videos. A row's text must not contain special tokens such as {self.spec.family.image_token}."
            )
        queue = iter(media)
        out: list[int] = []
        for token in token_ids:
            out += [token] * self._num_tokens(next(queue), row) if token in pads else [token]
        return out

    def _num_tokens(self, media: Media, row: str) -> int:
        if media.kind == "video" and media.height == 0:
            raise InputError(f"row {row}: the size of its video {media.path} is not known; only images can be read.")
        try:
            return num_tokens(media, self.spec)
        except InputError as error:
            raise InputError(f"row {row}: the {media.kind} has {error}") from error


def parts_of(reply: Reply) -> list[Part]:
    """All parts of a reply, in order."""
    return [part for message in reply.messages for part in message.parts] + reply.parts


def _marked(parts: Sequence[Part]) -> list[Part]:
    return [replace(part, text=MARK) if part.kind == "text" else part for part in parts]


def media_of(messages: Sequence[Message]) -> list[Media]:
    """All media of messages, in order."""
    return [part.media for message in messages for part in message.parts if part.media is not None]


def _as_dict(message: Message) -> dict[str, Any]:
    parts = [{"type": p.kind, "text": p.text} if p.kind == "text" else {"type": p.kind} for p in message.parts]
    return {"role": message.role, "content": parts}
