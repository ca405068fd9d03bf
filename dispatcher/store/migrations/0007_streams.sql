-- 0007_streams
select 1;
