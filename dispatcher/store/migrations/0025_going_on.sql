-- What goes on at an endpoint that is drained is counted by these: durable tasks that began there, and runs that are bound to it.
create index tasks_pinned on tasks (tenant_id, pin_endpoint) where pin_endpoint is not null;
create index runs_bound on runs (tenant_id, sticky_endpoint) where sticky_endpoint is not null;
