"""Tasks that wait, are skipped, or choose a branch: every kind of condition, and a task that gathers what there is."""

import random
from datetime import timedelta

from pydantic import BaseModel

from handlers_sdk import (
    Context,
    Dispatcher,
    EmptyModel,
    ParentCondition,
    SleepCondition,
    UserEventCondition,
    Workflow,
    or_,
)

dispatcher = Dispatcher()


class Points(BaseModel):
    n: int


class Total(BaseModel):
    points: int


def throw() -> Points:
    return Points(n=random.randint(1, 100))


def game(dispatcher: Dispatcher, second: timedelta = timedelta(seconds=1)) -> Workflow[EmptyModel]:
    """The workflow, on a clock as fast as `second` is short."""
    game = dispatcher.workflow(name="game")

    @game.task()
    def first(input: EmptyModel, ctx: Context) -> Points:
        return throw()

    @game.task(parents=[first], wait_for=[SleepCondition(10 * second)])
    def rested(input: EmptyModel, ctx: Context) -> Points:
        return throw()

    @game.task(parents=[first], wait_for=[or_(SleepCondition(duration=60 * second), UserEventCondition(event_key="game:next"))])
    def called(input: EmptyModel, ctx: Context) -> Points:
        return throw()

    @game.task(parents=[first], wait_for=[SleepCondition(30 * second)], skip_if=[UserEventCondition(event_key="game:enough")])
    def bonus(input: EmptyModel, ctx: Context) -> Points:
        return throw()

    @game.task(parents=[rested], skip_if=[ParentCondition(parent=rested, expression="output.n > 50")])
    def low(input: EmptyModel, ctx: Context) -> Points:
        return throw()

    @game.task(parents=[rested], skip_if=[ParentCondition(parent=rested, expression="output.n <= 50")])
    def high(input: EmptyModel, ctx: Context) -> Points:
        return throw()

    @game.task(parents=[first, rested, called, bonus, low, high])
    def total(input: EmptyModel, ctx: Context) -> Total:
        thrown = [ctx.task_output(task).n for task in (first, rested, called)]
        chosen = [ctx.task_output(task).n for task in (bonus, low, high) if not ctx.was_skipped(task)]
        return Total(points=sum(thrown + chosen))

    return game


app = dispatcher.app(workflows=[game(dispatcher)])
