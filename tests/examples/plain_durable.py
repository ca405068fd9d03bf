"""A durable order without the SDK, in state mode: each request carries the state the last one returned, and what has settled since."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


def order(turn: dict[str, Any]) -> dict[str, Any]:
    settled = {result["id"]: result for result in turn["results"]}
    if turn["state"] is None:
        paid = {"id": "paid#0", "op": "event", "status": "pending", "key": f"order/{turn['input']['id']}/paid", "timeout_ms": 86_400_000}
        return {"status": "wait", "ops": [paid], "wake": {"any": ["paid#0"]}, "state": {"at": "payment"}}
    if turn["state"]["at"] == "payment":
        if settled["paid#0"]["status"] == "timeout":
            return {"status": "done", "ops": [], "output": {"shipped": False}}
        rest = {"id": "rest#0", "op": "sleep", "status": "pending", "ms": 200}
        state = {"at": "packing", "amount": settled["paid#0"]["value"]["data"]["amount"]}
        return {"status": "wait", "ops": [rest], "wake": {"any": ["rest#0"]}, "state": state}
    return {"status": "done", "ops": [], "output": {"shipped": True, "amount": turn["state"]["amount"]}}


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        turn = Webhook(os.environ["WEBHOOK_SECRET"]).verify(body, dict(self.headers))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("task-protocol", "1")  # without it, a page that answers 200 would be taken for a turn
        self.end_headers()
        self.wfile.write(json.dumps(order(turn)).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Endpoint).serve_forever()
