"""All workflows of these examples behind one address, their clocks ten times as fast."""

from datetime import timedelta

from handlers_sdk import Dispatcher
from tests.examples.workflow_children import album, greet, greet_all, picture
from tests.examples.workflow_conditions import game
from tests.examples.workflow_order import order

dispatcher = Dispatcher()
app = dispatcher.app(workflows=[order, game(dispatcher, timedelta(milliseconds=100)), album, picture, greet, greet_all])
