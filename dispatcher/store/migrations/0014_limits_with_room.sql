-- What limits cost where there is room.

-- Whether this trigger has anything to say is asked in few words: they are read again for every statement that writes tasks. An attempt that
-- is under way belongs to a dispatcher; of those that do not (detached, waiting), the trigger itself tells which it lets be.
create or replace trigger tasks_gated before insert or update on tasks for each row
    when (new.gates is not null and new.dispatcher_id is null) execute function tasks_gated();

-- A gate that is not there is made with what it counts, and one that another has made meanwhile is changed in the next round. Whether a gate
-- is there is asked for each row by itself: that way the question has one plan, through the index of gates.
create or replace function gates_inserted() returns trigger language plpgsql as $$
declare
    tenants  int[];
    ids      uuid[];
    holding  int[];
    coming   int[];
    declared int[];
    done     int[];
    made     uuid[];
    made_for int[];
    crowded  text[];
    full_ids text[] := '{}';
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
    for try in 1..3 loop
        exit when ids is null;
        with changed as (
            update gates g
            set held = g.held + c.holding, waiting = g.waiting + c.coming, most = coalesce(c.declared, g.most),
                arrivals = g.arrivals + c.coming, idle_since = null,
                wake = g.wake or (g.waiting + c.coming > 0
                                  and ((c.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                       or g.held + c.holding < case when g.name is null then coalesce(c.declared, g.most)
                                                               else gate_limit(g) end))
            from unnest(tenants, ids, holding, coming, declared) with ordinality as c (tenant_id, id, holding, coming, declared, place)
            where g.tenant_id = c.tenant_id and g.id = c.id
            returning c.place, g.id, c.holding > 0 and (g.waiting > c.coming
                                                        or g.held > case when g.name is null then g.most else gate_limit(g) end) as crowded
        )
        select array_agg(place::int), array_agg(id::text) filter (where changed.crowded) into done, crowded from changed;
        full_ids := full_ids || crowded;
        exit when cardinality(done) = cardinality(ids);
        select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming), array_agg(c.declared)
        into tenants, ids, holding, coming, declared
        from unnest(tenants, ids, holding, coming, declared) with ordinality as c (tenant_id, id, holding, coming, declared, place)
        where done is null or c.place not in (select unnest(done));
        with new_gates as (
            insert into gates (tenant_id, id, rule, name, key, strategy, most, held, waiting, arrivals, wake)
            select m.tenant_id, m.id, m.v->>1, m.v->>2, m.v->>3, m.v->>4, (m.v->>5)::int, m.holding, m.coming, m.coming, m.coming > 0
            from (
                select n.tenant_id, n.gates[f.i] as id, (array_agg(f.v))[1] as v,
                       sum((f.i <= n.gates_held)::int) as holding, sum((f.i > n.gates_held)::int) as coming
                from new_rows n cross join lateral jsonb_array_elements(n.flow->'gates') with ordinality as f (v, i)
                where (f.i <= n.gates_held or (f.i = n.gates_held + 1 and n.gate_wait is not null))
                  and (select g.held from gates g where g.tenant_id = n.tenant_id and g.id = n.gates[f.i]) is null
                group by n.tenant_id, n.gates[f.i]
                order by n.tenant_id, n.gates[f.i]
            ) m
            on conflict (tenant_id, id) do nothing
            returning tenant_id, id, held > case when name is null then most else gate_limit(gates) end as crowded
        )
        select array_agg(tenant_id), array_agg(id), array_agg(id::text) filter (where new_gates.crowded) into made_for, made, crowded
        from new_gates;
        full_ids := full_ids || crowded;
        select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming), array_agg(c.declared)
        into tenants, ids, holding, coming, declared
        from unnest(tenants, ids, holding, coming, declared) as c (tenant_id, id, holding, coming, declared)
        where made is null or (c.tenant_id, c.id) not in (select * from unnest(made_for, made));
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
    done     int[];
    made     uuid[];
    made_for int[];
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
    for try in 1..3 loop
        exit when ids is null;
        with changed as (
            update gates g
            set held = greatest(g.held + c.holding, 0), waiting = greatest(g.waiting + c.coming, 0),
                arrivals = g.arrivals + greatest(c.coming, 0), idle_since = null,
                wake = g.wake or (g.waiting + c.coming > 0
                                  and ((c.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                       or g.held + c.holding < case when g.name is null then g.most else gate_limit(g) end))
            from unnest(tenants, ids, holding, coming) with ordinality as c (tenant_id, id, holding, coming, place)
            where g.tenant_id = c.tenant_id and g.id = c.id
            returning c.place
        )
        select array_agg(place::int) into done from changed;
        exit when cardinality(done) = cardinality(ids);
        select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming)
        into tenants, ids, holding, coming
        from unnest(tenants, ids, holding, coming) with ordinality as c (tenant_id, id, holding, coming, place)
        where done is null or c.place not in (select unnest(done));
        with new_gates as (
            insert into gates (tenant_id, id, rule, name, key, strategy, most, held, waiting, arrivals, wake)
            select m.tenant_id, m.id, m.v->>1, m.v->>2, m.v->>3, m.v->>4, (m.v->>5)::int, m.holding, m.coming, m.coming, m.coming > 0
            from (
                select n.tenant_id, n.gates[f.i] as id, (array_agg(f.v))[1] as v,
                       sum((f.i <= n.gates_held)::int) as holding, sum((f.i > n.gates_held)::int) as coming
                from new_rows n cross join lateral jsonb_array_elements(n.flow->'gates') with ordinality as f (v, i)
                where (f.i <= n.gates_held or (f.i = n.gates_held + 1 and n.gate_wait is not null))
                  and (select g.held from gates g where g.tenant_id = n.tenant_id and g.id = n.gates[f.i]) is null
                group by n.tenant_id, n.gates[f.i]
                order by n.tenant_id, n.gates[f.i]
            ) m
            on conflict (tenant_id, id) do nothing
            returning tenant_id, id
        )
        select array_agg(tenant_id), array_agg(id) into made_for, made from new_gates;
        select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming)
        into tenants, ids, holding, coming
        from unnest(tenants, ids, holding, coming) as c (tenant_id, id, holding, coming)
        where made is null or (c.tenant_id, c.id) not in (select * from unnest(made_for, made));
    end loop;
    return null;
end
$$;
