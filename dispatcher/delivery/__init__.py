"""Delivery: put attempts on the wire and say what came back. It classifies, it never decides."""
