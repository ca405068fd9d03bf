"""Requests signed by, or accepted by, the libraries the senders publish. Each function returns a case the library has agreed to."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import importlib
import json
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from tests.webhooks.cases import NOW, URL, Case, post

BODY = '{"id":"evt_1","type":"invoice.paid","event":"paid","amount":1999,"name":"café"}'
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_WHSEC = "whsec_" + base64.b64encode(b"another secret of 24 byt").decode()


def _library(name: str) -> Any:
    """Old libraries warn when they are imported; what they do is what counts here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _agrees(answer: object) -> None:
    assert answer, "the sender's own library refuses this request"


def _standard_case(provider: str, accept: Callable[[str, dict[str, str]], object], prefix: str = "webhook") -> Case:
    now = int(time.time())
    signer = _library("standardwebhooks").Webhook(WHSEC)
    stamp = dt.datetime.fromtimestamp(now, dt.UTC)
    names = {"id": "msg_1", "timestamp": str(now), "signature": signer.sign("msg_1", stamp, BODY)}
    headers = {f"{prefix}-{name}": value for name, value in names.items()}
    accept(BODY, headers)
    return Case(provider, post(headers, BODY.encode()), WHSEC, OTHER_WHSEC, now)


def standard_webhooks() -> Case:
    return _standard_case("standard_webhooks", lambda body, headers: _library("standardwebhooks").Webhook(WHSEC).verify(body, headers))


def svix() -> Case:
    return _standard_case("svix", lambda body, headers: _library("svix").Webhook(WHSEC).verify(body, headers), "svix")


def clerk() -> Case:
    return _standard_case("clerk", lambda body, headers: _library("svix").Webhook(WHSEC).verify(body, headers), "svix")


def openai() -> Case:
    client = _library("openai").OpenAI(api_key="unused", webhook_secret=WHSEC)
    return _standard_case("openai", client.webhooks.verify_signature)


def anthropic() -> Case:
    client = _library("anthropic").Anthropic(api_key="unused", webhook_key=WHSEC)
    return _standard_case("anthropic", lambda body, headers: client.beta.webhooks.unwrap(body, headers=headers))


def replicate() -> Case:
    library = _library("replicate.webhook")
    return _standard_case(
        "replicate",
        lambda body, headers: library.Webhooks.validate(headers=headers, body=body, secret=library.WebhookSigningSecret(key=WHSEC)),
    )


def resend() -> Case:
    def accept(body: str, headers: dict[str, str]) -> None:
        names = {name.removeprefix("svix-"): value for name, value in headers.items()}
        _library("resend").Webhooks.verify({"payload": body, "headers": names, "webhook_secret": WHSEC})

    return _standard_case("resend", accept, "svix")


def github() -> Case:
    signature = "sha256=" + hmac.new(b"secret", BODY.encode(), hashlib.sha256).hexdigest()
    _library("gidgethub.sansio").validate_event(BODY.encode(), signature=signature, secret="secret")
    headers = {"X-Hub-Signature-256": signature, "X-GitHub-Delivery": "72d3162e", "X-GitHub-Event": "push"}
    return Case("github", post(headers, BODY.encode()), "secret", "other")


def stripe() -> Case:
    library, now = _library("stripe").WebhookSignature, int(time.time())
    header = library.generate_signature_header(BODY, WHSEC, now)
    _agrees(library.verify_header(BODY, header, WHSEC, 300))
    return Case("stripe", post({"Stripe-Signature": header}, BODY.encode()), WHSEC, OTHER_WHSEC, now)


def slack() -> Case:
    verifier, now = _library("slack_sdk.signature").SignatureVerifier("secret"), str(int(time.time()))
    headers = {"X-Slack-Request-Timestamp": now, "X-Slack-Signature": verifier.generate_signature(timestamp=now, body=BODY)}
    _agrees(verifier.is_valid_request(BODY, headers))
    return Case("slack", post(headers, BODY.encode()), "secret", "other", int(now))


def _twilio(provider: str, algorithm: str) -> Case:
    validator = _library("twilio.request_validator").RequestValidator("token")
    fields = {"MessageSid": "SM1", "Body": "héllo & goodbye", "From": "+14158675309", "Empty": ""}
    signature = validator.compute_signature(URL, fields, algorithm)
    _agrees(validator.validate(URL, fields, signature, algorithm))
    headers = {"X-Twilio-Signature": signature, "Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    tampered = urlencode({**fields, "Body": "changed"}).encode()
    return Case(provider, post(headers, urlencode(fields).encode()), "token", "other", tampered=tampered)


def twilio() -> Case:
    return _twilio("twilio", "HMAC_SHA1")


def twilio_shared_key() -> Case:
    return _twilio("twilio_shared_key", "HMAC_SHA256")


def twilio_json() -> Case:
    validator = _library("twilio.request_validator").RequestValidator("token")
    url = f"{URL}?bodySHA256={hashlib.sha256(BODY.encode()).hexdigest()}"
    signature = validator.compute_signature(url, {})
    _agrees(validator.validate(url, BODY, signature))
    headers = {"X-Twilio-Signature": signature, "Content-Type": "application/json"}
    return Case("twilio", post(headers, BODY.encode(), url), "token", "other")


def twilio_with_port() -> Case:
    validator = _library("twilio.request_validator").RequestValidator("token")
    signature = validator.compute_signature(URL.replace("example.com", "example.com:443"), {"A": "1"})
    _agrees(validator.validate(URL, {"A": "1"}, signature))
    headers = {"X-Twilio-Signature": signature, "Content-Type": "application/x-www-form-urlencoded"}
    return Case("twilio", post(headers, b"A=1"), "token", "other", tampered=b"A=2")


def _spki(key: ec.EllipticCurvePrivateKey) -> str:
    raw = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(raw).decode()


def sendgrid() -> Case:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    body = '[{"event":"delivered","sg_event_id":"1"}]\r\n'
    signature = base64.b64encode(key.sign(f"{NOW}{body}".encode(), ec.ECDSA(hashes.SHA256()))).decode()
    _agrees(_library("sendgrid.helpers.eventwebhook").EventWebhook(_spki(key)).verify_signature(body, signature, str(NOW)))
    headers = {"X-Twilio-Email-Event-Webhook-Signature": signature, "X-Twilio-Email-Event-Webhook-Timestamp": str(NOW)}
    return Case("sendgrid", post(headers, body.encode()), _spki(key), _spki(other))


def discord() -> Case:
    key, other = _library("nacl.signing").SigningKey.generate(), _library("nacl.signing").SigningKey.generate()
    signature = key.sign(f"{NOW}{BODY}".encode()).signature.hex()
    public = bytes(key.verify_key).hex()
    _agrees(_library("discord_interactions").verify_key(BODY.encode(), signature, str(NOW), public))
    headers = {"X-Signature-Ed25519": signature, "X-Signature-Timestamp": str(NOW)}
    return Case("discord", post(headers, BODY.encode()), public, bytes(other.verify_key).hex())


def telnyx() -> Case:
    key, other, now = _library("nacl.signing").SigningKey.generate(), _library("nacl.signing").SigningKey.generate(), str(int(time.time()))
    public = base64.b64encode(bytes(key.verify_key)).decode()
    signature = base64.b64encode(key.sign(f"{now}|{BODY}".encode()).signature).decode()
    headers = {"telnyx-signature-ed25519": signature, "telnyx-timestamp": now}
    _library("telnyx.lib.webhook_verification").verify_webhook_signature(BODY, headers, public)
    return Case("telnyx", post(headers, BODY.encode()), public, base64.b64encode(bytes(other.verify_key)).decode(), int(now))


def hubspot() -> Case:
    library, now = _library("hubspot.utils.signature").Signature, str(int(time.time() * 1000))
    signature = library.get_signature("secret", BODY, "v3", URL, "POST", now)
    _agrees(library.is_valid(signature, "secret", BODY, URL, "POST", "v3", now))
    headers = {"X-HubSpot-Signature-v3": signature, "X-HubSpot-Request-Timestamp": now}
    return Case("hubspot", post(headers, BODY.encode()), "secret", "other", int(now) / 1000)


def square() -> Case:
    signature = base64.b64encode(hmac.digest(b"secret", (URL + BODY).encode(), "sha256")).decode()
    _agrees(
        _library("square.utils.webhooks_helper").verify_signature(
            request_body=BODY, signature_header=signature, signature_key="secret", notification_url=URL
        )
    )
    return Case("square", post({"x-square-hmacsha256-signature": signature}, BODY.encode()), "secret", "other")


def workos() -> Case:
    now = int(time.time() * 1000)
    header = f"t={now}, v1={hmac.digest(b'secret', f'{now}.{BODY}'.encode(), 'sha256').hex()}"
    _library("workos.webhooks._verification").verify_header(event_body=BODY.encode(), event_signature=header, secret="secret")
    return Case("workos", post({"WorkOS-Signature": header}, BODY.encode()), "secret", "other", now / 1000)


def paddle() -> Case:
    now, library = int(time.time()), _library("paddle_billing.Notifications.Verifier")
    signer = _library("paddle_billing.Notifications.PaddleSignature").PaddleSignature
    header = f"ts={now};h1={signer.calculate_hmac('secret', f'{now}:{BODY}'.encode()).hexdigest()}"
    request = type("Received", (), {"headers": {"Paddle-Signature": header}, "body": BODY.encode()})()
    _agrees(library.Verifier(60).verify(request, library.Secret("secret")))
    return Case("paddle", post({"Paddle-Signature": header}, BODY.encode()), "secret", "other", now)


def razorpay() -> Case:
    signature = hmac.digest(b"secret", BODY.encode(), "sha256").hex()
    _agrees(_library("razorpay.utility.utility").Utility().verify_webhook_signature(BODY, signature, "secret"))
    return Case("razorpay", post({"X-Razorpay-Signature": signature}, BODY.encode()), "secret", "other")


def gocardless() -> Case:
    body = '{"events":[{"id":"EV1","resource_type":"payments","action":"paid"}],"meta":{"webhook_id":"WB1"}}'
    signature = hmac.digest(b"secret", body.encode(), "sha256").hex()
    _agrees(_library("gocardless_pro.webhooks").parse(body, "secret", signature))
    return Case("gocardless", post({"Webhook-Signature": signature}, body.encode()), "secret", "other")


def coinbase_commerce() -> Case:
    body = '{"id":"1","event":{"id":"2","type":"charge:confirmed","resource":"event","data":{}}}'
    signature = hmac.digest(b"secret", body.encode(), "sha256").hex()
    _agrees(_library("coinbase_commerce.webhook").Webhook.construct_event(body, signature, "secret"))
    return Case("coinbase_commerce", post({"X-CC-Webhook-Signature": signature}, body.encode()), "secret", "other")


def box() -> Case:
    now = int(time.time())
    stamp = dt.datetime.fromtimestamp(now, dt.UTC).isoformat()
    headers = {"box-delivery-timestamp": stamp, "box-delivery-id": "f96bb54b"}
    headers |= {"box-signature-version": "1", "box-signature-algorithm": "HmacSHA256"}
    sign = _library("box_sdk_gen.internal.utils").compute_webhook_signature
    headers["box-signature-primary"] = sign(BODY, headers, "gone")
    headers["box-signature-secondary"] = sign(BODY, headers, "secret")
    validate = _library("box_sdk_gen.managers.webhooks").WebhooksManager.validate_message
    _agrees(validate(BODY, headers, "other", secondary_key="secret"))
    return Case("box", post(headers, BODY.encode()), "secret", "other", now)


def adyen() -> Case:
    key, other = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056", "00" * 32
    item: dict[str, Any] = {
        "pspReference": "7914073381342284",
        "originalReference": "",
        "merchantAccountCode": "TestMerchant",
        "merchantReference": "TestPayment-1407325143704",
        "amount": {"value": 1130, "currency": "EUR"},
        "eventCode": "AUTHORISATION",
        "success": "true",
    }
    util = _library("Adyen.util")
    item["additionalData"] = {"hmacSignature": util.generate_notification_sig(item, key).decode()}
    body = {"live": "false", "notificationItems": [{"NotificationRequestItem": item}]}
    _agrees(util.is_valid_hmac_notification(body, key))
    raw = json.dumps(body).encode()
    return Case("adyen", post({}, raw), key, other, tampered=raw.replace(b"1130", b"9130"))


def livekit() -> Case:
    secret, body = "a secret of at least thirty-two bytes", '{"event":"room_started","id":"EV_1"}'
    token = _library("livekit.api").AccessToken("key", secret)
    token.with_sha256(base64.b64encode(hashlib.sha256(body.encode()).digest()).decode())
    text = token.to_jwt()
    _agrees(_library("livekit.api").WebhookReceiver(_library("livekit.api").TokenVerifier("key", secret)).receive(body, text))
    return Case("livekit", post({"Authorization": text}, body.encode()), secret, secret[::-1], time.time())


def bird() -> Case:
    now, secret = int(time.time()), "a secret of at least thirty-two bytes"
    claims = {
        "iss": "MessageBird",
        "nbf": now,
        "exp": now + 60,
        "jti": "1",
        "url_hash": hashlib.sha256(URL.encode()).hexdigest(),
        "payload_hash": hashlib.sha256(BODY.encode()).hexdigest(),
    }
    token = _library("jwt").encode(claims, secret, algorithm="HS256")
    _agrees(_library("messagebird.request_validator").RequestValidator(secret).validate_signature(token, URL, BODY.encode()))
    return Case("bird", post({"MessageBird-Signature-JWT": token}, BODY.encode()), secret, secret[::-1], now)


def vonage() -> Case:
    now, secret = int(time.time()), "a secret of at least thirty-two bytes"
    claims = {"iat": now, "jti": "1", "iss": "Vonage", "payload_hash": hashlib.sha256(BODY.encode()).hexdigest()}
    token = _library("jwt").encode(claims, secret, algorithm="HS256")
    _agrees(_library("vonage_jwt").verify_signature(token, secret))
    return Case("vonage", post({"Authorization": f"Bearer {token}"}, BODY.encode()), secret, secret[::-1], now)


def certificate(key: rsa.RSAPrivateKey, name: str, start: float = NOW - 86_400) -> bytes:
    """A self-signed certificate, PEM, valid for 30 days from `start`."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = dt.datetime.fromtimestamp(start, dt.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(begin).not_valid_after(begin + dt.timedelta(days=30))
    signed = builder.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def paypal() -> Case:
    key = rsa.generate_private_key(65537, 2048)
    stamp = dt.datetime.fromtimestamp(NOW, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    signed = _library("paypalrestsdk.notifications").WebhookEvent._get_expected_sig("tid-1", stamp, "WH-1", BODY)
    headers = {
        "PAYPAL-TRANSMISSION-ID": "tid-1",
        "PAYPAL-TRANSMISSION-TIME": stamp,
        "PAYPAL-CERT-URL": "https://api.paypal.com/v1/notifications/certs/CERT-360caa42-fca2a594-1d93a270",
        "PAYPAL-TRANSMISSION-SIG": base64.b64encode(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())).decode(),
    }
    document = certificate(key, "messageverificationcerts.paypal.com")
    return Case("paypal", post(headers, BODY.encode()), "", "", params={"webhook_id": "WH-1"}, document=document)


logging.getLogger("paddle_billing").setLevel(logging.ERROR)

ORACLES: dict[str, Callable[[], Case]] = {
    function.__name__: function
    for function in (
        *(standard_webhooks, svix, clerk, openai, anthropic, replicate, resend),
        *(github, stripe, slack, twilio, twilio_shared_key, twilio_json, twilio_with_port, sendgrid, discord, telnyx, hubspot, square),
        *(workos, paddle, razorpay, gocardless, coinbase_commerce, box, adyen, livekit, bird, vonage, paypal),
    )
}
