"""EMG with advice: the answer has a third block, <extension>, which a judge grades (the paper's soft reward).

Signals, classes and sources are those of `recipes/emg.py`. The judge is asked only when class and format are right. Its
score, 0 to 1, adds up to 0.5 to the reward. The judge is an OpenAI-compatible model: judge.model, judge.base_url,
judge.api_key_env. There is no explainer, because advice made from the label alone would be generic.

    bash example/data_preprocess/emg_soft.sh
"""

from __future__ import annotations

from dataclasses import replace

from recipes.emg import LABELS, SIGNAL
from recipes.emg import TASK as EMG
from timemaster.rewards import RewardPart, accuracy, extension, format_tags

QUESTION = f"""{SIGNAL}First reason inside <think> and </think>. Then give exactly one of the three names, Healthy, \
Myopathy or Neuropathy, inside <class> and </class>. Then, inside <extension> and </extension>, advise the person's \
doctor what to do next, as it follows from this signal and your decision: concrete steps with their reasons, no \
commonplaces."""

TASK = replace(
    EMG,
    name="emg_soft",
    data_source="emg_soft_dataset",
    question=QUESTION,
    rewards=(
        RewardPart("accuracy", 0.9, accuracy(LABELS)),
        RewardPart("format", 0.1, format_tags(("think", "class", "extension"))),
        RewardPart("extension", 0.5, extension(), only_if=("accuracy", "format")),
    ),
    explain=None,
)
