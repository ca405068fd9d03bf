"""Every sender this package knows, one entry of data each.

`checked` says how sure an entry is. `library`: a test signs with, or verifies against, code the sender publishes (for GitHub and Clerk,
the library the sender's documentation points to). `vector`: the sender publishes a signed example that passes. `documentation`: written
from the sender's documentation and tested on requests made from it; capture a real request before relying on it.

A tolerance is the sender's own where it states one. Where a sender may re-send a delivery under its first timestamp, the tolerance covers
its retries and the dedupe key does the rest: refusing a late retry would lose it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

from webhooks import handshakes
from webhooks.handshakes import Challenge
from webhooks.response import NOSNIFF, Response, plain
from webhooks.scheme import Jwt, KeyDocument, Scheme

Checked = Literal["library", "vector", "documentation"]

HOUR: Final = 3_600
DAY: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A known sender.

    `params` are settings its sources must have; `event_key` is a CEL expression to start from; `response` is what the sender wants to
    hear when the usual answer will not do; `note` is what a person setting it up must know.
    """

    title: str
    scheme: Scheme
    checked: Checked = "documentation"
    challenges: tuple[Challenge, ...] = ()
    event_key: str = ""
    params: tuple[str, ...] = ()
    response: Response | None = None
    note: str = ""


_hmac = partial(Scheme, kind="hmac")
_token = partial(Scheme, kind="token")
_jwt = partial(Scheme, kind="jwt")

EMPTY: Final = Response(200, (NOSNIFF,))
TWIML: Final = Response(200, (("content-type", "text/xml; charset=utf-8"), NOSNIFF), b"<Response/>")
SNS_CERTIFICATE: Final = r"https://sns\.[a-z0-9-]{3,40}\.amazonaws\.com(\.cn)?/[A-Za-z0-9._-]{1,200}\.pem"
PAYPAL_CERTIFICATE: Final = r"https://([a-z0-9-]{1,40}\.){1,3}paypal\.com/v1/notifications/certs/[A-Za-z0-9._-]{1,200}"
ADYEN: Final = "notificationItems.0.NotificationRequestItem"
URL_SECRET: Final = "It does not sign. Put the secret in the address you give it: ?secret=…"  # noqa: S105 - a sentence
OWN_HEADER: Final = "It does not sign, but lets you add a header: send the secret as x-webhook-secret."
PASSWORD: Final = "It does not sign. Set a user name and a password for the address you give it."  # noqa: S105 - a sentence

# The symmetric form of https://github.com/standard-webhooks/standard-webhooks, under its own header names or those of Svix.
STANDARD: Final = _hmac(
    signature="h:webhook-signature||h:svix-signature",
    items=(" ", ",", "v1"),
    encoding="base64",
    signed="{h:webhook-id||h:svix-id}.{h:webhook-timestamp||h:svix-timestamp}.{body}",
    timestamp="h:webhook-timestamp||h:svix-timestamp",
    key="base64",
    key_prefix="whsec_",
    delivery_id="{h:webhook-id||h:svix-id}",
)
STANDARD_ED25519: Final = Scheme(
    kind="ed25519",
    signature="h:webhook-signature",
    items=(" ", ",", "v1a"),
    encoding="base64",
    signed="{h:webhook-id}.{h:webhook-timestamp}.{body}",
    timestamp="h:webhook-timestamp",
    key="base64",
    key_prefix="whpk_",
    delivery_id="{h:webhook-id}",
)
BASIC: Final = Scheme(kind="basic", signature="h:authorization", prefix="Basic ")
HUB_256: Final = partial(_hmac, signature="h:x-hub-signature-256", prefix="sha256=")
HUB: Final = partial(_hmac, signature="h:x-hub-signature", prefix="sha256=")
TWILIO: Final = partial(
    _hmac, signature="h:x-twilio-signature", encoding="base64", canonical="twilio", delivery_id="{h:i-twilio-idempotency-token}"
)
SECRET_IN_URL: Final = _token(signature="q:secret")
SECRET_IN_HEADER: Final = _token(signature="h:x-webhook-secret")


def _standard(title: str, checked: Checked, event_key: str = "input.type") -> Provider:
    return Provider(title=title, scheme=STANDARD, checked=checked, event_key=event_key)


_PROVIDERS: Final[dict[str, Provider]] = {
    # ---------------------------------------------------------------------------------------------- Standard Webhooks and its users
    "standard_webhooks": _standard("Standard Webhooks", "library"),
    "standard_webhooks_ed25519": Provider(
        title="Standard Webhooks, asymmetric", scheme=STANDARD_ED25519, event_key="input.type", note="The secret is the public key whpk_…."
    ),
    "svix": _standard("Svix", "library"),
    "anthropic": _standard("Anthropic", "library", "input.data.type"),
    "brex": _standard("Brex", "documentation", "input.event_type"),
    "clerk": _standard("Clerk", "library"),
    "gitlab": _standard("GitLab, signing token", "documentation", "headers['x-gitlab-event']"),
    "incident_io": _standard("incident.io", "documentation", "input.event_type"),
    "openai": _standard("OpenAI", "library"),
    "render": _standard("Render", "documentation"),
    "replicate": _standard("Replicate", "library", "'prediction:' + input.status"),
    "resend": _standard("Resend", "library"),
    # ---------------------------------------------------------------------------------------------- HMAC of the body alone
    "github": Provider(
        title="GitHub",
        scheme=HUB_256(delivery_id="{h:x-github-delivery}"),
        checked="library",
        challenges=handshakes.GITHUB,
        event_key="headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')",
    ),
    "meta": Provider(
        title="Meta",
        scheme=HUB_256(),
        challenges=handshakes.META,
        event_key="input.object",
        params=("verify_token",),
        note="The secret is the app secret; verify_token is the one you enter beside the address.",
    ),
    "whatsapp": Provider(
        title="WhatsApp Business",
        scheme=HUB_256(),
        challenges=handshakes.META,
        event_key="input.entry[0].changes[0].field",
        params=("verify_token",),
    ),
    "bitbucket": Provider(title="Bitbucket", scheme=HUB(delivery_id="{h:x-request-uuid}"), event_key="headers['x-event-key']"),
    "jira": Provider(title="Jira", scheme=HUB(delivery_id="{h:x-atlassian-webhook-identifier}"), event_key="input.webhookEvent"),
    "intercom": Provider(
        title="Intercom",
        scheme=_hmac(signature="h:x-hub-signature", prefix="sha1=", algorithm="sha1", delivery_id="{b:id}"),
        event_key="input.topic",
    ),
    "shopify": Provider(
        title="Shopify",
        scheme=_hmac(
            signature="h:x-shopify-hmac-sha256||h:shopify-hmac-sha256",
            encoding="base64",
            delivery_id="{h:x-shopify-webhook-id||h:shopify-webhook-id}",
        ),
        checked="library",
        event_key="'x-shopify-topic' in headers ? headers['x-shopify-topic'] : headers['shopify-topic']",
    ),
    "linear": Provider(
        title="Linear",
        scheme=_hmac(
            signature="h:linear-signature", timestamp="b:webhookTimestamp", unit="ms", tolerance=60, delivery_id="{h:linear-delivery}"
        ),
        checked="library",
        event_key="input.type + ':' + input.action",
    ),
    "lemon_squeezy": Provider(title="Lemon Squeezy", scheme=_hmac(signature="h:x-signature"), event_key="input.meta.event_name"),
    "typeform": Provider(
        title="Typeform",
        scheme=_hmac(signature="h:typeform-signature", prefix="sha256=", encoding="base64", delivery_id="{b:event_id}"),
        event_key="input.event_type",
    ),
    "dropbox": Provider(
        title="Dropbox", scheme=_hmac(signature="h:x-dropbox-signature"), challenges=handshakes.DROPBOX, event_key="'file_changed'"
    ),
    "pagerduty": Provider(
        title="PagerDuty",
        scheme=_hmac(signature="h:x-pagerduty-signature", items=(",", "=", "v1"), delivery_id="{b:event.id}"),
        event_key="input.event.event_type",
    ),
    "vercel": Provider(
        title="Vercel", scheme=_hmac(signature="h:x-vercel-signature", algorithm="sha1", delivery_id="{b:id}"), event_key="input.type"
    ),
    "sentry": Provider(
        title="Sentry",
        scheme=_hmac(signature="h:sentry-hook-signature", delivery_id="{h:request-id}"),
        event_key="headers['sentry-hook-resource'] + ':' + input.action",
    ),
    "notion": Provider(
        title="Notion",
        scheme=_hmac(signature="h:x-notion-signature", prefix="sha256=", delivery_id="{b:id}"),
        checked="library",
        challenges=handshakes.NOTION,
        event_key="input.type",
        note="Notion sends its secret in the first request; confirm it in Notion with the value shown here.",
    ),
    "asana": Provider(
        title="Asana",
        scheme=_hmac(signature="h:x-hook-signature"),
        challenges=handshakes.ASANA,
        event_key="size(input.events) == 0 ? 'heartbeat' : input.events[0].action",
        note="Asana sends its secret in the first request. One source per Asana webhook: each has its own secret.",
    ),
    "docusign": Provider(
        title="DocuSign Connect",
        scheme=_hmac(signature="||".join(f"h:x-docusign-signature-{number}" for number in range(1, 9)), encoding="base64"),
        event_key="input.event",
    ),
    "razorpay": Provider(
        title="Razorpay",
        scheme=_hmac(signature="h:x-razorpay-signature", delivery_id="{h:x-razorpay-event-id}"),
        checked="library",
        event_key="input.event",
    ),
    "gocardless": Provider(
        title="GoCardless",
        scheme=_hmac(signature="h:webhook-signature", delivery_id="{b:meta.webhook_id}"),
        checked="library",
        event_key="input.events[0].resource_type + ':' + input.events[0].action",
    ),
    "coinbase_commerce": Provider(
        title="Coinbase Commerce",
        scheme=_hmac(signature="h:x-cc-webhook-signature", delivery_id="{b:id}"),
        checked="library",
        event_key="input.event.type",
    ),
    "line": Provider(
        title="LINE",
        scheme=_hmac(signature="h:x-line-signature", encoding="base64"),
        checked="library",
        event_key="size(input.events) == 0 ? 'verify' : input.events[0].type",
    ),
    "woocommerce": Provider(
        title="WooCommerce",
        scheme=_hmac(signature="h:x-wc-webhook-signature", encoding="base64", delivery_id="{h:x-wc-webhook-delivery-id}"),
        event_key="headers['x-wc-webhook-topic']",
    ),
    "xero": Provider(
        title="Xero",
        scheme=_hmac(signature="h:x-xero-signature", encoding="base64"),
        event_key="size(input.events) == 0 ? 'intent_to_receive' : input.events[0].eventType",
        response=EMPTY,  # Xero tests for an answer without a body
    ),
    "hookdeck": Provider(
        title="Hookdeck",
        scheme=_hmac(signature="h:x-hookdeck-signature||h:x-hookdeck-signature-2", encoding="base64", delivery_id="{h:x-hookdeck-eventid}"),
    ),
    "x": Provider(
        title="X (Twitter)",
        scheme=_hmac(signature="h:x-twitter-webhooks-signature", prefix="sha256=", encoding="base64"),
        challenges=handshakes.X,
        note="The secret is the consumer secret of the app.",
    ),
    # ---------------------------------------------------------------------------------------------- HMAC over the time and the body
    "stripe": Provider(
        title="Stripe",
        scheme=_hmac(
            signature="h:stripe-signature", items=(",", "=", "v1"), signed="{sig:t}.{body}", timestamp="sig:t", delivery_id="{b:id}"
        ),
        checked="library",
        event_key="input.type",
    ),
    "slack": Provider(
        title="Slack",
        scheme=_hmac(
            signature="h:x-slack-signature",
            prefix="v0=",
            signed="v0:{h:x-slack-request-timestamp}:{body}",
            timestamp="h:x-slack-request-timestamp",
            delivery_id="{b:event_id||f:trigger_id}",
        ),
        checked="library",
        challenges=handshakes.SLACK,
        event_key="has(input.event) ? input.event.type : has(input.command) ? input.command : input.type",
        response=EMPTY,  # the body of an answer to a slash command or an interaction is shown to its user
    ),
    "zoom": Provider(
        title="Zoom",
        scheme=_hmac(
            signature="h:x-zm-signature",
            prefix="v0=",
            signed="v0:{h:x-zm-request-timestamp}:{body}",
            timestamp="h:x-zm-request-timestamp",
        ),
        checked="library",
        challenges=handshakes.ZOOM,
        event_key="input.event",
    ),
    "customer_io": Provider(
        title="Customer.io",
        scheme=_hmac(
            signature="h:x-cio-signature", signed="v0:{h:x-cio-timestamp}:{body}", timestamp="h:x-cio-timestamp", delivery_id="{b:event_id}"
        ),
        event_key="input.object_type + ':' + input.metric",
    ),
    "paddle": Provider(
        title="Paddle Billing",
        # Its library allows 5 s, less than clocks differ; the dedupe key makes the longer tolerance harmless.
        scheme=_hmac(
            signature="h:paddle-signature", items=(";", "=", "h1"), signed="{sig:ts}:{body}", timestamp="sig:ts", delivery_id="{b:event_id}"
        ),
        checked="library",
        event_key="input.event_type",
    ),
    "calendly": Provider(
        title="Calendly",
        scheme=_hmac(signature="h:calendly-webhook-signature", items=(",", "=", "v1"), signed="{sig:t}.{body}", timestamp="sig:t"),
        event_key="input.event",
    ),
    "workos": Provider(
        title="WorkOS",
        scheme=_hmac(
            signature="h:workos-signature",
            items=(",", "=", "v1"),
            signed="{sig:t}.{body}",
            timestamp="sig:t",
            unit="ms",
            tolerance=180,
            delivery_id="{b:id}",
        ),
        checked="library",
        event_key="input.event",
    ),
    "zendesk": Provider(
        title="Zendesk",
        scheme=_hmac(
            signature="h:x-zendesk-webhook-signature",
            encoding="base64",
            signed="{h:x-zendesk-webhook-signature-timestamp}{body}",
            timestamp="h:x-zendesk-webhook-signature-timestamp",
            unit="iso",
            tolerance=HOUR,
            delivery_id="{h:x-zendesk-webhook-invocation-id}",
        ),
        event_key="input.type",
    ),
    "box": Provider(
        title="Box",
        scheme=_hmac(
            signature="h:box-signature-primary||h:box-signature-secondary",
            encoding="base64",
            signed="{body}{h:box-delivery-timestamp}",
            timestamp="h:box-delivery-timestamp",
            unit="iso",
            tolerance=600,
            delivery_id="{h:box-delivery-id}",
        ),
        checked="library",
        event_key="input.trigger",
    ),
    "twitch": Provider(
        title="Twitch EventSub",
        scheme=_hmac(
            signature="h:twitch-eventsub-message-signature",
            prefix="sha256=",
            signed="{h:twitch-eventsub-message-id}{h:twitch-eventsub-message-timestamp}{body}",
            timestamp="h:twitch-eventsub-message-timestamp",
            unit="iso",
            tolerance=600,
            delivery_id="{h:twitch-eventsub-message-id}",
        ),
        challenges=handshakes.TWITCH,
        event_key="input.subscription.type",
    ),
    "mailgun": Provider(
        title="Mailgun",
        scheme=_hmac(
            signature="b:signature.signature",
            signed="{b:signature.timestamp}{b:signature.token}",
            timestamp="b:signature.timestamp",
            tolerance=12 * HOUR,
            delivery_id="{b:signature.token}",
        ),
        event_key="input['event-data'].event",
        note="Mailgun signs a time and a token, not the body: a token is accepted once.",
    ),
    # ---------------------------------------------------------------------------------------------- HMAC over the address
    "twilio": Provider(
        title="Twilio",
        scheme=TWILIO(algorithm="sha1"),
        checked="library",
        event_key="has(input.MessageStatus) ? 'message:' + input.MessageStatus : 'call:' + input.CallStatus",
        response=TWIML,
        note="The secret is the account's auth token. The public address must be the one Twilio was given.",
    ),
    "twilio_shared_key": Provider(
        title="Twilio, shared key", scheme=TWILIO(algorithm="sha256"), checked="library", event_key="'message'", response=TWIML
    ),
    "square": Provider(
        title="Square",
        scheme=_hmac(signature="h:x-square-hmacsha256-signature", encoding="base64", signed="{url}{body}", delivery_id="{b:event_id}"),
        checked="library",
        event_key="input.type",
    ),
    "hubspot": Provider(
        title="HubSpot",
        scheme=_hmac(
            signature="h:x-hubspot-signature-v3",
            encoding="base64",
            signed="{method}{uri}{body}{h:x-hubspot-request-timestamp}",
            timestamp="h:x-hubspot-request-timestamp",
            unit="ms",
        ),
        checked="library",
        event_key="input[0].subscriptionType",
    ),
    "trello": Provider(
        title="Trello",
        scheme=_hmac(signature="h:x-trello-webhook", algorithm="sha1", encoding="base64", signed="{body}{url}"),
        challenges=handshakes.TRELLO,
        event_key="input.action.type",
    ),
    "adyen": Provider(
        title="Adyen",
        scheme=_hmac(
            signature=f"b:{ADYEN}.additionalData.hmacSignature",
            encoding="base64",
            key="hex",
            canonical="adyen",
            delivery_id=f"{{b:{ADYEN}.pspReference}}:{{b:{ADYEN}.eventCode}}:{{b:{ADYEN}.success}}",
        ),
        checked="library",
        event_key=f"input.{ADYEN.replace('.0.', '[0].')}.eventCode",
        response=plain(200, "[accepted]"),
        note="Adyen signs eight members of the notification; take nothing else of it as proven.",
    ),
    # ---------------------------------------------------------------------------------------------- public keys
    "discord": Provider(
        title="Discord",
        scheme=Scheme(
            kind="ed25519",
            signature="h:x-signature-ed25519",
            signed="{h:x-signature-timestamp}{body}",
            timestamp="h:x-signature-timestamp",
            key="hex",
            delivery_id="{b:id}",
        ),
        checked="library",
        challenges=handshakes.DISCORD,
        event_key="has(input.event) ? input.event.type : 'interaction:' + string(input.type)",
        note="The secret is the application's public key.",
    ),
    "telnyx": Provider(
        title="Telnyx",
        scheme=Scheme(
            kind="ed25519",
            signature="h:telnyx-signature-ed25519",
            encoding="base64",
            signed="{h:telnyx-timestamp}|{body}",
            timestamp="h:telnyx-timestamp",
            key="base64",
            delivery_id="{b:data.id}",
        ),
        checked="library",
        event_key="input.data.event_type",
        note="The secret is the account's public key.",
    ),
    "sendgrid": Provider(
        title="SendGrid",
        scheme=Scheme(
            kind="ecdsa",
            signature="h:x-twilio-email-event-webhook-signature",
            encoding="base64",
            signed="{h:x-twilio-email-event-webhook-timestamp}{body}",
            timestamp="h:x-twilio-email-event-webhook-timestamp",
            tolerance=DAY + HOUR,  # retries go on for 24 hours and the time of signing is not said to change
            key="spki",
        ),
        checked="library",
        event_key="input[0].event",
        note="The secret is the verification key. One request carries many events.",
    ),
    "paypal": Provider(
        title="PayPal",
        scheme=Scheme(
            kind="rsa",
            signature="h:paypal-transmission-sig",
            encoding="base64",
            signed="{h:paypal-transmission-id}|{h:paypal-transmission-time}|{p:webhook_id}|{crc32}",
            timestamp="h:paypal-transmission-time",
            unit="iso",
            tolerance=4 * DAY,  # retries go on for three days
            delivery_id="{b:id}",
            keys=KeyDocument(form="x509", url="{h:paypal-cert-url}", allowed=PAYPAL_CERTIFICATE),
        ),
        checked="library",
        event_key="input.event_type",
        params=("webhook_id",),
        note="PayPal signs a CRC-32 of the body, which can be forged by who can change a request on its way.",
    ),
    "sns": Provider(
        title="Amazon SNS",
        scheme=Scheme(
            kind="rsa",
            signature="b:Signature",
            encoding="base64",
            canonical="sns",
            timestamp="b:Timestamp",
            unit="iso",
            tolerance=2 * HOUR,  # the time of publishing; retries end within the hour by default
            delivery_id="{b:MessageId}",
            require=(("b:TopicArn", "topic_arn"),),
            keys=KeyDocument(form="x509", url="{b:SigningCertURL}", allowed=SNS_CERTIFICATE),
        ),
        checked="library",
        challenges=handshakes.SNS,
        event_key="has(input.Subject) ? input.Subject : 'notification'",
        params=("topic_arn",),
        note="Amazon signs for every topic of every account: only messages of topic_arn are accepted.",
    ),
    # ---------------------------------------------------------------------------------------------- tokens with a hash of the body
    "livekit": Provider(
        title="LiveKit",
        scheme=_jwt(
            signature="h:authorization",
            jwt=Jwt(algorithms=("HS256",), body_hash="sha256", body_encoding="base64", fresh="exp"),
            delivery_id="{b:id}",
        ),
        checked="library",
        event_key="input.event",
        note="The secret is the API secret.",
    ),
    "netlify": Provider(
        title="Netlify",
        scheme=_jwt(
            signature="h:x-webhook-signature",
            jwt=Jwt(algorithms=("HS256",), body_hash="sha256", claims=(("iss", "netlify"),), fresh=""),
        ),
        event_key="input.state",
    ),
    "vonage": Provider(
        title="Vonage",
        scheme=_jwt(
            signature="h:authorization",
            prefix="Bearer ",
            jwt=Jwt(algorithms=("HS256",), body_hash="payload_hash", fresh="iat"),
            delivery_id="{c:jti}",
        ),
        event_key="has(input.status) ? 'status:' + input.status : 'inbound'",
    ),
    "bird": Provider(
        title="Bird (MessageBird)",
        scheme=_jwt(
            signature="h:messagebird-signature-jwt",
            jwt=Jwt(
                algorithms=("HS256", "HS384", "HS512"),
                body_hash="payload_hash",
                url_hash="url_hash",
                claims=(("iss", "MessageBird"),),
                fresh="exp",
            ),
            delivery_id="{c:jti}",
        ),
        checked="library",
        event_key="input.type",
    ),
    "plaid": Provider(
        title="Plaid",
        scheme=_jwt(
            signature="h:plaid-verification",
            jwt=Jwt(algorithms=("ES256",), body_hash="request_body_sha256", fresh="iat"),
            keys=KeyDocument(
                form="jwk",
                url="https://{p:environment}.plaid.com/webhook_verification_key/get",
                allowed=r"https://(production|sandbox)\.plaid\.com/webhook_verification_key/get",
                post=(("client_id", "{p:client_id}"), ("secret", "{p:secret}"), ("key_id", "{p:key_id}")),
            ),
        ),
        event_key="input.webhook_type + ':' + input.webhook_code",
        params=("client_id", "environment"),
        note="The secret is the API secret, used to fetch keys; environment is production or sandbox.",
    ),
    "wix": Provider(
        title="Wix",
        scheme=_jwt(
            signature="body",
            key="pem",
            jwt=Jwt(algorithms=("RS256",), fresh="exp"),
            payload="claims",
        ),
        event_key="'wix'",
        note="The secret is the app's public key. The body is a token; its claims are the input.",
    ),
    "event_grid": Provider(
        title="Azure Event Grid, key in the address",
        scheme=_token(signature="q:key", delivery_id="{b:0.id}"),
        challenges=handshakes.EVENT_GRID,
        event_key="input[0].eventType",
        note="Put the secret in the address you give it: ?key=…",
    ),
    "event_grid_entra": Provider(
        title="Azure Event Grid, Entra token",
        scheme=_jwt(
            signature="h:authorization",
            prefix="Bearer ",
            jwt=Jwt(algorithms=("RS256",), claims=(("aud", "{p:audience}"), ("tid", "{p:tenant_id}")), fresh="exp"),
            keys=KeyDocument(
                form="jwks",
                url="https://login.microsoftonline.com/{p:tenant_id}/discovery/v2.0/keys",
                allowed=r"https://login\.microsoftonline\.com/[0-9a-fA-F-]{36}/discovery/v2\.0/keys",
            ),
            delivery_id="{b:0.id}",
        ),
        challenges=handshakes.EVENT_GRID,
        event_key="input[0].eventType",
        params=("audience", "tenant_id"),
    ),
    # ---------------------------------------------------------------------------------------------- a shared secret is sent along
    "gitlab_token": Provider(
        title="GitLab, secret token",
        scheme=_token(signature="h:x-gitlab-token", delivery_id="{h:idempotency-key||h:x-gitlab-webhook-uuid}"),
        event_key="headers['x-gitlab-event']",
    ),
    "telegram": Provider(
        title="Telegram",
        scheme=_token(signature="h:x-telegram-bot-api-secret-token", delivery_id="{b:update_id}"),
        event_key="has(input.message) ? 'message' : has(input.callback_query) ? 'callback_query' : 'update'",
    ),
    "hugging_face": Provider(title="Hugging Face", scheme=SECRET_IN_HEADER, event_key="input.event.scope + ':' + input.event.action"),
    "assemblyai": Provider(title="AssemblyAI", scheme=SECRET_IN_HEADER, event_key="'transcript:' + input.status", note=OWN_HEADER),
    "supabase": Provider(
        title="Supabase database webhooks", scheme=SECRET_IN_HEADER, event_key="input.table + ':' + input.type", note=OWN_HEADER
    ),
    "bigcommerce": Provider(title="BigCommerce", scheme=SECRET_IN_HEADER, event_key="input.scope", note=OWN_HEADER),
    "freshdesk": Provider(title="Freshdesk", scheme=SECRET_IN_HEADER, note=OWN_HEADER),
    "cloudevents": Provider(
        title="CloudEvents",
        scheme=_token(signature="h:authorization", prefix="Bearer ", delivery_id="{h:ce-id||b:id}"),
        challenges=handshakes.CLOUDEVENTS,
        event_key="'ce-type' in headers ? headers['ce-type'] : input.type",
    ),
    "microsoft_graph": Provider(
        title="Microsoft Graph",
        scheme=_token(signature="b:value.0.clientState"),
        challenges=handshakes.MICROSOFT_GRAPH,
        event_key="input.value[0].changeType",
        note="The secret is the clientState of the subscription.",
    ),
    "mailchimp": Provider(title="Mailchimp", scheme=SECRET_IN_URL, event_key="input.type", note=URL_SECRET),
    "gumroad": Provider(title="Gumroad", scheme=SECRET_IN_URL, event_key="input.resource_name", note=URL_SECRET),
    "salesforce": Provider(title="Salesforce outbound messages", scheme=SECRET_IN_URL, event_key="'outbound_message'", note=URL_SECRET),
    "postmark": Provider(title="Postmark", scheme=BASIC, event_key="input.RecordType", params=("username",), note=PASSWORD),
    "chargebee": Provider(title="Chargebee", scheme=BASIC, event_key="input.event_type", params=("username",), note=PASSWORD),
    "pipedrive": Provider(
        title="Pipedrive", scheme=BASIC, event_key="input.meta.entity + ':' + input.meta.action", params=("username",), note=PASSWORD
    ),
}

PROVIDERS: Final[Mapping[str, Provider]] = MappingProxyType(_PROVIDERS)
