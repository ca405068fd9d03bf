-- 0004_durable
select 1;
