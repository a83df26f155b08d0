-- What an import makes.
\getenv url SNFDW_URL
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION servicenow_fdw;
CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url :'url');
CREATE USER MAPPING FOR PUBLIC SERVER acme OPTIONS (auth 'basic', username 'fdw.integration', password 'fdw-secret');
CREATE SCHEMA friendly;
IMPORT FOREIGN SCHEMA servicenow
    LIMIT TO (catalog_item, configuration_item, knowledge_base, order_guide, service_level_agreement,
              service_request, service_catalog, "user", change_request, incident, problem)
    FROM SERVER acme INTO friendly;
SELECT c.relname, t.ftoptions FROM pg_foreign_table t JOIN pg_class c ON c.oid = t.ftrelid ORDER BY 1;
\d+ friendly.service_catalog
-- labels and values, inherited fields, types, comments
SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attfdwoptions, col_description(a.attrelid, a.attnum) AS label
FROM pg_attribute a WHERE a.attrelid = 'friendly.incident'::regclass AND a.attnum > 0
  AND a.attname IN ('sys_id', 'number', 'state', 'state_value', 'caller_id', 'caller_id_value', 'opened_at', 'active',
                    'business_duration', 'work_notes', 'comments_and_work_notes', 'priority', 'priority_value')
ORDER BY a.attname;
-- labels only
CREATE SCHEMA labels;
IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO labels OPTIONS (values 'false');
SELECT count(*) FILTER (WHERE attname LIKE '%\_value') AS value_columns, bool_or(attname = 'state') AS state
FROM pg_attribute WHERE attrelid = 'labels.incident'::regclass AND attnum > 0;
-- an application's scope
CREATE SCHEMA app;
IMPORT FOREIGN SCHEMA x_acme_app FROM SERVER acme INTO app;
SELECT c.relname FROM pg_class c WHERE relnamespace = 'app'::regnamespace ORDER BY 1;
IMPORT FOREIGN SCHEMA x_other FROM SERVER acme INTO app;
\echo :LAST_ERROR_SQLSTATE
IMPORT FOREIGN SCHEMA x_acme_app LIMIT TO (incident) FROM SERVER acme INTO app;
\echo :LAST_ERROR_SQLSTATE
-- everything but
CREATE SCHEMA everything;
IMPORT FOREIGN SCHEMA servicenow EXCEPT (incident, "user") FROM SERVER acme INTO everything;
SELECT count(*) FILTER (WHERE relname IN ('incident', 'sys_user')) AS excepted,
       count(*) FILTER (WHERE relname IN ('problem', 'change_request', 'sc_cat_item', 'cmdb_ci')) AS usual,
       count(*) FILTER (WHERE relname LIKE 'u\_%' OR relname LIKE 'x\_%') > 0 AS custom,
       count(*) FILTER (WHERE relname IN ('sys_dictionary', 'sys_script', 'sys_audit')) AS internal
FROM pg_class WHERE relnamespace = 'everything'::regnamespace AND relkind = 'f';
-- what is not there
IMPORT FOREIGN SCHEMA servicenow LIMIT TO (no_such_table) FROM SERVER acme INTO public;
\echo :LAST_ERROR_SQLSTATE
-- a user who may not read the dictionary
CREATE SERVER other FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url :'url');
CREATE USER MAPPING FOR PUBLIC SERVER other OPTIONS (auth 'basic', username 'itil.user', password 'itil-secret');
CREATE SCHEMA itil;
IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER other INTO itil;
SELECT count(*) > 100 AS columns, bool_or(attname = 'state_value' AND format_type(atttypid, atttypmod) = 'bigint') AS state
FROM pg_attribute WHERE attrelid = 'itil.incident'::regclass AND attnum > 0;
-- a wrong password
CREATE SERVER wrong FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url :'url');
CREATE USER MAPPING FOR PUBLIC SERVER wrong OPTIONS (auth 'basic', username 'itil.user', password 'wrong');
IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER wrong INTO public;
\echo :LAST_ERROR_SQLSTATE
DROP EXTENSION servicenow_fdw CASCADE;
DROP SCHEMA friendly, labels, app, everything, itil CASCADE;
