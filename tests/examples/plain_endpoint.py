"""A task endpoint without the SDK. It believes only requests signed with its secret, and answers JSON."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook


class Audit(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        event = Webhook(os.environ["WEBHOOK_SECRET"]).verify(body, dict(self.headers))  # raises if the dispatcher did not sign it
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"audited": sorted(event), "bytes": len(body)}).encode())


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Audit).serve_forever()
