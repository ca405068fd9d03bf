"""What senders send: one realistic delivery for each that is much used, and a plain one for any other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from webhooks import Request
from webhooks.request import FORM

Json = Any


@dataclass(frozen=True, slots=True)
class Sample:
    """A delivery without its proof. `payload` is sent as JSON, or as a form where `form` says so."""

    payload: Json
    headers: Mapping[str, str] = field(default_factory=dict)
    form: bool = False

    def request(self, url: str, mark: str = "") -> Request:
        """The delivery as a request to `url`, still unsigned. `mark` makes its body unlike any other."""
        payload = _marked(self.payload, mark) if mark else self.payload
        body = urlencode(payload) if self.form else json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
        kind = FORM if self.form else "application/json"
        return Request.build("POST", url, {"content-type": kind, "user-agent": "dispatcher-test", **self.headers}, body.encode())


def _marked(payload: Json, mark: str) -> Json:
    if isinstance(payload, list):
        return [_marked(payload[0], mark), *payload[1:]] if payload else [{"test_delivery": mark}]
    return {**payload, "test_delivery": mark} if isinstance(payload, dict) else payload


_PULL_REQUEST: Final = {
    "action": "opened",
    "number": 42,
    "pull_request": {"id": 279147437, "number": 42, "state": "open", "title": "Greet in the reader's language", "draft": False},
    "repository": {"id": 1296269, "full_name": "octo-org/hello-world", "private": False},
    "sender": {"login": "octocat", "id": 1},
}
_PAYMENT: Final = {
    "object": "event",
    "api_version": "2025-03-31.basil",
    "created": 1767225600,
    "livemode": False,
    "type": "payment_intent.succeeded",
    "data": {"object": {"id": "pi_test", "object": "payment_intent", "amount": 2000, "currency": "usd", "customer": "cus_test"}},
}
_MENTION: Final = {
    "type": "event_callback",
    "team_id": "T0001",
    "api_app_id": "A0001",
    "event": {"type": "app_mention", "user": "U0001", "text": "<@U0002> hello", "channel": "C0001", "ts": "1767225600.000100"},
}
_ORDER: Final = {"id": 820982911946154508, "email": "jon@example.com", "currency": "USD", "total_price": "403.00", "line_items": []}
_ISSUE: Final = {"action": "create", "type": "Issue", "data": {"id": "2174add1", "title": "A button does nothing", "priority": 2}}

SAMPLES: Final[Mapping[str, Sample]] = {
    "github": Sample(_PULL_REQUEST, {"x-github-event": "pull_request"}),
    "stripe": Sample(_PAYMENT),
    "slack": Sample(_MENTION),
    "shopify": Sample(_ORDER, {"x-shopify-topic": "orders/create", "x-shopify-shop-domain": "example.myshopify.com"}),
    "linear": Sample(_ISSUE),
    "gitlab": Sample({"object_kind": "push", "ref": "refs/heads/main", "project": {"id": 15}}, {"x-gitlab-event": "Push Hook"}),
    "gitlab_token": Sample({"object_kind": "push", "ref": "refs/heads/main", "project": {"id": 15}}, {"x-gitlab-event": "Push Hook"}),
    "bitbucket": Sample({"push": {"changes": []}, "repository": {"full_name": "team/repo"}}, {"x-event-key": "repo:push"}),
    "jira": Sample({"webhookEvent": "jira:issue_created", "issue": {"key": "TEST-1"}}),
    "intercom": Sample({"type": "notification_event", "topic": "conversation.user.created", "data": {"item": {}}}),
    "lemon_squeezy": Sample({"meta": {"event_name": "order_created"}, "data": {"type": "orders", "id": "1"}}),
    "typeform": Sample({"event_type": "form_response", "form_response": {"form_id": "lT4Z3j", "answers": []}}),
    "pagerduty": Sample({"event": {"event_type": "incident.triggered", "resource_type": "incident", "data": {}}}),
    "vercel": Sample({"type": "deployment.created", "createdAt": 1767225600000, "payload": {}}),
    "sentry": Sample({"action": "created", "data": {"issue": {"id": "1"}}}, {"sentry-hook-resource": "issue"}),
    "notion": Sample({"type": "page.created", "entity": {"id": "1", "type": "page"}}),
    "asana": Sample({"events": [{"action": "added", "resource": {"gid": "1", "resource_type": "task"}}]}),
    "docusign": Sample({"event": "envelope-completed", "data": {"envelopeId": "1"}}),
    "razorpay": Sample({"event": "payment.captured", "payload": {"payment": {"entity": {"id": "pay_1", "amount": 100}}}}),
    "gocardless": Sample({"events": [{"id": "EV1", "resource_type": "payments", "action": "confirmed"}]}),
    "coinbase_commerce": Sample({"event": {"type": "charge:confirmed", "data": {"code": "66BEOV2A"}}}),
    "line": Sample({"destination": "U1", "events": [{"type": "message", "message": {"type": "text", "text": "Hello"}}]}),
    "woocommerce": Sample({"id": 1, "status": "processing"}, {"x-wc-webhook-topic": "order.created"}),
    "xero": Sample({"events": [{"eventType": "UPDATE", "eventCategory": "CONTACT"}]}),
    "dropbox": Sample({"list_folder": {"accounts": ["dbid:AAH4f99T0taONIb"]}}),
    "meta": Sample({"object": "page", "entry": [{"id": "1", "time": 1767225600, "changes": []}]}),
    "whatsapp": Sample({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"field": "messages", "value": {}}]}]}),
    "zoom": Sample({"event": "meeting.started", "event_ts": 1767225600000, "payload": {"object": {"id": "1"}}}),
    "customer_io": Sample({"object_type": "email", "metric": "delivered", "data": {}}),
    "paddle": Sample({"event_type": "transaction.completed", "data": {"id": "txn_1", "status": "completed"}}),
    "calendly": Sample({"event": "invitee.created", "payload": {"email": "jon@example.com"}}),
    "workos": Sample({"event": "dsync.user.created", "data": {"id": "1"}}),
    "zendesk": Sample({"type": "zen:event-type:ticket.created", "detail": {"id": "1"}}),
    "box": Sample({"trigger": "FILE.UPLOADED", "source": {"id": "1", "type": "file"}}),
    "twitch": Sample({"subscription": {"type": "stream.online"}, "event": {}}, {"twitch-eventsub-message-type": "notification"}),
    "mailgun": Sample({"signature": {}, "event-data": {"event": "delivered", "recipient": "jon@example.com"}}),
    "twilio": Sample({"MessageSid": "SM1", "MessageStatus": "delivered", "To": "+15550100"}, form=True),
    "twilio_shared_key": Sample({"MessageSid": "SM1", "MessageStatus": "delivered", "To": "+15550100"}, form=True),
    "square": Sample({"type": "payment.created", "data": {"type": "payment", "id": "1"}}),
    "hubspot": Sample([{"eventId": 1, "subscriptionType": "contact.creation", "objectId": 123}]),
    "trello": Sample({"action": {"type": "createCard", "data": {}}, "model": {"id": "1"}}),
    "adyen": Sample({
        "live": "false",
        "notificationItems": [{
            "NotificationRequestItem": {
                "eventCode": "AUTHORISATION", "success": "true", "merchantAccountCode": "Test",
                "merchantReference": "1", "amount": {"value": 1130, "currency": "EUR"}, "additionalData": {},
            },
        }],
    }),
    "telegram": Sample({"message": {"message_id": 1, "text": "Hello"}}),
    "hugging_face": Sample({"event": {"action": "update", "scope": "repo.content"}, "repo": {"name": "org/model"}}),
    "assemblyai": Sample({"transcript_id": "1", "status": "completed"}),
    "supabase": Sample({"type": "INSERT", "table": "users", "schema": "public", "record": {"id": 1}}),
    "bigcommerce": Sample({"scope": "store/order/created", "data": {"type": "order", "id": 1}}),
    "microsoft_graph": Sample({"value": [{"changeType": "created", "resource": "me/messages/1"}]}),
    "event_grid": Sample([{"eventType": "Microsoft.Storage.BlobCreated", "data": {}}]),
    "mailchimp": Sample({"type": "subscribe", "data[email]": "jon@example.com"}, form=True),
    "gumroad": Sample({"resource_name": "sale", "sale_id": "1"}, form=True),
    "postmark": Sample({"RecordType": "Delivery", "Recipient": "jon@example.com"}),
    "chargebee": Sample({"event_type": "subscription_created", "content": {}}),
    "pipedrive": Sample({"meta": {"entity": "deal", "action": "create"}, "data": {}}),
    "brex": Sample({"event_type": "TRANSFER_PROCESSED", "transfer_id": "1"}),
    "incident_io": Sample({"event_type": "public_incident.incident_created_v2"}),
    "anthropic": Sample({"data": {"type": "message_batch.completed", "id": "1"}}),
    "replicate": Sample({"id": "1", "status": "succeeded", "output": []}),
}  # fmt: skip
PLAIN: Final = Sample({"type": "test", "event": "test", "data": {"message": "Hello"}})


def sample_of(source: str) -> Sample:
    """What a sender sends; something plain where nothing better is known."""
    return SAMPLES.get(source, PLAIN)
