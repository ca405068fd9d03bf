"""Problems: every failure a caller of the API can meet, each with a stable code, as RFC 9457 problem documents.

`CODES` is the single list. A code says what is wrong in a word that programs may compare; the detail says it in a sentence that names
the field or the thing; the hint says what to do about it. Whoever finds a problem raises it; only the edge turns it into a response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of problem: its HTTP status, its title and the usual advice. `retry_after` is in seconds, for those worth repeating."""

    status: int
    title: str
    hint: str
    retry_after: int | None = None


def _discovery(title: str, hint: str) -> Code:
    return Code(422, title, hint)


CODES: Final[Mapping[str, Code]] = MappingProxyType({
    # ---- the request
    "invalid_json": Code(400, "Not valid JSON", "Send one JSON object, encoded as UTF-8."),
    "invalid_value": Code(400, "A value is not acceptable", "Correct the field the detail names."),
    "unknown_field": Code(400, "Unknown field", "Remove the field the detail names, or correct its spelling."),
    "unknown_parameter": Code(400, "Unknown query parameter", "Remove the parameter the detail names, or correct its spelling."),
    "invalid_event": Code(400, "Not a callback event", "Send one event, a list of them in `events`, or one per line as NDJSON."),
    "too_deep": Code(400, "JSON nests too deeply", "Flatten the value; DISPATCHER_MAX_JSON_DEPTH is the limit."),
    "nul_character": Code(400, "A string holds \\u0000", "Remove the character, or send the text as base64."),
    "number_out_of_range": Code(400, "A number cannot be stored", "Send the number as a string."),
    "invalid_utf8": Code(400, "Not valid UTF-8", "Encode the body as UTF-8."),
    "body_too_large": Code(413, "Body too large", "Send less, or upload it with PUT /v1/blobs and send the reference."),
    "bulk_too_large": Code(413, "Too many items in one call", "Split the list into several calls."),
    "unsupported_media_type": Code(415, "Media type not supported", "Send `content-type: application/json`, without content-encoding."),
    "invalid_ref": Code(400, "Not a usable reference", "Name in `refs` what goes by reference, and write it as PUT /v1/blobs answers it."),
    "unknown_ref": Code(422, "The reference leads nowhere", "Upload the value with PUT /v1/blobs, again if it was long ago."),
    "blob_mismatch": Code(422, "The value has another hash", "Send it again: what arrived is not what the address names."),
    "not_found": Code(404, "Not found", "Check the id or name; what belongs to another tenant is not visible."),
    "method_not_allowed": Code(405, "Method not allowed", "Use one of the methods in the Allow header."),
    # ---- who is asking
    "unauthorized": Code(401, "No valid token", "Send `Authorization: Bearer <token>`; make one with: dispatcher token create."),
    "forbidden": Code(403, "Not allowed", "Use a token that has the scope the detail names."),
    "host_not_allowed": Code(403, "Host not allowed", "Address the development server as localhost, from a program or its own pages."),
    # ---- what is asked for
    "unknown_workflow": Code(404, "Unknown workflow", "Register an endpoint with such a handler; GET /v1/workflows lists what there is."),
    "unknown_endpoint": Code(404, "Unknown endpoint", "GET /v1/endpoints lists what is registered."),
    "workflow_has_runs": Code(409, "The workflow has live runs", "Wait until they are over, or cancel them by POST /v1/runs/cancel."),
    "version_exists": Code(409, "Version exists with other content", "Register the changed handlers under a new version."),
    "endpoint_in_use": Code(409, "Endpoint still in use", "Wait until its runs are over, or repeat with force=true."),
    "rotation_in_progress": Code(409, "A rotation is in progress", "Wait until the old secret has ended, or cancel the rotation."),
    "no_rotation": Code(409, "No rotation is in progress", "There is nothing to cancel."),
    "limit_failed": Code(422, "A limit cannot be told for this run", "Correct the input, or the expression the workflow declares."),
    "run_finished": Code(409, "The run is finished", "Nothing is left to change; GET the run for its result."),
    "filter_exists": Code(409, "Filter exists", "GET /v1/filters?workflow=… lists those there are."),
    "filter_declared": Code(409, "The workflow declares this filter", "Change default_filters of the workflow, and register it again."),
    "too_many_filters": Code(409, "Too many filters", "Remove those no event needs, or raise DISPATCHER_MAX_FILTERS."),
    "run_not_finished": Code(409, "The run is not finished", "Wait until it is over, or cancel it first; then replay it."),
    "bulk_finished": Code(409, "The bulk action is over", "Nothing is left to cancel; GET it for its counts."),
    "too_many_matched": Code(422, "Too many runs match", "Narrow the filter, e.g. by since; DISPATCHER_MAX_BULK_RUNS is the limit."),
    "invalid_cron": Code(422, "Not a cron expression", "Write 5 fields (minute hour day month weekday), or 6 with seconds first."),
    "invalid_timezone": Code(422, "Not a time zone", "Use a name of the IANA database, such as Europe/Berlin or UTC."),
    "invalid_schedule": Code(422, "Not a moment", 'Write RFC 3339 with an offset, "in 10 minutes", or a cron expression.'),
    "schedule_in_past": Code(422, "The moment has passed", "Choose one to come, or start the run with POST /v1/runs."),
    "unknown_cron": Code(404, "Unknown cron", "GET /v1/crons lists what there is."),
    "cron_exists": Code(409, "Cron exists", "Its workflow has one of this name and expression: change that one, or choose another name."),
    "cron_declared": Code(409, "The workflow declares this cron", "Change on_crons of the workflow and register it again; or disable it."),
    "too_many_crons": Code(409, "Too many crons", "Remove those nobody needs, or raise DISPATCHER_MAX_CRONS."),
    "unknown_schedule": Code(404, "Unknown schedule", "GET /v1/schedules lists what there is."),
    "schedule_settled": Code(409, "The schedule is no longer to come", "It has run or was missed: GET it for its run, or make another."),
    "too_many_runs": Code(422, "The event would start too many runs", "Register fewer workflows for this event."),
    "destination_blocked": Code(422, "Destination blocked", "Private addresses need an entry in DISPATCHER_EGRESS_ALLOW."),
    # ---- webhooks: what is registered
    "unknown_webhook": Code(404, "Unknown webhook", "GET /v1/webhooks lists what there is."),
    "webhook_exists": Code(409, "Webhook exists", "Change it with PATCH, or choose another name."),
    "invalid_expression": Code(422, "Expression cannot be used", "Correct what the detail names; POST /v1/expressions/debug tries one."),
    "too_many_secrets": Code(409, "Too many active secrets", "Remove one; GET the webhook shows when each was last used."),
    "not_signable": Code(422, "Sample cannot be signed", "Send a delivery from the sender itself; most have a button for it."),
    "not_replayable": Code(409, "Nothing to replay", "Only accepted and unrouted deliveries can be replayed; a duplicate names its first."),
    # ---- webhooks: what senders are answered
    "unverified": Code(401, "Not verified", "Check the secret; the deliveries of the webhook show the reason."),
    "invalid_body": Code(400, "Unreadable body", "Send what the content type says; the deliveries of the webhook show the reason."),
    "too_large": Code(413, "Body too large", "Send less, or raise max_body_bytes of the webhook."),
    "content_encoding": Code(415, "Unsupported content encoding", "Send the body as it is, or encoded once with gzip or deflate."),
    "method": Code(405, "Method not allowed", "Deliver with one of the methods in the Allow header."),
    "rate_limited": Code(429, "Too many requests", "Repeat after Retry-After, or raise rate_limit of the webhook.", retry_after=1),
    "key_unavailable": Code(503, "Sender's key not available", "Repeat; the key the sender publishes could not be fetched.", retry_after=2),
    # ---- an endpoint's side
    "stale_attempt": Code(409, "Another attempt owns this task", "Stop: what this attempt does is no longer recorded."),
    "task_ended": Code(410, "The task is over", "Stop: it finished, failed or was cancelled elsewhere."),
    # ---- durable tasks
    "log_conflict": Code(412, "The log has grown", "Compare with the entries of this answer: what is yours has been recorded before."),
    "invalid_op": Code(422, "Not an operation that can be recorded", "Correct what the detail names; nothing of this append was stored."),
    "too_many_ops": Code(422, "Too many operations at once", "Record them in several appends; DISPATCHER_TURN_OPS is the limit."),
    "scope_closed": Code(422, "The scope is closed", "What a closed scope came to stands in its own entry; open another."),
    "journal_too_long": Code(422, "The log would be too long", "Begin a new log with `continue`; DISPATCHER_JOURNAL_ENTRIES is the limit."),
    "journal_too_large": Code(422, "The log would be too large", "Keep large values elsewhere; DISPATCHER_JOURNAL_BYTES is the limit."),
    "not_durable": Code(409, "Not a durable task", "Only runs of durable tasks have a journal, an inbox and checkpoints."),
    "turn_running": Code(409, "A turn is under way", "Try again when it is over, or cancel the run first."),
    "not_blocked": Code(409, "Nothing is blocked", "GET the run: only a task that is blocked can be resumed."),
    "inbox_closed": Code(409, "The inbox is closed", "The task takes no more messages: it closed its inbox, is ending, or is over."),
    "unknown_node": Code(404, "No such node in the journal", "GET the journal: its entries have the ids that may be named."),
    # ---- discovery: why the signed GET gave no manifest; the detail says more than these titles
    "discovery_unreachable": _discovery("Endpoint not reachable", "Check that the URL answers from where the dispatcher runs."),
    "discovery_timeout": _discovery("Endpoint did not answer in time", "Check that the URL answers a GET within seconds."),
    "discovery_dns": _discovery("Name not resolved", "Check the host of the URL, and the name server the dispatcher uses."),
    "discovery_tls": _discovery("TLS failed", "Check the certificate: its name, its date and who signed it."),
    "discovery_connection_broken": _discovery("Connection closed without an answer", "Look at the endpoint's log."),
    "discovery_local_fault": _discovery("The dispatcher could not ask", "Try again; look at the dispatcher's log."),
    "discovery_redirect": _discovery("The URL redirects", "Register the final URL; redirects are never followed."),
    "discovery_unauthorized": _discovery("Endpoint refused the GET", "Check its keys, its auth setting and any firewall before it."),
    "discovery_not_found": _discovery("Nothing answers GET", "Check the path, or register with `handlers`."),
    "discovery_gone": _discovery("Endpoint is gone", "Register the URL that took its place."),
    "discovery_server_error": _discovery("Endpoint failed on GET", "Look at the endpoint's log."),
    "discovery_html": _discovery("Endpoint answers with a page", "Remove the login or protection page, or correct the URL."),
    "discovery_content_encoding": _discovery("Compressed manifest", "Answer without content-encoding."),
    "discovery_too_large": _discovery("Manifest too large", "Serve fewer handlers from one endpoint."),
    "discovery_no_manifest": _discovery("Not a manifest", "Answer the signed GET with a manifest, or register with `handlers`."),
    "discovery_bad_json": _discovery("Manifest is not JSON", "Answer the signed GET with a manifest, or register with `handlers`."),
    "discovery_bad_manifest": _discovery("Manifest not understood", "Correct what the detail names."),
    "discovery_wrong_challenge": _discovery("Challenge not echoed", "Return the request header task-challenge as `challenge`, uncached."),
    "discovery_unsupported_protocol": _discovery("No common protocol version", "Update the SDK of the endpoint, or this server."),
    # ---- the server
    "overloaded": Code(503, "Too much waiting to be written", "Repeat after the time in Retry-After.", retry_after=1),
    "database_unavailable": Code(503, "The database is away", "Repeat after Retry-After, with an idempotency key.", retry_after=2),
    "not_ready": Code(503, "Not ready", "Wait; the detail says for what.", retry_after=2),
    "internal": Code(500, "Unexpected error", "Report the request_id together with the server's log."),
})  # fmt: skip


class Problem(Exception):  # noqa: N818 - the RFC's word for it
    """A failure the caller is told about. `extra` are members added to the document, such as `request_id`."""

    def __init__(self, code: str, detail: str, *, hint: str = "", extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        known = CODES[code]
        self.code = code
        self.status = known.status
        self.title = known.title
        self.detail = detail
        self.hint = hint or known.hint
        self.retry_after = known.retry_after
        self.extra = extra

    def document(self) -> dict[str, Any]:
        """The RFC 9457 object."""
        return {
            "type": f"/errors/{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "hint": self.hint,
            **(self.extra or {}),
        }


def problem(code: str, detail: str, **extra: Any) -> Problem:
    """A Problem with additional members, e.g. `problem("invalid_value", "…", field="priority")`."""
    return Problem(code, detail, extra=extra or None)
