// A durable order in another language, in state mode: what plain_durable.py is in Python, with nothing but Node's own modules.

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const key = Buffer.from(process.env.WEBHOOK_SECRET.replace("whsec_", ""), "base64");

function believed(headers, body) {
  const [id, at] = [headers["webhook-id"], headers["webhook-timestamp"]];
  const own = createHmac("sha256", key).update(`${id}.${at}.`).update(body).digest();
  const tokens = (headers["webhook-signature"] ?? "").split(" ").filter((token) => token.startsWith("v1,"));
  const given = tokens.map((token) => Buffer.from(token.slice(3), "base64"));
  return Math.abs(Date.now() / 1000 - at) <= 300 && given.some((one) => one.length === own.length && timingSafeEqual(one, own));
}

function order({ input, state, results }) {
  const settled = Object.fromEntries(results.map((result) => [result.id, result]));
  if (state === null) {
    const paid = { id: "paid#0", op: "event", status: "pending", key: `order/${input.id}/paid`, timeout_ms: 86_400_000 };
    return { status: "wait", ops: [paid], wake: "paid#0", state: { at: "payment" } };
  }
  if (state.at === "payment") {
    if (settled["paid#0"].status === "timeout") return { status: "done", output: { shipped: false } };
    const rest = { id: "rest#0", op: "sleep", status: "pending", ms: 200 };
    return { status: "wait", ops: [rest], wake: "rest#0", state: { at: "packing", amount: settled["paid#0"].value.data.amount } };
  }
  return { status: "done", output: { shipped: true, amount: state.amount } };
}

const server = createServer(async (request, response) => {
  const body = Buffer.concat(await request.toArray());
  if (!believed(request.headers, body)) return response.writeHead(401).end();
  response.writeHead(200, { "content-type": "application/json", "task-protocol": "1" });
  response.end(JSON.stringify(order(JSON.parse(body))));
});
server.listen(Number(process.env.PORT), "127.0.0.1");
