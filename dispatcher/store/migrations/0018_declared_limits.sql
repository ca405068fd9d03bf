-- The number that is declared now holds for all, also for runs that were made when another was: by the rule of its groups, and in every gate
-- that is made from now on (`fixed`). `most` is null where each run says its own; then the one that comes last is heard.
--
-- A rule may be longer than what an index takes, so a row is found by its digest.
create table declared_limits (
    tenant_id int not null,
    id        bytea not null,
    rule      text not null,
    most      int,
    strategy  text not null,
    primary key (tenant_id, id)
);
alter table gates add column fixed boolean not null default false;

create or replace function gates_inserted() returns trigger language plpgsql as $$
declare
    tenants     int[];
    missing     uuid[];
    holding     int[];
    coming      int[];
    crowded_ids text;
    more        text;
begin
    if not exists (select from new_rows where gates is not null) then
        return null;
    end if;
    with c as materialized (
        select tenant_id, id, sum(a.holding) as holding, sum(a.coming) as coming, min(a.declared) as declared
        from (
            select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming, unnest(gate_limits[1:gates_held]) as declared
            from new_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, 1, gate_limits[gates_held + 1] from new_rows where gate_wait is not null
        ) a
        group by tenant_id, id
        order by tenant_id, id
    ), changed as (
        update gates g
        set held = g.held + c.holding, waiting = g.waiting + c.coming,
            most = case when g.fixed then g.most else coalesce(c.declared, g.most) end,
            arrivals = g.arrivals + c.coming, idle_since = null,
            wake = g.wake or (g.waiting + c.coming > 0
                              and ((c.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                   or g.held + c.holding < case when g.name is not null
                                                           then shared_gate_limit(g.tenant_id, g.name, case when g.fixed then g.most
                                                                                                       else coalesce(c.declared, g.most) end)
                                                           when g.fixed then g.most else coalesce(c.declared, g.most) end))
        from c
        where g.tenant_id = any (array[c.tenant_id]) and g.id = any (array[c.id])
        returning g.tenant_id, g.id,
                  c.holding > 0 and (g.waiting > c.coming or g.held > case when g.name is null then g.most
                                                                      else shared_gate_limit(g.tenant_id, g.name, g.most) end) as crowded
    )
    select array_agg(c.tenant_id), array_agg(c.id), array_agg(c.holding), array_agg(c.coming),
           (select string_agg(id::text, ',') from changed where crowded)
    into tenants, missing, holding, coming, crowded_ids
    from c where (c.tenant_id, c.id) not in (select tenant_id, id from changed);
    if missing is not null then
        with made as (
            insert into gates as g (tenant_id, id, rule, name, key, strategy, most, fixed, held, waiting, arrivals, wake)
            select m.tenant_id, m.id, m.v->>1, m.v->>2, m.v->>3, coalesce(d.strategy, m.v->>4),
                   coalesce(d.most, m.declared, (m.v->>5)::int), d.most is not null, m.holding, m.coming, m.coming, m.coming > 0
            from (
                select n.tenant_id, n.gates[f.i] as id, (array_agg(f.v))[1] as v, min(n.gate_limits[f.i]) as declared,
                       sum((f.i <= n.gates_held)::int) as holding, sum((f.i > n.gates_held)::int) as coming
                from new_rows n cross join lateral jsonb_array_elements(n.flow->'gates') with ordinality as f (v, i)
                where (f.i <= n.gates_held or (f.i = n.gates_held + 1 and n.gate_wait is not null))
                  and ((n.tenant_id, n.gates[f.i]) in (select * from unnest(tenants, missing))) is true
                group by n.tenant_id, n.gates[f.i]
                order by n.tenant_id, n.gates[f.i]
            ) m left join lateral (select d.most, d.strategy from declared_limits d
                                     where d.tenant_id = m.tenant_id and d.id = sha256(convert_to(m.v->>1, 'UTF8')) offset 0) d on true
            on conflict (tenant_id, id) do update
            set held = g.held + excluded.held, waiting = g.waiting + excluded.waiting,
                most = case when g.fixed then g.most else excluded.most end,
                arrivals = g.arrivals + excluded.arrivals, idle_since = null, wake = g.wake or g.waiting + excluded.waiting > 0
            returning g.tenant_id, g.id, g.waiting, g.held > case when g.name is null then g.most
                                                             else shared_gate_limit(g.tenant_id, g.name, g.most) end as full
        )
        select string_agg(g.id::text, ',') into more from made g
        where (g.full or g.waiting > 0)
          and (g.full or (g.tenant_id, g.id, g.waiting) not in (select t, i, n from unnest(tenants, missing, coming) as c (t, i, n)))
          and ((g.tenant_id, g.id) in (select t, i from unnest(tenants, missing, holding) as c (t, i, n) where n > 0)) is true;
        crowded_ids := concat_ws(',', crowded_ids, more);
    end if;
    if crowded_ids <> '' then
        raise exception 'no room in a gate' using errcode = 'DG001', detail = crowded_ids;
    end if;
    return null;
end
$$;

create or replace function gates_updated() returns trigger language plpgsql as $$
declare
    tenants int[];
    missing uuid[];
begin
    if not exists (select from new_rows where gates is not null) then
        return null;
    end if;
    with c as materialized (
        select tenant_id, id, sum(a.holding) as holding, sum(a.coming) as coming,
               case when sum(a.coming) > 0 then min(a.declared) end as declared
        from (
            select tenant_id, unnest(gates[1:gates_held]) as id, 1 as holding, 0 as coming, null::int as declared
            from new_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, 1, gate_limits[gates_held + 1] from new_rows where gate_wait is not null
            union all select tenant_id, unnest(gates[1:gates_held]), -1, 0, null from old_rows where gates_held > 0
            union all select tenant_id, gate_wait, 0, -1, null from old_rows where gate_wait is not null
        ) a
        group by tenant_id, id having sum(a.holding) <> 0 or sum(a.coming) <> 0
        order by tenant_id, id
    ), changed as (
        update gates g
        set held = greatest(g.held + c.holding, 0), waiting = greatest(g.waiting + c.coming, 0),
            most = case when g.fixed then g.most else coalesce(c.declared, g.most) end,
            arrivals = g.arrivals + greatest(c.coming, 0), idle_since = null,
            wake = g.wake or (g.waiting + c.coming > 0
                              and ((c.coming > 0 and g.strategy <> 'GROUP_ROUND_ROBIN')
                                   or g.held + c.holding < case when g.name is not null
                                                           then shared_gate_limit(g.tenant_id, g.name, case when g.fixed then g.most
                                                                                                       else coalesce(c.declared, g.most) end)
                                                           when g.fixed then g.most else coalesce(c.declared, g.most) end))
        from c
        where g.tenant_id = any (array[c.tenant_id]) and g.id = any (array[c.id])
        returning g.tenant_id, g.id
    )
    select array_agg(c.tenant_id), array_agg(c.id) into tenants, missing
    from c where (c.tenant_id, c.id) not in (select tenant_id, id from changed);
    if missing is not null then
        insert into gates as g (tenant_id, id, rule, name, key, strategy, most, fixed, held, waiting, arrivals, wake)
        select m.tenant_id, m.id, m.v->>1, m.v->>2, m.v->>3, coalesce(d.strategy, m.v->>4),
               coalesce(d.most, m.declared, (m.v->>5)::int), d.most is not null, m.holding, m.coming, m.coming, m.coming > 0
        from (
            select n.tenant_id, n.gates[f.i] as id, (array_agg(f.v))[1] as v, min(n.gate_limits[f.i]) as declared,
                   sum((f.i <= n.gates_held)::int) as holding, sum((f.i > n.gates_held)::int) as coming
            from new_rows n cross join lateral jsonb_array_elements(n.flow->'gates') with ordinality as f (v, i)
            where (f.i <= n.gates_held or (f.i = n.gates_held + 1 and n.gate_wait is not null))
              and ((n.tenant_id, n.gates[f.i]) in (select * from unnest(tenants, missing))) is true
            group by n.tenant_id, n.gates[f.i]
            order by n.tenant_id, n.gates[f.i]
        ) m left join lateral (select d.most, d.strategy from declared_limits d
                                 where d.tenant_id = m.tenant_id and d.id = sha256(convert_to(m.v->>1, 'UTF8')) offset 0) d on true
        on conflict (tenant_id, id) do update
        set held = g.held + excluded.held, waiting = g.waiting + excluded.waiting,
            most = case when g.fixed then g.most else excluded.most end, arrivals = g.arrivals + excluded.arrivals,
            idle_since = null, wake = g.wake or g.waiting + excluded.waiting > 0;
    end if;
    return null;
end
$$;
