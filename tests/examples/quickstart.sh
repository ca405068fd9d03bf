dispatcher trigger welcome --input '{"login": "octocat"}' --wait
dispatcher send user:created '{"login": "octocat"}'
dispatcher runs list
