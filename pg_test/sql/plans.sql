-- Plans: those of a local table.
\getenv url SNFDW_URL
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION servicenow_fdw;
CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url :'url');
CREATE USER MAPPING FOR PUBLIC SERVER acme OPTIONS (auth 'basic', username 'fdw.integration', password 'fdw-secret');
IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident, "user") FROM SERVER acme INTO public;
SELECT servicenow.wait_for_sync('incident'), servicenow.wait_for_sync('"user"');
SELECT servicenow.stop_worker();
CREATE INDEX ON servicenow_cache.incident (number);
ANALYZE servicenow_cache.incident, servicenow_cache."user";
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT * FROM incident WHERE sys_id = 'x';
EXPLAIN (COSTS OFF) SELECT state FROM incident i WHERE i.number = 'INC0012345';
EXPLAIN (COSTS OFF) SELECT count(*) FROM incident WHERE number LIKE 'INC00123%' COLLATE "C";
EXPLAIN (COSTS OFF) SELECT number FROM incident ORDER BY number LIMIT 5;
EXPLAIN (COSTS OFF) SELECT i.number, u.name FROM incident i JOIN "user" u ON u.sys_id = i.caller_id_value WHERE i.number = 'INC0012345';
EXPLAIN (COSTS OFF) SELECT (SELECT name FROM "user" u WHERE u.sys_id = i.caller_id_value) FROM incident i WHERE number = 'INC0012345';
EXPLAIN (COSTS OFF) WITH open AS MATERIALIZED (SELECT * FROM incident WHERE active) SELECT count(*) FROM open;
EXPLAIN (COSTS OFF) SELECT number FROM incident WHERE sys_id = 'x' UNION ALL SELECT name FROM "user" WHERE sys_id = 'x';
EXPLAIN (COSTS OFF) SELECT * FROM incident WHERE number = 'INC0012345' FOR UPDATE;
EXPLAIN (COSTS OFF) SELECT i FROM incident i WHERE sys_id = 'x';
EXPLAIN (COSTS OFF) UPDATE incident SET state = 'New' WHERE number = 'INC0012345';
EXPLAIN (COSTS OFF) DELETE FROM incident WHERE number = (SELECT 'INC0012345'::text);
EXPLAIN (COSTS OFF) INSERT INTO incident (short_description) VALUES ('x');
-- a target driven by another table: rows are looked up, and locked, one by one
CREATE TABLE list AS SELECT sys_id AS id, number AS n, 'v' || row_number() OVER (ORDER BY number) AS v
    FROM incident ORDER BY number LIMIT 3;
ANALYZE list;
EXPLAIN (COSTS OFF) UPDATE incident i SET short_description = l.v FROM list l WHERE l.n = i.number;
EXPLAIN (COSTS OFF) DELETE FROM incident WHERE sys_id IN (SELECT id FROM list);
PREPARE driven (text) AS DELETE FROM incident i USING list l WHERE l.id = i.sys_id AND l.v = $1;
EXPLAIN (COSTS OFF) EXECUTE driven ('v3');
-- system columns need the scan
EXPLAIN (COSTS OFF) SELECT i.tableoid::regclass, i.number FROM list l LEFT JOIN incident i ON i.number = l.n AND i.sys_id > 'a';
SELECT i.tableoid::regclass, count(*) FROM list l JOIN incident i ON i.number = l.n GROUP BY 1;
DROP TABLE list;
PREPARE by_number (text) AS SELECT state FROM incident WHERE number = $1;
SET plan_cache_mode = force_generic_plan;
EXPLAIN (COSTS OFF) EXECUTE by_number ('INC0012345');
EXECUTE by_number ('INC0012345');
ALTER FOREIGN TABLE incident ALTER COLUMN state OPTIONS (DROP show);
ALTER FOREIGN TABLE incident RENAME COLUMN number TO num;
EXPLAIN (COSTS OFF) EXECUTE by_number ('INC0012345');
DROP EXTENSION servicenow_fdw CASCADE;
