-- Addresses that receive webhooks, the secrets they verify with, and what arrived. `auth` describes a generic source; a known
-- sender is named by `source` and described in code. Expressions are texts: their meaning is checked when they are saved.

-- Raised with every change of a tenant's webhooks, apart from its registry's version: deliveries on their way in are matched
-- against the registry, and what they need not be matched against again shall not hold them up. The row is the lock of both.
alter table tenants add column webhooks_version bigint not null default 0;

create table webhooks (
    tenant_id      int not null references tenants,
    id             text collate "C" not null,
    name           text not null,
    source         text not null,
    auth           jsonb,
    params         jsonb not null,
    event_key      text not null,
    scope          text,
    filter         text,
    static_payload jsonb,
    response       jsonb,
    body_bytes     int not null check (body_bytes > 0),
    rate           double precision not null check (rate > 0),
    burst          int not null check (burst > 0),
    repeat_ms      bigint not null check (repeat_ms >= 0),
    secrets_made   int not null default 0,  -- so that the number of a secret is never another's
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    primary key (tenant_id, id),
    unique (tenant_id, name)
);

-- Any that is not past its `not_after` verifies. `captured` is one the sender told us itself, shown until it has been used.
create table webhook_secrets (
    tenant_id    int not null,
    webhook_id   text collate "C" not null,
    number       int not null,
    sealed       bytea not null,
    captured     boolean not null,
    created_at   timestamptz not null,
    not_after    timestamptz,
    last_used_at timestamptz,
    primary key (tenant_id, webhook_id, number),
    foreign key (tenant_id, webhook_id) references webhooks on delete cascade
);

-- One row per request worth remembering. `body` is as it came; only its beginning for a rejected one, nothing for a duplicate and
-- for a replay, which name in `first_id` the delivery that has it, and nothing where the data of its event is the same, byte for byte.
-- `filtering` is stored and answered, and waits for its filter. What must happen once is claimed in `idempotency`.
create table webhook_deliveries (
    tenant_id     int not null,
    webhook_id    text collate "C" not null,
    id            text collate "C" not null,
    status        text not null check (status in ('accepted', 'duplicate', 'unrouted', 'rejected', 'handshake', 'filtering')),
    reason        text,
    detail        text,
    method        text not null,
    query         text,
    headers       jsonb not null,
    body          bytea,
    body_bytes    bigint not null,
    body_sha256   bytea,
    sender_id     text,
    first_id      text collate "C",
    event_id      text collate "C",
    event_key     text,
    scope         text,
    secret_number int,
    received_at   timestamptz not null,
    primary key (tenant_id, id, received_at)
) partition by range (received_at);
create table webhook_deliveries_default partition of webhook_deliveries default;
create index webhook_deliveries_webhook on webhook_deliveries (tenant_id, webhook_id, id);
create index webhook_deliveries_unrouted on webhook_deliveries (tenant_id, webhook_id, id) where status = 'unrouted';
create index webhook_deliveries_filtering on webhook_deliveries (received_at) where status = 'filtering';
