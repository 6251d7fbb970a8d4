"""The settings of a chat model (judge.*), and command-line options of the same names."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import Any

from timemaster.config import JudgeConfig
from timemaster.config.checks import one_each
from timemaster.judge.chat import Chat, Endpoint
from timemaster.judge.store import Budget, Store

OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--base-url", "", "such as http://host:8000/v1; '' means OpenAI's"),
    ("--api-key-env", "OPENAI_API_KEY", "the environment variable that holds the key"),
    ("--max-tokens", 1024, "of an answer at most"),
    ("--concurrency", 16, "calls at the same time"),
    ("--timeout", 120.0, "seconds without any data from the server"),
    ("--max-retries", 4, "retries of a failed call"),
    ("--max-calls", 0, "limit on requests, including retries and those of earlier starts; 0: no limit"),
    ("--max-cost", 0.0, "limit on the cost, in the currency of the prices; 0: no limit"),
    ("--price-in", 0.0, "price of a million tokens sent"),
    ("--price-out", 0.0, "price of a million tokens received"),
)


def add_chat_options(parser: Any, temperature: float) -> None:
    """Add the options that `settings_of` reads, except --model and --cache, to a parser or an argument group."""
    for name, default, meaning in (*OPTIONS, ("--temperature", temperature, "sampling temperature")):
        parser.add_argument(name, type=type(default), default=default, help=f"{meaning} (default: {default!r})")
    parser.add_argument(
        "--extra-body",
        type=_json_object,
        default={},
        metavar="JSON",
        help='more fields of a request; null removes a field: {"max_tokens": null, "max_completion_tokens": 2048}',
    )


def settings_of(options: argparse.Namespace) -> JudgeConfig:
    """The judge settings that these options give."""
    names = {field.name for field in fields(JudgeConfig)}
    given = {name: value for name, value in vars(options).items() if name in names}
    for name in {"model", "base_url", "api_key_env"} & given.keys():
        given[name] = given[name] if isinstance(given[name], list) else [given[name]]
    return JudgeConfig(**given)


def chats_from(j: JudgeConfig, store: Store, account: str, concurrency: int = 0) -> list[Chat]:
    """A Chat for each model in `j.model`. `concurrency` replaces `j.concurrency` when it is not 0."""
    budget = Budget(max_calls=j.max_calls, max_cost=j.max_cost, price_in=j.price_in, price_out=j.price_out)
    urls, keys = one_each(j.base_url, len(j.model)), one_each(j.api_key_env, len(j.model))
    chats = []
    for model, url, key in zip(j.model, urls, keys, strict=True):
        endpoint = Endpoint(
            model=model,
            base_url=url,
            api_key_env=key,
            temperature=j.temperature,
            max_tokens=j.max_tokens,
            timeout=j.timeout,
            max_retries=j.max_retries,
            extra_body=j.extra_body,
        )
        chats.append(Chat(endpoint, budget, store, account, concurrency or j.concurrency))
    return chats


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("give a JSON object")
    return value
