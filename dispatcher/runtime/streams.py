"""Streams as they are followed: history first, then what comes, for any number of readers at any pace.

A stream somebody follows has one channel in this process, which keeps the latest entries in memory, once for all its readers. A reader
is a position: behind what the channel keeps it reads from the table, so a slow one holds nothing but the page it is being sent. The
channel moves when an attempt's pieces are written here, when another process hints, and with every poll.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

from dispatcher.clock import Clock
from dispatcher.engine.streams import Entry, Limits, Piece, RunFact, State, follow, is_over, is_valid
from dispatcher.errors import problem
from dispatcher.runtime.signals import Signals
from dispatcher.runtime.waiters import RunKey, Waiters
from dispatcher.settings import Settings
from dispatcher.store import streams
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient
from dispatcher.store.streams import StreamKey

_log = logging.getLogger(__name__)

_PAGE: Final = 500
_PAGE_BYTES: Final = 1_048_576
_ENTRY_BYTES: Final = 200  # what an entry weighs beside its data
_READERS_AT_ONCE: Final = 8
_SECONDS_PER_READER: Final = 0.0005  # what waking a crowd may cost: about a fifth of the time
_READS: Final = 4  # pages read from the table at once: readers of history leave connections to others


class Channel:
    """One stream in this process. `tail` is the last position it knows, and `kept` are the entries behind `start`."""

    def __init__(self, key: StreamKey, most_bytes: int, since: datetime) -> None:
        self.key = key
        self.readers = 0
        self.start = self.tail = 0
        self.kept: list[Entry] = []
        self.state: State = {}
        self.facts: list[RunFact] = []
        self.stale = False
        self.refresher: asyncio.Task[None] | None = None
        self._most_bytes = most_bytes
        self._bytes = 0
        self.beats = 0
        self.quiet_since = since
        self.frames: dict[int, bytes] = {}
        """Entries kept, by position, as they go out: written once for all readers."""
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def push(self, entries: Iterable[Entry]) -> None:
        """Keep entries behind the tail; the oldest make room."""
        for entry in entries:
            if entry.position > self.tail:
                self.kept.append(entry)
                self.tail = entry.position
                self._bytes += len(entry.data) + _ENTRY_BYTES
                follow(self.state, entry)
        dropped = 0
        while self._bytes > self._most_bytes and dropped < len(self.kept) - 1:
            self._bytes -= len(self.kept[dropped].data) + _ENTRY_BYTES
            dropped += 1
        if dropped:
            self.start = self.kept[dropped - 1].position
            for entry in self.kept[:dropped]:
                self.frames.pop(entry.position, None)
            del self.kept[:dropped]
        self.notify()

    def behind(self, position: int) -> list[Entry]:
        """A page of what is kept behind a position that is not before `start`. Positions leave no gaps."""
        first = position - self.start
        return self.kept[first : first + _PAGE]

    def notify(self) -> None:
        """Wake the readers that wait; many of them not for every single entry, so that they take what gathers in one go."""
        if self.readers <= _READERS_AT_ONCE:
            self.wake()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.readers * _SECONDS_PER_READER, self.wake)

    def beat(self, now: datetime, every: timedelta) -> None:
        """Let readers know that time has passed."""
        if now - self.quiet_since >= every:
            self.quiet_since = now
            self.beats += 1
            self.wake()

    def wake(self) -> None:
        """Wake the readers now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until readers are woken."""
        await self._changed.wait()


class Reader:
    """Somebody who follows a stream, or one run of it, from behind a position."""

    def __init__(self, owner: Streams, channel: Channel, run_id: str | None, after: int) -> None:
        self.position = after
        self._owner = owner
        self._channel = channel
        self._run_id = run_id

    def frame(self, entry: Entry, write: Callable[[Entry], bytes]) -> bytes:
        """An entry as it goes out."""
        frames = self._channel.frames
        if entry.position <= self._channel.start:
            return write(entry)
        frame = frames.get(entry.position)
        if frame is None:
            frame = frames[entry.position] = write(entry)
        return frame

    @property
    def is_over(self) -> bool:
        """Whether everything has been read of a stream whose runs have ended."""
        run_ids = [fact.run_id for fact in self._channel.facts] if self._run_id is None else [self._run_id]
        return self.position >= self._channel.tail and is_over(self._channel.state, run_ids)

    async def pages(self) -> AsyncIterator[Sequence[Entry]]:
        """Entries in order, until the stream is over or this process ends; an empty page for every so long without any."""
        while not self._owner.closed:
            page = await self._page()
            if page:
                self.position = page[-1].position
                state = self._channel.state
                chosen = [e for e in page if self._run_id in (None, e.run_id) and is_valid(e, state)]
                if chosen:
                    yield chosen
            elif self.is_over:
                return
            elif not await self._owner.wait(self._channel, self.position):
                yield ()

    async def _page(self) -> Sequence[Entry]:
        start = self._channel.start
        if self.position >= start:
            return self._channel.behind(self.position)
        found = await self._owner.read(self._channel.key, self.position)
        if not found:
            self.position = start  # what stood before is no longer kept
        return found


class Streams:
    """The channels of this process."""

    def __init__(self, database: Database, clock: Clock, settings: Settings, signals: Signals, waiters: Waiters) -> None:
        self.closed = False
        self.limits = Limits(settings.stream_chunks_per_attempt, settings.stream_bytes_per_attempt)
        self._database = database
        self._clock = clock
        self._settings = settings
        self._signals = signals
        self._waiters = waiters
        self._channels: dict[StreamKey, Channel] = {}
        self._of_run: dict[RunKey, Channel] = {}
        self._opening: list[Channel] = []
        self._reads = asyncio.Semaphore(_READS)
        self._logs: dict[RunKey, set[asyncio.Future[None]]] = {}
        self._readers = 0

    async def append(self, pieces: Sequence[tuple[int, Piece]]) -> None:
        """Write pieces, each with its tenant, and show them to whoever follows."""
        gained = await streams.append(self._database, pieces, self.limits, self._clock.now())
        self._show(gained)
        if gained:
            self._signals.send("stream", *[f"{tenant_id}:{stream_id}" for tenant_id, stream_id in gained])

    @asynccontextmanager
    async def reader(self, key: StreamKey, run_id: str | None, after: int) -> AsyncIterator[Reader]:
        """Follow a stream that exists. A position it has not reached is one of entries long gone: reading begins anew."""
        with self.seat():
            channel = self._open(key)
            try:
                await self._first_look(channel)
                yield Reader(self, channel, run_id, after if after <= channel.tail else 0)
            finally:
                channel.readers -= 1
                if not channel.readers:
                    self._forget(channel)

    @contextmanager
    def seat(self) -> Iterator[None]:
        """A place for one follower of a stream or a log. Raises Problem overloaded where all are taken."""
        if self._readers >= self._settings.max_stream_readers:
            raise problem("overloaded", f"{self._readers} streams and logs are being followed; try again later")
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    def logged(self, keys: Iterable[RunKey]) -> None:
        """Lines of these runs have been written here."""
        if self._logs:
            for key in set(keys):
                for future in self._logs.get(key, ()):
                    if not future.done():
                        future.set_result(None)

    @asynccontextmanager
    async def next_lines(self, key: RunKey) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """A way to wait until a run has logged more here, has ended, or may have logged elsewhere. What came since is not missed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._logs.setdefault(key, set()).add(future)

        async def wait() -> None:
            ended = asyncio.ensure_future(self._waiters.wait(*key, self._settings.poll))
            either: list[asyncio.Future[Any]] = [future, ended]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()

        try:
            yield wait
        finally:
            self._logs[key].discard(future)
            if not self._logs[key]:
                del self._logs[key]

    def _open(self, key: StreamKey) -> Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(key, self._settings.stream_buffer_bytes, self._clock.now())
            self._waiters.watch = self.finished
        channel.readers += 1
        return channel

    async def read(self, key: StreamKey, after: int) -> list[Entry]:
        """A page from the table."""
        async with self._reads:
            return await streams.read(self._database, key, after, _PAGE, _PAGE_BYTES)

    async def wait(self, channel: Channel, position: int) -> bool:
        """Wait until a channel has moved beyond a position; False when nothing has happened for the time of a heartbeat."""
        beats = channel.beats
        while not self.closed and channel.tail <= position and channel.beats == beats:
            await channel.changed()
        return channel.tail > position or self.closed

    def finished(self, keys: Iterable[RunKey]) -> None:
        """Runs have ended: those whose streams are followed get their marks."""
        for opening in self._opening:
            opening.stale = True  # whose runs these are is not known yet
        for key in keys:
            channel = self._of_run.get(key)
            if channel is not None:
                self._wake(channel)

    def finished_ids(self, run_ids: Iterable[str]) -> None:
        """The same by id alone, as hints carry it, for whoever waits for them too."""
        wanted = set(run_ids)
        self._waiters.finished_ids(wanted)
        self.finished([key for key in self._of_run if key[1] in wanted])

    def hinted(self, arguments: Iterable[str]) -> None:
        """Another process has written to these streams; to any, where none is named."""
        named = list(arguments)
        for argument in named:
            tenant, _, stream_id = argument.partition(":")
            channel = self._channels.get((int(tenant), stream_id))
            if channel is not None:
                self._wake(channel)
        if not named:
            for channel in self._channels.values():
                self._wake(channel)

    async def look(self) -> None:
        """Find what no hint has told of: entries of other processes, and runs that have begun, been tried again or ended."""
        if not self._channels:
            return
        channels = list(self._channels.values())
        for channel in channels:
            channel.beat(self._clock.now(), timedelta(seconds=self._settings.stream_heartbeat))
        for key in await streams.moved(self._database, [(channel.key, channel.tail) for channel in channels]):
            self._wake(self._channels.get(key))
        live = [
            (channel.key[0], fact.run_id, sum(task.epoch for task in fact.tasks.values()))
            for channel in channels
            for fact in channel.facts
            if fact.status is None
        ]
        changed = set(await streams.changed_runs(self._database, live))
        for tenant_id, run_id, _ in live:
            if run_id in changed:
                self._wake(self._of_run.get((tenant_id, run_id)))

    def close(self) -> None:
        """Let all readers go: their streams go on elsewhere."""
        self.closed = True
        for channel in self._channels.values():
            channel.wake()
        self.logged(list(self._logs))

    def _show(self, gained: Mapping[StreamKey, Sequence[Entry]]) -> None:
        for key, entries in gained.items():
            channel = self._channels.get(key)
            if channel is None:
                continue
            if channel.facts and channel.refresher is None and entries[0].position == channel.tail + 1:
                channel.push(entries)
            else:
                self._wake(channel)

    async def _first_look(self, channel: Channel) -> None:
        self._opening.append(channel)
        try:
            await self._fresh(channel)
        finally:
            self._opening.remove(channel)
        if channel.stale:
            self._wake(channel)

    async def _fresh(self, channel: Channel) -> None:
        """Look at a stream now; the first look decides from where on the channel keeps entries."""
        first = not channel.facts and channel.tail == 0
        picture = await streams.observe(self._database, channel.key, self.limits, self._clock.now())
        if first and channel.tail == 0:
            channel.start = channel.tail = picture.last
            channel.state = picture.state
            self._know(channel, picture.facts)
        else:
            await self._read_on(channel, picture.facts)

    async def _read_on(self, channel: Channel, facts: list[RunFact]) -> None:
        while page := await self.read(channel.key, channel.tail):
            channel.push(page)
        self._know(channel, facts)
        channel.notify()

    def _know(self, channel: Channel, facts: list[RunFact]) -> None:
        channel.facts = facts
        self._of_run.update(dict.fromkeys([(channel.key[0], fact.run_id) for fact in facts], channel))

    def _wake(self, channel: Channel | None) -> None:
        if channel is None or self.closed:
            return
        channel.stale = True
        if channel.refresher is None:
            channel.refresher = asyncio.get_running_loop().create_task(self._refresh(channel))

    async def _refresh(self, channel: Channel) -> None:
        try:
            while channel.stale and channel.readers:
                channel.stale = False
                await self._fresh(channel)
        except Exception as error:
            if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                _log.exception("stream %s cannot be read", channel.key[1])
        finally:
            channel.refresher = None

    def _forget(self, channel: Channel) -> None:
        self._channels.pop(channel.key, None)
        for fact in channel.facts:
            self._of_run.pop((channel.key[0], fact.run_id), None)
        if not self._channels:
            self._waiters.watch = None
