# This deployment has a GPU, and eight slots.
curl -s -X PATCH "$DISPATCHER_URL/v1/endpoints/blue" -d '{"labels": {"gpu": true, "region": "eu"}, "slots": 8}'

# The next deployment, beside it: they take turns.
curl -s -X PUT "$DISPATCHER_URL/v1/endpoints/green" -d '{"url": "'"$GREEN"'", "labels": {"gpu": true}, "slots": 8}'

# All that is new goes to green. Blue goes on with what has to stay there, and may be switched off once none of it is left.
curl -s -X PATCH "$DISPATCHER_URL/v1/endpoints/blue" -d '{"draining": true}'
until curl -s "$DISPATCHER_URL/v1/endpoints/blue" | grep -q '"health":"drained"'; do sleep 0.2; done
curl -s "$DISPATCHER_URL/v1/endpoints/blue"
