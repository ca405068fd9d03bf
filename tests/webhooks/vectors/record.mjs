// Writes recorded.json: requests that libraries published by the senders for Node made or accepted. Not run by the tests. To record anew:
//   npm install --ignore-scripts sns-validator@0.3.5 @octokit/webhooks-methods@6 @line/bot-sdk@11 @linear/sdk@98 @notionhq/client@5.26.0
//     @zoom/rivet@0.4.0 @shopify/shopify-api@13
//   openssl req -x509 -newkey rsa:2048 -nodes -days 7300 -subj /CN=sns.amazonaws.com -keyout key.pem -out certificate.pem
//   node record.mjs > recorded.json
import { strict as assert } from "node:assert";
import { createHmac, createSign } from "node:crypto";
import { EventEmitter } from "node:events";
import { readFileSync } from "node:fs";
import https from "node:https";
import { createRequire } from "node:module";

import { sign, verify } from "@octokit/webhooks-methods";
import { LinearWebhookClient } from "@linear/sdk/webhooks";
import { AwsLambdaReceiver } from "@zoom/rivet/users";
import "@shopify/shopify-api/adapters/node";
import { shopifyApi, ApiVersion } from "@shopify/shopify-api";

const require = createRequire(import.meta.url);
const { validateSignature } = require("@line/bot-sdk");
const notion = require("@notionhq/client");
const SnsValidator = require("sns-validator");

console.debug = () => {};
const url = "https://hooks.example.com/hooks/default/source";
const secret = "a secret of the sender";
const seconds = Math.floor(Date.now() / 1000);
const recorded = {};

function record(name, provider, by, headers, body, more = {}) {
  recorded[name] = { provider, by, url, headers, body, secret, now: seconds, params: {}, document: "", tampered: "", ...more };
}

const text = '{"id":"evt_1","type":"page.created","name":"café ☕"}';

const github = await sign(secret, text);
assert(await verify(secret, text, github));
record("github", "github", "@octokit/webhooks-methods 6.0.0", { "x-hub-signature-256": github, "x-github-delivery": "72d3162e" }, text);

const line = createHmac("sha256", secret).update('{"events":[]}').digest("base64");
assert(validateSignature('{"events":[]}', secret, line));
record("line", "line", "@line/bot-sdk 11.0.0", { "x-line-signature": line }, '{"events":[]}');

const linearBody = JSON.stringify({ action: "create", type: "Issue", webhookTimestamp: Date.now() });
const linear = createHmac("sha256", secret).update(linearBody).digest("hex");
assert(new LinearWebhookClient(secret).verify(Buffer.from(linearBody), linear));
record("linear", "linear", "@linear/sdk 98.0.0", { "linear-signature": linear, "linear-delivery": "234d1a4e" }, linearBody);

const notionSignature = await notion.signWebhookPayload({ body: text, verificationToken: secret });
assert(await notion.verifyWebhookSignature({ body: text, signature: notionSignature, verificationToken: secret }));
record("notion", "notion", "@notionhq/client 5.26.0", { "x-notion-signature": notionSignature }, text);

const shop = shopifyApi({ apiKey: "key", apiSecretKey: secret, hostName: "example.com", apiVersion: ApiVersion.October25 ?? "2025-10", isEmbeddedApp: false, logger: { log: () => {} } });
for (const prefix of ["x-shopify", "shopify"]) {
  const headers = {
    [`${prefix}-hmac-sha256`]: createHmac("sha256", secret).update(text).digest("base64"),
    [`${prefix}-topic`]: "orders/create",
    [prefix === "shopify" ? "shopify-shop-domain" : "x-shopify-shop-domain"]: "shop.myshopify.com",
    [`${prefix}-api-version`]: "2025-10",
    [`${prefix}-webhook-id`]: "b54557e4",
    [`${prefix}-event-id`]: "98880550",
    ...(prefix === "shopify" ? { "shopify-handle": "h", "shopify-action": "create", "shopify-resource-id": "1", "shopify-triggered-at": "2026-01-01T00:00:00Z" } : {}),
  };
  const answer = await shop.webhooks.validate({ rawBody: text, rawRequest: { method: "POST", url: "/", headers }, rawResponse: {} });
  assert(answer.valid, JSON.stringify(answer));
  record(prefix.replace("-", "_"), "shopify", "@shopify/shopify-api 13.1.0", headers, text);
}

const key = readFileSync("key.pem");
const certificate = readFileSync("certificate.pem", "utf8");
https.get = (_, answer) => {
  const response = new EventEmitter();
  response.statusCode = 200;
  queueMicrotask(() => { response.emit("data", certificate); response.emit("end"); });
  answer(response);
  return new EventEmitter();
};
const topic = "arn:aws:sns:us-east-1:123456789012:MyTopic";
const certificateUrl = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-010a507c1833636cd94bdb98bd93083a.pem";
async function sns(name, version, message, names) {
  const signer = createSign(version === "1" ? "RSA-SHA1" : "RSA-SHA256");
  for (const one of names) if (one in message) signer.update(`${one}\n${message[one]}\n`);
  const whole = { ...message, SignatureVersion: version, Signature: signer.sign(key, "base64"), SigningCertURL: certificateUrl };
  await new Promise((done, failed) => new SnsValidator().validate({ ...whole }, (error) => (error ? failed(error) : done())));
  const body = JSON.stringify(whole);
  const tampered = body.replace("12:MyTopic", "12:Another").replace("Hello", "Goodbye");
  const headers = { "content-type": "text/plain; charset=UTF-8" };
  record(name, "sns", "sns-validator 0.3.5", headers, body, { params: { topic_arn: topic }, document: certificate, tampered, secret: "" });
}
const stamp = new Date(seconds * 1000).toISOString();
const notification = { Type: "Notification", MessageId: "22b80b92", TopicArn: topic, Subject: "Café", Message: "Hello\nworld!", Timestamp: stamp };
const signedNames = ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"];
await sns("sns_1", "1", notification, signedNames);
await sns("sns_2", "2", notification, signedNames);
const { Subject, ...withoutSubject } = notification;
await sns("sns_without_subject", "2", withoutSubject, signedNames);
const confirm = `https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=${topic}&Token=2336412f37`;
await sns("sns_confirmation", "2", { Type: "SubscriptionConfirmation", MessageId: "165545c9", TopicArn: topic, Token: "2336412f37",
  Message: "Hello", SubscribeURL: confirm, Timestamp: stamp }, ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]);

for (const [name, payload] of [
  ["zoom", { event: "meeting.started", payload: { object: { id: "1" } } }],
  ["zoom_url_validation", { event: "endpoint.url_validation", payload: { plainToken: "qgg8vlvZRS6UYooatFL8Aw" } }],
]) {
  const body = JSON.stringify(payload);
  const headers = { "x-zm-request-timestamp": String(seconds), "x-zm-signature": `v0=${createHmac("sha256", secret).update(`v0:${seconds}:${body}`).digest("hex")}` };
  const receiver = new AwsLambdaReceiver({ webhooksSecretToken: secret });
  receiver.init({ eventEmitter: { emit: async () => true } });
  const answer = await receiver.start()({ body, headers, isBase64Encoded: false }, {});
  assert.equal(answer.statusCode, 200, answer.body);
  record(name, "zoom", "@zoom/rivet 0.4.0", headers, body, { answer: JSON.parse(answer.body) });
}

console.log(JSON.stringify(recorded, null, 1));
