-- What gates count, changed as a set: one statement for all gates that rows of a statement touch, where there was one for each.
--
-- The gates to be changed go through arrays, because a statement that reads them from an array is planned the same whenever it is planned:
-- through the index of gates, one after the other in the order of their ids.

-- Rows that come in. A gate that is not there is made from the `flow` of a row that comes to it, and counted then. Who comes in holding may
-- only do so where there is room and nobody waits: otherwise nothing is written, and the gates are named.
create or replace function gates_inserted() returns trigger language plpgsql as $$
declare
    tenants   int[];
    ids       uuid[];
    holding   int[];
    coming    int[];
    declared  int[];
    done      int[] := '{}';
    done_now  int[];
    full_ids  text[] := '{}';
    full_now  text[];
begin
    if not exists (select from new_rows where gates is not null) then
        return null;
    end if;
    select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming), array_agg(c.declared)
    into tenants, ids, holding, coming, declared
    from (
        select tenant_id, id, sum(a.holding) as holding, sum(a.coming) as coming, min(a.declared) as declared
        from (
            select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming, unnest(gate_limits[1:gates_held]) as declared
            from new_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, 1, gate_limits[gates_held + 1] from new_rows where gate_wait is not null
        ) a
        group by tenant_id, id
        order by tenant_id, id
    ) c;
    if ids is null then
        return null;
    end if;
    for try in 1..3 loop
        with changed as (
            update gates g
            set held = g.held + c.holding, waiting = g.waiting + c.coming, most = coalesce(c.declared, g.most),
                arrivals = g.arrivals + c.coming, idle_since = null,
                wake = g.wake or (g.waiting + c.coming > 0
                                  and ((c.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                       or g.held + c.holding < case when g.name is null then coalesce(c.declared, g.most)
                                                               else gate_limit(g) end))
            from unnest(tenants, ids, holding, coming, declared) with ordinality as c (tenant_id, id, holding, coming, declared, place)
            where g.tenant_id = c.tenant_id and g.id = c.id and (try = 1 or c.place <> all (done))
            returning c.place, g.id, c.holding > 0 and (g.waiting > c.coming
                                                        or g.held > case when g.name is null then g.most else gate_limit(g) end) as crowded
        )
        select array_agg(place::int), array_agg(id::text) filter (where crowded) into done_now, full_now from changed;
        done := done || done_now;
        full_ids := full_ids || full_now;
        exit when cardinality(done) = cardinality(ids);
        insert into gates (tenant_id, id, rule, name, key, strategy, most)
        select distinct on (n.tenant_id, (v->>0)::uuid) n.tenant_id, (v->>0)::uuid, v->>1, v->>2, v->>3, v->>4, (v->>5)::int
        from new_rows n cross join lateral jsonb_array_elements(n.flow->'gates') as f (v)
        where n.gates_held > 0 or n.gate_wait is not null
        order by n.tenant_id, (v->>0)::uuid
        on conflict (tenant_id, id) do nothing;
    end loop;
    if cardinality(full_ids) > 0 then
        raise exception 'no room in a gate' using errcode = 'DG001', detail = array_to_string(full_ids, ',');
    end if;
    return null;
end
$$;

create or replace function gates_updated() returns trigger language plpgsql as $$
declare
    tenants  int[];
    ids      uuid[];
    holding  int[];
    coming   int[];
    done     int[] := '{}';
    done_now int[];
begin
    if not exists (select from new_rows where gates is not null) then
        return null;
    end if;
    select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming)
    into tenants, ids, holding, coming
    from (
        select tenant_id, id, sum(a.holding) as holding, sum(a.coming) as coming
        from (
            select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming from new_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, 1 from new_rows where gate_wait is not null
            union all select tenant_id, unnest(gates[1:gates_held]), -1, 0 from old_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, -1 from old_rows where gate_wait is not null
        ) a
        group by tenant_id, id having sum(a.holding) <> 0 or sum(a.coming) <> 0
        order by tenant_id, id
    ) c;
    if ids is null then
        return null;
    end if;
    for try in 1..3 loop
        with changed as (
            update gates g
            set held = greatest(g.held + c.holding, 0), waiting = greatest(g.waiting + c.coming, 0),
                arrivals = g.arrivals + greatest(c.coming, 0), idle_since = null,
                wake = g.wake or (g.waiting + c.coming > 0
                                  and ((c.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                       or g.held + c.holding < case when g.name is null then g.most else gate_limit(g) end))
            from unnest(tenants, ids, holding, coming) with ordinality as c (tenant_id, id, holding, coming, place)
            where g.tenant_id = c.tenant_id and g.id = c.id and (try = 1 or c.place <> all (done))
            returning c.place
        )
        select array_agg(place::int) into done_now from changed;
        done := done || done_now;
        exit when cardinality(done) = cardinality(ids);
        insert into gates (tenant_id, id, rule, name, key, strategy, most)
        select distinct on (n.tenant_id, (v->>0)::uuid) n.tenant_id, (v->>0)::uuid, v->>1, v->>2, v->>3, v->>4, (v->>5)::int
        from new_rows n cross join lateral jsonb_array_elements(n.flow->'gates') as f (v)
        where n.gates_held > 0 or n.gate_wait is not null
        order by n.tenant_id, (v->>0)::uuid
        on conflict (tenant_id, id) do nothing;
    end loop;
    return null;
end
$$;

create or replace function gates_deleted() returns trigger language plpgsql as $$
declare
    tenants int[];
    ids     uuid[];
    holding int[];
    coming  int[];
begin
    if not exists (select from old_rows where gates is not null) then
        return null;
    end if;
    select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming)
    into tenants, ids, holding, coming
    from (
        select tenant_id, id, sum(a.holding) as holding, sum(a.coming) as coming
        from (
            select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming from old_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, 1 from old_rows where gate_wait is not null
        ) a
        group by tenant_id, id
        order by tenant_id, id
    ) c;
    update gates g
    set held = greatest(g.held - c.holding, 0), waiting = greatest(g.waiting - c.coming, 0),
        wake = g.wake or (g.waiting > c.coming
                          and g.held - c.holding < case when g.name is null then g.most else gate_limit(g) end)
    from unnest(tenants, ids, holding, coming) as c (tenant_id, id, holding, coming)
    where g.tenant_id = c.tenant_id and g.id = c.id;
    return null;
end
$$;
