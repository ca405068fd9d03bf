"""SYNTHETIC requests of the senders known from their documentation only, made with hmac and base64 as each page says.

They show that an entry does what its documentation says, not that the sender does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from urllib.parse import quote

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.webhooks.cases import NOW, URL, Case, post

SECRET, WRONG = "secret of the sender", "secret of another"
ISO = "2026-01-01T00:00:00Z"
BODY = json.dumps({"id": "evt_1", "event_id": "evt_1", "event": {"id": "evt_1", "type": "created"}, "name": "café"}, ensure_ascii=False)
RAW = BODY.encode()


def _hex(text: str | bytes, algorithm: str = "sha256") -> str:
    return hmac.digest(SECRET.encode(), text if isinstance(text, bytes) else text.encode(), algorithm).hex()


def _b64(text: str | bytes, algorithm: str = "sha256") -> str:
    return base64.b64encode(bytes.fromhex(_hex(text, algorithm))).decode()


def _case(provider: str, headers: dict[str, str], body: bytes = RAW, **more: object) -> Case:
    return Case(provider, post(headers, body), SECRET, WRONG, **more)  # type: ignore[arg-type]


def _standard(provider: str) -> Case:
    key, other = b"twenty-four bytes of key", b"another 24 bytes of key!"
    signature = base64.b64encode(hmac.digest(key, f"msg_1.{NOW}.{BODY}".encode(), "sha256")).decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(NOW), "webhook-signature": f"v1,{signature}"}
    secret, wrong = ("whsec_" + base64.b64encode(one).decode() for one in (key, other))
    return Case(provider, post(headers, RAW), secret, wrong)


def _standard_ed25519() -> Case:
    key, other = ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32), ed25519.Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    signature = base64.b64encode(key.sign(f"msg_1.{NOW}.{BODY}".encode())).decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(NOW), "webhook-signature": f"v1a,{signature}"}
    public, wrong = ("whpk_" + base64.b64encode(one.public_key().public_bytes_raw()).decode() for one in (key, other))
    return Case("standard_webhooks_ed25519", post(headers, RAW), public, wrong)


def _mailgun() -> Case:
    signature = {"timestamp": str(NOW), "token": "t0k3n", "signature": _hex(f"{NOW}t0k3n")}
    body = json.dumps({"signature": signature, "event-data": {"event": "delivered"}})
    return _case("mailgun", {}, body.encode(), tampered=body.replace("t0k3n", "t0k4n").encode())


def _token(claims: dict[str, object]) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{text}.{base64.urlsafe_b64encode(bytes.fromhex(_hex(text))).decode().rstrip('=')}"


def _signed_token(header: dict[str, str], claims: dict[str, object], sign: Callable[[bytes], bytes]) -> str:
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims))
    return f"{text}.{base64.urlsafe_b64encode(sign(text.encode())).decode().rstrip('=')}"


def _number(value: int, size: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).decode().rstrip("=")


def _plaid() -> Case:
    key = ec.generate_private_key(ec.SECP256R1())

    def sign(text: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(text, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    claims: dict[str, object] = {"iat": NOW, "request_body_sha256": hashlib.sha256(RAW).hexdigest()}
    token = _signed_token({"alg": "ES256", "kid": "bfbd5111", "typ": "JWT"}, claims, sign)
    numbers = key.public_key().public_numbers()
    jwk = {"alg": "ES256", "crv": "P-256", "kid": "bfbd5111", "kty": "EC", "x": _number(numbers.x, 32), "y": _number(numbers.y, 32)}
    document = json.dumps({"key": jwk, "request_id": "1"}).encode()
    params = {"client_id": "client", "environment": "sandbox"}
    return _case("plaid", {"Plaid-Verification": token}, params=params, document=document)


def _wix() -> Case:
    key, other = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
    claims: dict[str, object] = {"data": '{"eventType":"created"}', "iat": NOW, "exp": NOW + 3600}
    token = _signed_token({"alg": "RS256", "kid": "1"}, claims, lambda text: key.sign(text, padding.PKCS1v15(), hashes.SHA256()))
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public, wrong = (one.public_key().public_bytes(*form).decode() for one in (key, other))
    request = post({"content-type": "text/plain"}, token.encode())
    return Case("wix", request, public, wrong, tampered=token.replace(".", ".e", 1).encode())


def _event_grid_entra() -> Case:
    key = rsa.generate_private_key(65537, 2048)
    claims: dict[str, object] = {"aud": "app", "tid": "8d1ab9e8-32bc-4f68-b5cc-b8a5ea0d34b5", "exp": NOW + 3600, "nbf": NOW, "iat": NOW}
    token = _signed_token({"alg": "RS256", "kid": "1"}, claims, lambda text: key.sign(text, padding.PKCS1v15(), hashes.SHA256()))
    numbers = key.public_key().public_numbers()
    jwk = {"kid": "1", "kty": "RSA", "use": "sig", "n": _number(numbers.n, 256), "e": "AQAB"}
    params = {"audience": "app", "tenant_id": str(claims["tid"])}
    document = json.dumps({"keys": [{"kid": "0", "kty": "oct"}, jwk]}).encode()
    return _case("event_grid_entra", {"Authorization": f"Bearer {token}"}, b'[{"id":"1"}]', params=params, document=document)


def _in_query(provider: str, field: str = "secret") -> Case:
    return Case(provider, post({}, b'[{"id":"1"}]', f"{URL}?{field}={quote(SECRET)}"), SECRET, WRONG)


def _basic(provider: str) -> Case:
    credentials = base64.b64encode(f"user:{SECRET}".encode()).decode()
    return _case(provider, {"Authorization": f"Basic {credentials}"}, params={"username": "user"})


def _graph() -> Case:
    body = json.dumps({"value": [{"clientState": SECRET, "changeType": "created"}]})
    return _case("microsoft_graph", {}, body.encode(), tampered=body.replace(SECRET, WRONG).encode())


def _headers() -> dict[str, dict[str, str]]:
    digest = hashlib.sha256(RAW).hexdigest()
    return {
        # https://developers.facebook.com/docs/graph-api/webhooks/getting-started
        "meta": {"X-Hub-Signature-256": "sha256=" + _hex(RAW)},
        "whatsapp": {"X-Hub-Signature-256": "sha256=" + _hex(RAW)},
        # https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks
        "bitbucket": {"X-Hub-Signature": "sha256=" + _hex(RAW), "X-Request-UUID": "1"},
        # https://developer.atlassian.com/server/jira/platform/webhooks
        "jira": {"X-Hub-Signature": "sha256=" + _hex(RAW), "X-Atlassian-Webhook-Identifier": "1"},
        # https://developers.intercom.com/docs/webhooks
        "intercom": {"X-Hub-Signature": "sha1=" + _hex(RAW, "sha1")},
        # https://docs.lemonsqueezy.com/help/webhooks/signing-requests
        "lemon_squeezy": {"X-Signature": _hex(RAW)},
        # https://www.typeform.com/developers/webhooks/secure-your-webhooks
        "typeform": {"Typeform-Signature": "sha256=" + _b64(RAW)},
        # https://www.dropbox.com/developers/reference/webhooks
        "dropbox": {"X-Dropbox-Signature": _hex(RAW)},
        # https://developer.pagerduty.com/docs/verifying-webhook-signatures
        "pagerduty": {"X-PagerDuty-Signature": f"v1={'0' * 64},v1={_hex(RAW)}"},
        # https://vercel.com/docs/webhooks/webhooks-api
        "vercel": {"x-vercel-signature": _hex(RAW, "sha1")},
        # https://docs.sentry.io/organization/integrations/integration-platform/webhooks
        "sentry": {"Sentry-Hook-Signature": _hex(RAW), "Request-ID": "1"},
        # https://developers.asana.com/docs/webhooks-guide
        "asana": {"X-Hook-Signature": _hex(RAW)},
        # https://developers.docusign.com/platform/webhooks/connect/hmac
        "docusign": {"X-DocuSign-Signature-1": base64.b64encode(b"0" * 32).decode(), "X-DocuSign-Signature-2": _b64(RAW)},
        # https://woocommerce.github.io/woocommerce-rest-api-docs/#webhooks
        "woocommerce": {"X-WC-Webhook-Signature": _b64(RAW), "X-WC-Webhook-Delivery-ID": "1"},
        # https://developer.xero.com/documentation/guides/webhooks/configuring-your-server
        "xero": {"x-xero-signature": _b64(RAW)},
        # https://hookdeck.com/docs/authentication
        "hookdeck": {"x-hookdeck-signature": _b64(RAW), "x-hookdeck-eventid": "evt_1"},
        # https://docs.x.com/x-api/webhooks
        "x": {"x-twitter-webhooks-signature": "sha256=" + _b64(RAW)},
        # https://docs.customer.io/api/webhooks
        "customer_io": {"X-CIO-Signature": _hex(f"v0:{NOW}:{BODY}"), "X-CIO-Timestamp": str(NOW)},
        # https://developer.calendly.com/api-docs
        "calendly": {"Calendly-Webhook-Signature": f"t={NOW},v1={_hex(f'{NOW}.{BODY}')}"},
        # https://developer.zendesk.com/documentation/webhooks/verifying
        "zendesk": {"X-Zendesk-Webhook-Signature": _b64(ISO + BODY), "X-Zendesk-Webhook-Signature-Timestamp": ISO},
        # https://dev.twitch.tv/docs/eventsub/handling-webhook-events
        "twitch": {
            "Twitch-Eventsub-Message-Id": "e76c6bd4",
            "Twitch-Eventsub-Message-Timestamp": "2026-01-01T00:00:00.634234626Z",
            "Twitch-Eventsub-Message-Signature": "sha256=" + _hex(f"e76c6bd42026-01-01T00:00:00.634234626Z{BODY}"),
        },
        # https://developer.atlassian.com/cloud/trello/guides/rest-api/webhooks
        "trello": {"X-Trello-Webhook": _b64(BODY + URL, "sha1")},
        # https://docs.netlify.com/deploy/deploy-notifications
        "netlify": {"X-Webhook-Signature": _token({"iss": "netlify", "sha256": digest})},
        # https://developer.vonage.com/en/getting-started/concepts/webhooks
        "vonage": {"Authorization": "Bearer " + _token({"iat": NOW, "jti": "1", "iss": "Vonage", "payload_hash": digest})},
        # https://docs.gitlab.com/user/project/integrations/webhooks
        "gitlab_token": {"X-Gitlab-Token": SECRET, "X-Gitlab-Webhook-UUID": "1"},
        # https://core.telegram.org/bots/api#setwebhook
        "telegram": {"X-Telegram-Bot-Api-Secret-Token": SECRET},
        # https://huggingface.co/docs/hub/webhooks
        "hugging_face": {"X-Webhook-Secret": SECRET},
        # https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md
        "cloudevents": {"Authorization": f"Bearer {SECRET}", "ce-id": "1"},
        # these four send the header they are told to
        **{name: {"X-Webhook-Secret": SECRET} for name in ("assemblyai", "supabase", "bigcommerce", "freshdesk")},
    }


def documented() -> dict[str, Case]:
    """A case of every provider that is marked `documentation`."""
    cases = [_case(provider, headers) for provider, headers in _headers().items()]
    cases += [_standard(provider) for provider in ("brex", "gitlab", "incident_io", "render")]
    cases += [_standard_ed25519(), _mailgun(), _plaid(), _wix(), _event_grid_entra(), _graph()]
    cases += [_in_query("event_grid", "key"), *(_in_query(provider) for provider in ("mailchimp", "gumroad", "salesforce"))]
    cases += [_basic(provider) for provider in ("postmark", "chargebee", "pipedrive")]
    return {case.provider: case for case in cases}
