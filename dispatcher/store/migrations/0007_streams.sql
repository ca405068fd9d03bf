-- Streams, logs, search and retention. A stream is what the runs of one event, or one run started otherwise, say while they run. Its
-- entries stand in `chunks`, numbered under the lock of the stream's row, so that whoever reads behind a number misses nothing that
-- commits later. `state` is what the rules of a stream keep of it: engine/streams.py.

create table streams (
    tenant_id  int not null,
    id         text collate "C" not null,
    last       bigint not null default 0,
    state      jsonb not null default '{}',
    created_at timestamptz not null,
    updated_at timestamptz not null,
    primary key (tenant_id, id)
);
create index streams_created on streams (created_at);
alter table streams set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- Beside the pieces attempts put: marks where a run starts, is tried again, has put all it may, and ends. Rows without a position were
-- written before streams could be read, and belong to none.
alter table chunks
    add column stream_id text collate "C",
    add column position  bigint,
    add column kind      text not null default 'data' check (kind in ('data', 'start', 'reset', 'limit', 'end')),
    add column encoding  text;
create index chunks_position on chunks (tenant_id, stream_id, position) where position is not null;

-- Log lines of a tenant, newest first; those worth looking for among many others have an index of their own.
create index logs_written on logs (tenant_id, at, seq);
create index logs_alarming on logs (tenant_id, at, seq) where level in ('warning', 'error', 'critical');

-- What search knows without reading bodies: which words occur in a segment of a few hundred consecutive rows. Kept for the tenants that
-- search (`wanted_at`), made behind the writes. `words` are hashes of word and tenant; a `dense` segment has too many to keep them. Where
-- a run that was not over when its segment was made (`pending`) has ended since, the segment is read as if nothing were known of it.
create table search_indexes (
    tenant_id  int not null,
    kind       text not null check (kind in ('run', 'event')),
    lower_id   text collate "C" not null,
    upper_id   text collate "C" not null,
    complete   boolean not null default false,
    wanted_at  timestamptz not null,
    primary key (tenant_id, kind)
);
create table search_segments (
    tenant_id int not null,
    kind      text not null check (kind in ('run', 'event')),
    lower_id  text collate "C" not null,
    upper_id  text collate "C" not null,
    words     int[] not null,
    pending   text[] not null default '{}',
    dense     boolean not null default false,
    primary key (tenant_id, kind, lower_id)
);
create index search_segments_words on search_segments using gin (words);
create index search_segments_pending on search_segments (tenant_id, kind, lower_id) where pending <> '{}';
create index search_segments_dense on search_segments (tenant_id, kind, lower_id) where dense;

create index run_history_unhappy_workflow on run_history (tenant_id, workflow_id, status, id) where status <> 'succeeded';
create index runs_graph on runs (tenant_id, id) where graph is not null;
create index events_metadata on events using gin (metadata jsonb_path_ops) where metadata is not null;

-- Days a tenant's history is kept, where that is less than the server keeps: what is older is deleted, a few rows at a time.
alter table tenants add column retention_days int check (retention_days > 0);
