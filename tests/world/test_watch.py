"""Nothing depends on a hint: what has come to be in the database is found with the next poll, by one look for all loops."""

from __future__ import annotations

from datetime import timedelta

from tests.world.world import Node, World, until


async def test_a_task_made_due_without_a_hint_is_found_with_the_next_poll(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [{"name": "work", "retries": 1, "backoff_factor": 240}])
    run_id = await one.trigger("work")
    (await endpoint.next()).answer(500, {})
    await world.task(run_id, state="scheduled")
    await world.database.execute("update tasks set due_at = $1", world.now)
    world.clock.advance(timedelta(seconds=one.runtime.services.settings.poll))
    second = await endpoint.next()
    assert second.json["attempt"] == 2
    second.answer(200, {})
    await world.over(run_id)


async def test_a_loop_with_nothing_to_do_leaves_looking_to_the_watch(world: World, one: Node) -> None:
    loops, poll = one.runtime.loops, timedelta(seconds=one.runtime.services.settings.poll)
    watched = ("timers", "timetable", "graphs", "waits", "gates", "rates", "probe", "cancels", "bulk")
    await one.turn("watch", *watched)
    before = {name: loop.ticks for name, loop in loops.items()}
    for n in range(1, 7):
        world.clock.advance(poll)

        async def looked(n: int = n) -> bool:
            return loops["watch"].ticks >= before["watch"] + n

        await until(looked)
    # One or two may be for what registering has set off.
    assert [name for name in watched if loops[name].ticks > before[name] + 2] == []
