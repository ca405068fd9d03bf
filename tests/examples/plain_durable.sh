# Register the endpoint: one durable handler, in state mode.
SECRET=$(curl -sX PUT "$DISPATCHER_URL/v1/endpoints/orders" \
  -d '{"url": "http://127.0.0.1:'"$PORT"'/", "handlers": [{"name": "plain-order", "kind": "durable", "mode": "state", "body": "v1"}]}' |
  sed 's/.*"secret":"\([^"]*\)".*/\1/')
WEBHOOK_SECRET=$SECRET ${ENDPOINT:-python plain_durable.py} &

# Start an order. It waits for its payment and holds nothing meanwhile.
RUN=$(curl -s "$DISPATCHER_URL/v1/runs" -d '{"workflow": "plain-order", "input": {"id": 9}}' | sed 's/.*"id":"\(run_[^"]*\)".*/\1/')
until curl -s "$DISPATCHER_URL/v1/runs/$RUN" | grep -q '"status":"waiting"'; do sleep 0.1; done

# The payment comes, and the order goes on.
curl -s "$DISPATCHER_URL/v1/events" -d '{"type": "order/9/paid", "data": {"amount": 5}}' > /dev/null
curl -s "$DISPATCHER_URL/v1/runs/$RUN?wait=30s"
