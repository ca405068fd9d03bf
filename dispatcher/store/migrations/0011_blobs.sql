-- Values on their way: what is too large for a message is fetched by its hash. Runs and history hold the values themselves, so nothing
-- depends on a row once it has been fetched; `used_at` is when somebody last said it would be.

create table blobs (
    tenant_id int not null,
    sha256 bytea not null check (octet_length(sha256) = 32),
    size int not null check (size = octet_length(body)),
    body bytea not null,
    used_at timestamptz not null,
    primary key (tenant_id, sha256)
);
alter table blobs alter column body set storage external;
create index blobs_used on blobs (used_at);
