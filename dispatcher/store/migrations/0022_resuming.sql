-- Until when the bound of a pause (`queue_ttl`) leaves alone what waits for a workflow, since somebody is about to resume it and gives what
-- waits its schedule timeout again, a page at a time. Null once it is resumed; who dies meanwhile leaves a moment that passes.
alter table workflows add column unbound_until timestamptz;
