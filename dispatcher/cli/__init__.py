"""The command line. A command's module is imported when the command is used, and what it needs when that is needed.

| file | what |
|---|---|
| lazy.py | the group that knows its commands without importing them |
| options.py, output.py, failures.py | what all commands share: arguments, answers, exit codes |
| client.py | the HTTP client of the commands that ask a running server |
| local.py | the database, for the commands that need no server |
| serving.py, front.py, steps.py | the server process of `dev` and `serve` |
| child.py, application.py, sources.py | the developer's own app under `dev`: run, registered, run again when its files change |
"""

from __future__ import annotations

import rich_click as click

from dispatcher.cli.lazy import LazyGroup

DISTRIBUTION = "handlers-dispatcher"
COMMANDS = {
    "dev": ("dispatcher.cli.dev:dev", "Run a development server on loopback, and your app beside it."),
    "serve": ("dispatcher.cli.serve:serve", "Run the server for production."),
    "trigger": ("dispatcher.cli.trigger:trigger", "Start a run of a workflow, and wait for its result if asked to."),
    "send": ("dispatcher.cli.send:send", "Send an event, which starts the workflows that listen for it."),
    "runs": ("dispatcher.cli.runs:runs", "List, read, follow, cancel and replay runs."),
    "replay": ("dispatcher.cli.replay:replay", "Run a durable task's code against the log of an exported run, here and without effects."),
    "bulk": ("dispatcher.cli.bulk:bulk", "Look at cancels and replays of many runs, and end them."),
    "events": ("dispatcher.cli.events:events", "List, read and replay events."),
    "filters": ("dispatcher.cli.filters:filters", "List, make, change and remove filters of events."),
    "workflows": ("dispatcher.cli.workflows:workflows", "List and read what can be run."),
    "crons": ("dispatcher.cli.crons:crons", "Make, stop and start crons: runs at every tick of an expression."),
    "schedules": ("dispatcher.cli.schedules:schedules", "Make, move and remove schedules: runs at one moment each."),
    "concurrency": ("dispatcher.cli.limits:concurrency", "See concurrency groups, and change limits that have a name."),
    "rate-limits": ("dispatcher.cli.limits:rate_limits", "Set, list and take away limits of how many tasks start in a window of time."),
    "endpoints": ("dispatcher.cli.endpoints:endpoints", "Register, check and change the URLs that run handlers."),
    "webhooks": ("dispatcher.cli.webhooks:webhooks", "Make, try and mend addresses that receive webhooks, and see what arrived."),
    "listen": ("dispatcher.cli.listen:listen", "Bring what webhooks receive to a program on this machine."),
    "token": ("dispatcher.cli.token:token", "Make, list and revoke API tokens."),
    "migrate": ("dispatcher.cli.migrate:migrate", "Bring the database to this release's schema."),
    "doctor": ("dispatcher.cli.doctor:doctor", "Check this installation and say how to fix what is wrong."),
}


@click.group(cls=LazyGroup, members=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="dispatcher", message="%(prog)s %(version)s")
def main() -> None:
    """Events in, signed HTTP pushes to your handlers, recorded results out.

    Start with `dispatcher dev`. Data goes to stdout, everything else to stderr; `-o json` gives every answer as JSON, which is the
    default where stdout is no terminal. Exit codes: 0 done, 1 failure, 2 wrong usage, 3 not found, 4 not allowed, 5 timed out,
    6 the run did not succeed.
    """
