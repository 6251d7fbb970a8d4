"""Small pieces the tests build with: pictures, examples, samples, flat parameters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from timemaster.media.images import image_media
from timemaster.metrics.answers import Answer
from timemaster.metrics.classification import Classification
from timemaster.types import Example, Media, Message, Part, Rollout, Sample, Score


def picture(seed: int, width: int = 112, height: int = 112) -> Media:
    """A random picture."""
    from PIL import Image

    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3)).astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return image_media(buffer.getvalue())


def question(name: str, media: Sequence[Media], text: str = "Which class?", answer: str = "Winter") -> Example:
    """One user turn: the pictures, then the text."""
    parts = [Part("image", media=item) for item in media] + [Part("text", text=text)]
    return Example(id=name, messages=[Message("user", parts)], answer=answer, data_source="power_demand")


def answer_of(source: str, truth: str, prediction: str | None, labels: Sequence[str], **more: Any) -> Answer:
    """A measured answer of a task with these labels; without any, of a row that has no recipe."""
    answer = Answer(id="", data_source=source, truth=truth, prediction=prediction, **more)
    return Classification(labels=tuple(labels)).measured(answer)


def random_samples(renderer: Any, num_prompts: int, group: int, seed: int = 0) -> list[Sample]:
    """Samples with random answers of different lengths, old and reference log-probs and advantages."""
    rng = np.random.RandomState(seed)
    samples = []
    for p in range(num_prompts):
        media = [picture(100 + p, 112 + 28 * (p % 3), 112)] * (1 if p % 4 else 0) or [picture(p), picture(p + 50)]
        prompt = renderer.prompt(question(f"row {p}", media, "Which class " + "really " * (p % 3) + "?"))
        for _ in range(group):
            n = int(rng.randint(3, 24))
            before = len(prompt.token_ids)
            samples.append(
                Sample(
                    id=prompt.id,
                    token_ids=prompt.token_ids + rng.randint(0, 250, n).tolist(),
                    mask=[0] * before + [1] * n,
                    media=prompt.media,
                    logprobs=[0.0] * before + (-6 + rng.randn(n)).tolist(),
                    ref_logprobs=[0.0] * before + (-6 + rng.randn(n)).tolist(),
                    advantage=float(rng.randn()),
                )
            )
    return samples


def trained_tokens(samples: Sequence[Sample]) -> float:
    """The global denominator."""
    return float(sum(sum(sample.mask) for sample in samples))


class settled:
    """A way to score, for `RolloutLoop`, that gives every rollout `score` at once."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def __call__(self, example: Example, num_rollouts: int) -> settled:
        return self

    def add(self, index: int, rollout: Rollout) -> Future[Score | None]:
        future: Future[Score | None] = Future()
        future.set_result(self.score)
        return future


def full(tensor: Any) -> Any:
    """The whole tensor of a shard, or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
