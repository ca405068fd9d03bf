-- Workflows of which what waits is to have its schedule timeout again: they are about to be resumed, or the only endpoint that takes their
-- tasks came back, for which only what was late at `late_at` counts. A tenant's tasks, and then its runs, are gone through a page at a time, by whichever
-- dispatcher looks next: what comes behind (`run_id`, `node`) is still to be seen.
create table renewals (
    tenant_id   int not null,
    workflow_id int not null,
    late_at     timestamptz,
    began_at    timestamptz not null,
    looked_at   timestamptz not null,
    of_tasks    boolean not null default true,
    run_id      text collate "C" not null default '',
    node        smallint not null default -1,
    primary key (tenant_id, workflow_id),
    foreign key (tenant_id, workflow_id) references workflows on delete cascade
);
