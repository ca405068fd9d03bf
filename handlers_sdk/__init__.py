"""Handlers: task endpoints for the dispatcher, and the client that triggers them."""
