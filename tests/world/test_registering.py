"""Registering again and again, as every start of an application does."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.world.endpoint import Arrival, manifest
from tests.world.world import Node, World

AUTH = {"type": "bearer", "token": "s3cret"}


async def _authorization(world: World, one: Node, arrivals: Any) -> str | None:
    """The credentials the next attempt comes with."""
    run_id = await one.trigger("work")
    arrival: Arrival = await arrivals.next()
    arrival.answer(200, {})
    await world.over(run_id)
    return arrival.headers.get("authorization")


async def test_first_registrations_of_one_name_at_once(world: World, one: Node) -> None:
    body = {"url": "http://127.0.0.1:9/", "handlers": [{"name": "work"}]}
    replies = await asyncio.gather(*(one.api.put("/v1/endpoints/app", json=body) for _ in range(4)))
    assert sorted(reply.status_code for reply in replies) == [200, 200, 200, 201]
    assert sum("secret" in reply.json() for reply in replies) == 1


async def test_registering_again_keeps_the_credentials_until_they_are_removed(world: World, one: Node) -> None:
    endpoint = await world.listen()
    body: dict[str, Any] = {"url": endpoint.url, "handlers": [{"name": "work"}]}
    await one.call("PUT", "/v1/endpoints/app", {**body, "auth": AUTH})
    await one.call("PUT", "/v1/endpoints/app", body)
    assert await _authorization(world, one, endpoint) == "Bearer s3cret"
    await one.call("PUT", "/v1/endpoints/app", {**body, "auth": {"type": "none"}})
    assert await _authorization(world, one, endpoint) is None


async def test_the_manifest_is_asked_for_with_the_credentials_kept(world: World, one: Node) -> None:
    endpoint = await world.listen()
    endpoint.manifest = manifest([{"name": "work"}])
    asked: list[str | None] = []
    offer = endpoint._offer

    def noted(arrival: Arrival) -> None:
        asked.append(arrival.headers.get("authorization"))
        offer(arrival)

    endpoint._offer = noted  # type: ignore[method-assign]
    await one.call("PUT", "/v1/endpoints/app", {"url": endpoint.url, "auth": AUTH})
    await one.call("PUT", "/v1/endpoints/app", {"url": endpoint.url})
    await one.call("PUT", "/v1/endpoints/app", {"url": endpoint.url, "auth": {"type": "none"}})
    assert asked == ["Bearer s3cret", "Bearer s3cret", None]


async def test_credentials_are_not_sent_to_another_place_than_they_were_given_for(world: World, one: Node) -> None:
    endpoint, elsewhere = await world.listen(), await world.listen()
    body: dict[str, Any] = {"url": endpoint.url, "handlers": [{"name": "work"}]}
    await one.call("PUT", "/v1/endpoints/app", {**body, "auth": AUTH})
    refused = await one.call("PUT", "/v1/endpoints/app", {**body, "url": elsewhere.url}, expect=400)
    assert (refused["code"], refused["field"]) == ("invalid_value", "auth")
    await one.call("PUT", "/v1/endpoints/app", {**body, "url": f"{endpoint.url}/v2"})
    await one.call("PUT", "/v1/endpoints/app", {**body, "url": elsewhere.url, "auth": {**AUTH, "token": "other"}})
    assert await _authorization(world, one, elsewhere) == "Bearer other"


async def test_what_was_just_registered_elsewhere_is_found_by_whoever_names_it(world: World, one: Node) -> None:
    """However many do at once, and however shortly after somebody has named it in vain."""
    two = await world.node("two")
    await two.runtime.loops["registry"].stop()
    await two.call("POST", "/v1/runs", {"workflow": "work", "input": {}}, expect=404)
    await world.endpoint(one, [{"name": "work"}])
    assert len({*await asyncio.gather(*(two.trigger("work") for _ in range(5)))}) == 5
