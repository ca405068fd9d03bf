# Register the endpoint: one handler, started by its name or by any event. The answer holds the secret, this once.
SECRET=$(curl -sX PUT "$DISPATCHER_URL/v1/endpoints/auditor" \
  -d '{"url": "http://127.0.0.1:'"$PORT"'/", "handlers": [{"name": "audit", "on_events": ["*"], "retries": 3}]}' |
  sed 's/.*"secret":"\([^"]*\)".*/\1/')

# Run it with that secret.
WEBHOOK_SECRET=$SECRET python plain_endpoint.py &

# Start a run and wait for its result. Should the endpoint not listen yet, the run waits for it.
curl -s "$DISPATCHER_URL/v1/runs?wait=30s" -d '{"workflow": "audit", "input": {"tag": "v1.0.0", "draft": false}}'
