# Every Monday at nine in Berlin. If nobody was there at nine, one run makes up for it.
curl -s "$DISPATCHER_URL/v1/crons" -d '{"workflow": "welcome", "name": "weekly", "input": {"login": "octocat"},
  "expression": "0 9 * * 1", "timezone": "Europe/Berlin", "missed": "run_once"}'

# Once, in ten minutes; or at a moment, with "run_at".
SCHEDULE=$(curl -s "$DISPATCHER_URL/v1/schedules" -d '{"workflow": "welcome", "in": "10m", "input": {"login": "octocat"}}' |
  sed 's/.*"id":"\(sch_[^"]*\)".*/\1/')

# Or now, after all.
curl -sX POST "$DISPATCHER_URL/v1/schedules/$SCHEDULE/trigger"
