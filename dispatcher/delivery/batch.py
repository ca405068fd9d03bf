"""Many attempts in one POST: each task gets exactly one receipt, as its result arrives or when no more can."""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice

from msgspec import Raw

from dispatcher.delivery import failures
from dispatcher.delivery.classify import GATEWAY, Reading, Reply, classify, classify_result, classify_turn, media_type, too_large, turned
from dispatcher.delivery.deadline import Deadline
from dispatcher.delivery.envelope import batch_body, parse_result, parse_results
from dispatcher.delivery.exchange import Exchange, Sender
from dispatcher.delivery.headers import joint_message_id
from dispatcher.delivery.lines import LineTooLong
from dispatcher.delivery.message import Push, Receipt, Target
from dispatcher.engine.answers import Answer, Failed, Lost, Succeeded

Settle = Callable[[int, Receipt], None]
Turn = Callable[[], Awaitable[None]]

_AT_ONCE = 25  # results, which take about a millisecond


class Ledger:
    """The tasks of one request, and which still have no receipt. `indexes` are their places in the sequence `settle` is told of."""

    def __init__(self, pushes: Sequence[Push], indexes: range, settle: Settle) -> None:
        self._pushes = pushes
        self._settle = settle
        self._owed = dict.fromkeys(indexes)
        self._places = {pushes[index].task_id: index for index in indexes}

    @property
    def open(self) -> bool:
        """Whether any task is without a receipt."""
        return bool(self._owed)

    def take(self, line: bytes | Raw, reading: Reading, exchange: Exchange) -> None:
        """Believe one result. Of an unknown task, of one settled before, or unreadable: ignored, and so missing in the end."""
        result = parse_result(line)
        if result is None:
            return
        index = self._places.get(result if isinstance(result, str) else result.id, -1)
        if index not in self._owed:
            return
        answer: Answer | None = None
        if self._pushes[index].turn is not None:
            answer = turned(line, reading)
        if answer is None and not isinstance(result, str):
            answer = classify_result(result, reading)
        if answer is None or (self._pushes[index].turn is not None and isinstance(answer, Succeeded)):
            answer = Failed("bad_response", "the result for this task is malformed")
        self._close(index, exchange.receipt(answer, bytes(line)))

    def rest(self, receipt: Receipt, of_turns: Answer | None = None) -> None:
        """The same receipt for every task still owed one. For turns of durable tasks it may mean something else."""
        if of_turns is not None:
            turns = [index for index in self._owed if self._pushes[index].turn is not None]
            self.expire(turns, replace(receipt, answer=of_turns, shared=True))
        self.expire(list(self._owed), replace(receipt, shared=True))

    def expire(self, indexes: Sequence[int], receipt: Receipt) -> None:
        """The same receipt for those of these tasks that are still owed one."""
        for index in indexes:
            if index in self._owed:
                self._close(index, receipt)

    def timeouts(self) -> dict[timedelta, list[int]]:
        """The tasks by their timeouts, shortest first."""
        groups: defaultdict[timedelta, list[int]] = defaultdict(list)
        for index in self._owed:
            groups[self._pushes[index].wait].append(index)
        return dict(sorted(groups.items()))

    def _close(self, index: int, receipt: Receipt) -> None:
        del self._owed[index]
        self._settle(index, receipt)


@dataclass(frozen=True, slots=True)
class BatchDelivery:
    """Pushes to one endpoint, with their items as they go into bodies. `turn` is awaited before each part of the results is read."""

    sender: Sender
    target: Target
    pushes: Sequence[Push]
    items: Sequence[bytes]
    settle: Settle
    turn: Turn

    async def deliver(self, indexes: range) -> None:
        """One POST of these. Where the endpoint finds it too large nothing has run, and it goes in two halves instead."""
        ledger = Ledger(self.pushes, indexes, self.settle)
        if await self._within_timeouts(indexes, ledger):
            return
        middle = indexes.start + len(indexes) // 2
        await self.deliver(range(indexes.start, middle))
        await self.deliver(range(middle, indexes.stop))

    async def _within_timeouts(self, indexes: range, ledger: Ledger) -> bool:
        """Each task has its own timeout; the connection ends with the longest. False if the batch must be halved."""
        exchange = self.sender.exchange(self.target, self.pushes[indexes.start].tenant, self._body_limit(len(indexes)))
        *shorter, (longest, _) = ledger.timeouts().items()
        timers: list[asyncio.TimerHandle] = []
        deadline = Deadline(longest.total_seconds())
        try:
            with deadline:
                expire = functools.partial(_expire, ledger, exchange, deadline)
                for after, group in shorter:
                    seconds = after.total_seconds()
                    timers.append(asyncio.get_running_loop().call_later(seconds, expire, seconds, group))
                return await self._exchange(indexes, ledger, exchange)
        except TimeoutError:
            if not deadline.expired:
                raise
            ledger.rest(exchange.timed_out(longest.total_seconds()))
            return True
        finally:
            for timer in timers:
                timer.cancel()
            exchange.close()

    async def _exchange(self, indexes: range, ledger: Ledger, exchange: Exchange) -> bool:
        wanted = [index for index in indexes if not self.pushes[index].progress.given_up]
        batch = [self.pushes[index] for index in wanted]
        if not batch:
            ledger.rest(Receipt(Lost("given up before it was sent")))
            return True
        exchange.flight.progress = [push.progress for push in batch]
        identifier = joint_message_id(self.target, "batch", (f"{push.task_id}:{push.attempt}" for push in batch))
        answer = await exchange.send(identifier, batch_body(self.target, [self.items[index] for index in wanted]))
        if answer is not None:
            ledger.rest(exchange.receipt(answer))
        elif exchange.streamed:
            await self._take_stream(ledger, exchange, len(batch))
        else:
            reply = await exchange.reply(self._body_limit(len(batch)))
            if isinstance(reply, Reply) and reply.status == 413 and len(batch) > 1:
                return False
            await self._take_reply(ledger, exchange, reply)
        return True

    async def _take_reply(self, ledger: Ledger, exchange: Exchange, reply: Reply | Answer) -> None:
        """An answer in one piece: results, or something that goes for all."""
        if not isinstance(reply, Reply):
            ledger.rest(exchange.receipt(reply))
            return
        general = _for_all(reply, classify(reply, exchange.reading()))
        if general is not None:
            ledger.rest(
                exchange.receipt(general, reply.body), classify_turn(reply, exchange.reading()) if reply.status in GATEWAY else None
            )
            return
        await self._take(ledger, exchange, exchange.reading(), parse_results(reply.body) or ())
        ledger.rest(exchange.receipt(failures.missing_result(), reply.body), failures.unanswered_turn())

    async def _take_stream(self, ledger: Ledger, exchange: Exchange, count: int) -> None:
        """Results as lines, believed as they arrive: a crash of the endpoint loses only what it had not told yet."""
        reading = exchange.reading()
        lines = exchange.lines(reading.limit * count)
        while ledger.open:
            try:
                arrived = await lines.more()
            except LineTooLong:
                ledger.rest(exchange.receipt(_large_batch(reading.limit)))
                return
            except Exception:
                _break_off(ledger, exchange, exchange.cut())
                return
            if not arrived:
                _break_off(ledger, exchange, exchange.cut() if exchange.flight.overflow else failures.missing_result())
                return
            await self._take(ledger, exchange, reading, arrived)
        exchange.told = True
        await exchange.finish()

    async def _take(self, ledger: Ledger, exchange: Exchange, reading: Reading, results: Sequence[bytes | Raw]) -> None:
        """Believe results that have arrived, some at a time; all of them, even if the time is up meanwhile."""
        left = iter(results)
        try:
            for _ in range(0, len(results), _AT_ONCE):
                await self.turn()
                for result in islice(left, _AT_ONCE):
                    ledger.take(result, reading, exchange)
        finally:
            for result in left:
                ledger.take(result, reading, exchange)

    def _body_limit(self, count: int) -> int:
        return min(self.target.response_limit * count, self.sender.bounds.batch_body)


def _break_off(ledger: Ledger, exchange: Exchange, answer: Answer) -> None:
    """The stream is over before every task has its line."""
    ledger.rest(exchange.receipt(answer), None if exchange.flight.overflow else failures.unanswered_turn())


def _for_all(reply: Reply, answer: Answer) -> Answer | None:
    """What an answer means for every task of the batch, or None if it may hold a result for each."""
    if not reply.whole and 200 <= reply.status < 300:
        return _large_batch(len(reply.body))
    holds_results = 200 <= reply.status < 300 and reply.status != 202 and media_type(reply.headers) != "text/html"
    return None if holds_results else answer


def _large_batch(limit: int) -> Failed:
    """No single task is known to be at fault, so each keeps its retries."""
    return replace(too_large(limit), retry=None)


def _expire(ledger: Ledger, exchange: Exchange, deadline: Deadline, seconds: float, indexes: Sequence[int]) -> None:
    """These tasks' time is over. A batch not even sent by then is given up whole: what is recorded as not sent must never be sent."""
    ledger.expire(indexes, exchange.timed_out(seconds))
    if not (exchange.flight.sent and ledger.open):
        deadline.expire()
