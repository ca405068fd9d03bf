# Three calls of the model a second, whoever makes them.
curl -s -X PUT "$DISPATCHER_URL/v1/rate-limits/model" -d '{"limit": 3, "duration": "second"}'

# Twenty reports at a time instead of ten, for an hour.
curl -s -X PUT "$DISPATCHER_URL/v1/concurrency/reports" -d '{"max_runs": 20, "expires_in": "1h"}'
