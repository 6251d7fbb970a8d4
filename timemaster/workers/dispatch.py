"""Which engine answers which prompt. Engines pull: each is given further prompts as it finishes earlier ones.

So an engine that is faster, or whose answers are shorter, answers more prompts. This is bookkeeping on the driver's
side; it knows nothing of Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from timemaster.rollout.progress import Request
from timemaster.types import Group


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The result of `EngineRank.advance`. Example: EngineReport(groups=[(3, Group(...))], num_unfinished=12)"""

    groups: list[tuple[int, Group]]  # the groups completed by this call, each with the key of its request
    num_unfinished: int  # sequences that the engine still has to finish


class Dispatcher:
    """Deals requests, in their order, to engines that have room.

    Room is counted in sequences: an engine may hold `capacity` of them that are not finished. An engine that holds none
    is given a prompt in any case. Each working engine has two calls open, so that it begins the second one while the
    result of the first travels to the driver.
    """

    def __init__(self, requests: Sequence[Request], num_engines: int, capacity: int) -> None:
        self._requests = deque(requests)
        self._capacity = capacity
        self._num_unfinished = [0] * num_engines  # sequences of each engine, as it last reported
        self._in_calls: list[deque[int]] = [deque() for _ in range(num_engines)]  # sequences given with each open call
        self._num_prompts = [0] * num_engines  # prompts that each engine holds, those being scored included

    def first_calls(self) -> list[tuple[int, list[Request]]]:
        """(engine, requests) of the calls to begin with. Prompts are dealt one by one, so the shares are equal."""
        shares: list[list[Request]] = [[] for _ in self._in_calls]
        loads = [0] * len(shares)
        while self._requests and self._has_room(min(loads)):
            engine = loads.index(min(loads))
            shares[engine].append(self._requests.popleft())
            loads[engine] += shares[engine][-1].sampling.n
        calls = [call for engine, share in enumerate(shares) if share for call in ((engine, share), (engine, []))]
        for engine, share in calls:
            self._record(engine, share)
        return calls

    def next_call(self, engine: int, report: EngineReport) -> list[Request] | None:
        """The oldest open call of `engine` returned `report`. Returns the requests of its next call, None for no call.

        The list is empty when the engine still works and has no room, or no prompt is left.
        """
        self._in_calls[engine].popleft()
        self._num_unfinished[engine] = report.num_unfinished
        self._num_prompts[engine] -= len(report.groups)
        load = report.num_unfinished + sum(self._in_calls[engine])
        share: list[Request] = []
        while self._requests and self._has_room(load):
            share.append(self._requests.popleft())
            load += share[-1].sampling.n
        if not share and not self._num_prompts[engine]:
            return None
        self._record(engine, share)
        return share

    def _has_room(self, load: int) -> bool:
        return not load or load + self._requests[0].sampling.n <= self._capacity

    def _record(self, engine: int, share: list[Request]) -> None:
        self._in_calls[engine].append(sum(request.sampling.n for request in share))
        self._num_prompts[engine] += len(share)
