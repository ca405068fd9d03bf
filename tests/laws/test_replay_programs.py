"""Random durable programs against a model that knows nothing of logs, turns or replay: it computes what each means, and when.

A program is a tree, sent as a run's input and interpreted by one durable handler. The model walks the same tree with a clock of its own.
Then the handler is killed at random places, its log sent whole or in part, its results recorded or carried: nothing may change.
`--replay-programs N` runs more or fewer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from handlers_sdk import ClientConfig, Dispatcher, FailedTaskRunExceptionGroup, NonRetryableError
from handlers_sdk.durable import DurableContext
from handlers_sdk.errors import StepFailedError
from handlers_sdk.testing import DurableTester

CHUNK = 50
START = 1_767_225_600_000
Tree = dict[str, Any]

dispatcher = Dispatcher(ClientConfig())
drawn: dict[str, set[float]] = {}  # what each step's branch has drawn just before it, in all turns of a run


# ---- the handler


async def effect(value: Any) -> Any:
    return value


async def failing(name: str) -> None:
    raise NonRetryableError(f"{name} fails")


@dispatcher.durable_task()
async def program(input: dict[str, Any], ctx: DurableContext) -> Any:
    value = await perform(input["tree"], ctx)
    return [value, round(ctx.now().timestamp() * 1000) - START]


async def perform(tree: Tree, ctx: DurableContext) -> Any:
    match tree["kind"]:
        case "step":
            drawn.setdefault(tree["name"], set()).add(ctx.random.random())
            return await ctx.run(tree["name"], effect, tree["name"])
        case "failing":
            try:
                await ctx.run(tree["name"], failing, tree["name"])
            except StepFailedError as error:
                return error.message
        case "sleep":
            await ctx.aio_sleep_for(f"{tree['ms']}ms")
            return tree["ms"]
        case "event":
            try:
                event = await ctx.aio_wait_for_event(tree["key"], timeout=f"{tree['timeout']}ms")
                assert "seen" not in event, "it has been changed in another turn"
                event["seen"] = True
                return {"key": event["key"]}
            except TimeoutError:
                return "timeout"
        case "child":
            try:
                return (await ctx.run_child(program, {"tree": tree["of"]}))[0]
            except FailedTaskRunExceptionGroup:
                return "failed"
        case "broken":
            raise NonRetryableError("broken")
        case "sequence":
            return [await perform(one, ctx) for one in tree["of"]]
        case "gather":
            return list(await asyncio.gather(*[perform(one, ctx) for one in tree["of"]]))
        case "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(perform(one, ctx)) for one in tree["of"]]
            return [task.result() for task in tasks]
        case "first":
            tasks = [asyncio.create_task(perform(one, ctx)) for one in tree["of"]]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            return [tasks.index(task) for task in done] + [task.result() for task in done]
        case "scope":
            return await ctx.scope("scope", perform, tree["of"], ctx)
        case "many":
            found = await asyncio.gather(*[ctx.run_child(program, {"tree": one}) for one in tree["of"]], return_exceptions=True)
            return ["failed" if isinstance(one, BaseException) else one[0] for one in found]
    raise AssertionError(tree)


# ---- the model


class BrokenError(Exception):
    pass


class AmbiguousError(Exception):
    """Two things happen at one moment, and which comes first is not said."""


class Model:
    """What a program comes to, and which steps it takes, each with its moment."""

    def __init__(self, events: dict[str, int]) -> None:
        self.events = events
        self.steps: list[tuple[int, str]] = []

    def value(self, tree: Tree, start: int) -> tuple[Any, int]:
        """The result of a tree begun at a moment, and the moment it is there."""
        kind = tree["kind"]
        if kind in ("step", "failing"):
            self.steps.append((start, tree["name"]))
            return (tree["name"] if kind == "step" else f"{tree['name']} fails"), start
        if kind == "sleep":
            return tree["ms"], start + tree["ms"]
        if kind == "event":
            pushed = self.events[tree["key"]]
            if start < pushed < start + tree["timeout"]:
                return {"key": tree["key"]}, pushed
            if pushed in (start, start + tree["timeout"]):
                raise AmbiguousError
            return "timeout", start + tree["timeout"]
        if kind == "child":
            return self.child(tree["of"], start)
        if kind == "broken":
            raise BrokenError
        if kind == "sequence":
            values = []
            for one in tree["of"]:
                value, start = self.value(one, start)
                values.append(value)
            return values, start
        if kind == "first":
            return self.first(tree["of"], start)
        if kind == "scope":
            return self.value(tree["of"], start)
        parts = [self.child(one, start) if kind == "many" else self.value(one, start) for one in tree["of"]]
        return [value for value, _ in parts], max(end for _, end in parts)

    def child(self, tree: Tree, start: int) -> tuple[Any, int]:
        """A child that breaks does so when it gets there: the moment is found by walking up to it."""
        trace = _Trace(self.events)
        try:
            found = trace.value(tree, start)
        except BrokenError:
            self.steps += trace.steps
            return "failed", trace.reached
        self.steps += trace.steps
        return found

    def first(self, trees: list[Tree], start: int) -> tuple[Any, int]:
        """The first to end; the others are stopped, and take no step from then on."""
        ends = []
        for one in trees:
            branch = Model(self.events)
            value, end = branch.value(one, start)
            ends.append((end, value, branch))
        when = min(end for end, _, _ in ends)
        winners = [index for index, (end, _, _) in enumerate(ends) if end == when]
        if len(winners) > 1 or any(
            at == when for index, (_, _, branch) in enumerate(ends) if index not in winners for at, _ in branch.steps
        ):
            raise AmbiguousError
        for _, _, branch in ends:
            self.steps += [step for step in branch.steps if step[0] <= when]
        return [winners[0], ends[winners[0]][1]], when


class _Trace(Model):
    """Remembers how far a program got."""

    reached = 0

    def value(self, tree: Tree, start: int) -> tuple[Any, int]:
        self.reached = max(self.reached, start)
        return super().value(tree, start)


# ---- programs


class Maker:
    """One random program. A program that breaks does so in a sequence only, where it is clear what was done before."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = 0
        self.events: dict[str, int] = {}

    def tree(self, depth: int = 0) -> Tree:
        leaf = depth >= 4 or self.random.random() < 0.15 * depth
        kind = self.random.choice(
            ["step", "step", "sleep", "event", "failing"]
            if leaf
            else ["sequence", "sequence", "gather", "group", "first", "scope", "child", "many", "step", "sleep", "event"]
        )
        if kind in ("step", "failing"):
            self.names += 1
            return {"kind": kind, "name": f"s{self.names}"}
        if kind == "sleep":
            return {"kind": kind, "ms": self.random.randrange(1, 10_000_000)}
        if kind == "event":
            key = f"e{len(self.events)}"
            self.events[key] = self.random.randrange(1, 20_000_000)
            return {"kind": kind, "key": key, "timeout": self.random.randrange(1, 10_000_000)}
        if kind == "scope":
            return {"kind": kind, "of": self.tree(depth + 1)}
        if kind == "child":
            return {"kind": kind, "of": self.broken(depth + 1) if self.random.random() < 0.3 else self.tree(depth + 1)}
        parts = [self.tree(depth + 1) for _ in range(self.random.randrange(1, 4))]
        if kind == "first":
            return {"kind": kind, "of": [self.delayed(part) for part in parts]}
        if kind == "many":
            parts = [self.broken(depth + 1) if self.random.random() < 0.2 else part for part in parts]
        return {"kind": kind, "of": parts}

    def broken(self, depth: int) -> Tree:
        return {"kind": "sequence", "of": [self.tree(depth + 1), {"kind": "broken"}]}

    def delayed(self, part: Tree) -> Tree:
        """Two branches that take no time would end at one moment."""
        return {"kind": "sequence", "of": [{"kind": "sleep", "ms": self.random.randrange(1, 10_000_000)}, part]}


def with_world(maker: Maker, **options: Any) -> DurableTester:
    tester = DurableTester([program], **options)
    for key, at in maker.events.items():
        tester.push(key, {"key": key}, after=f"{at}ms")
    return tester


async def check(seed: int) -> bool:
    """One program, undisturbed and disturbed; False when the model cannot say what it means."""
    maker = Maker(seed)
    tree = maker.tree()
    model = Model(maker.events)
    try:
        value, end = model.value(tree, 0)
    except AmbiguousError:
        return False
    chance = random.Random(seed)
    tester = with_world(maker)
    drawn.clear()
    run = await tester.run(program, {"tree": tree})
    assert (run.status, run.output) == ("succeeded", [value, end]), (seed, tree)
    taken = Counter(step.rpartition("/")[2].partition("#")[0] for _, step in tester.double.steps.elements())
    assert taken == Counter(name for _, name in model.steps), (seed, tree)
    assert all(len(numbers) == 1 for numbers in drawn.values()), (seed, tree)
    for options in (
        {"crash_at": chance.randrange(tester.double.points)},
        {"crash_at": chance.randrange(tester.double.points), "delta": False},
        {"unreachable": True},
    ):
        drawn.clear()
        again = with_world(maker, shuffle=lambda ids: chance.sample(ids, len(ids)), **options)
        found = await again.run(program, {"tree": tree})
        assert (found.status, found.output) == (run.status, run.output), (seed, options, tree)
        if "crash_at" not in options:  # one that dies goes on by itself for a while, and is not heard any more
            assert all(len(numbers) == 1 for numbers in drawn.values()), (seed, options, tree)
        assert again.double.steps - tester.double.steps <= again.double.steps, (seed, options)
    return True


async def test_random_programs(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    count = int(request.config.getoption("--replay-programs"))
    meant = [await check(seed) for seed in range(count)]
    assert sum(meant) >= count * 0.8, "most programs mean one thing"


async def test_the_model_can_be_wrong() -> None:
    """A model that counts a sleep twice is found out: the comparison compares."""
    tree = {"kind": "sequence", "of": [{"kind": "sleep", "ms": 5}, {"kind": "step", "name": "s1"}]}
    run = await DurableTester([program]).run(program, {"tree": tree})
    assert run.output == [[5, "s1"], 5]
    assert Model({}).value(tree, 1)[1] != run.output[1]
