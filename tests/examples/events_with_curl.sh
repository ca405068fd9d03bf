# Send an event. It is stored, with the runs it starts, before this answers.
EVENT=$(curl -s "$DISPATCHER_URL/v1/events" -d '{"type": "user:created", "data": {"login": "octocat"}, "metadata": {"source": "curl"}}' |
  sed 's/.*"event_id":"\([^"]*\)".*/\1/')

# What it started, one row for each attempt.
curl -s "$DISPATCHER_URL/v1/events/$EVENT/runs"
