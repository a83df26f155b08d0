-- Every option's validation: text, SQLSTATE and hint.
\getenv url SNFDW_URL
\set SHOW_CONTEXT never
CREATE EXTENSION servicenow_fdw;
-- the wrapper takes none
CREATE FOREIGN DATA WRAPPER other VALIDATOR servicenow.servicenow_fdw_validator OPTIONS (x '1');
\echo :LAST_ERROR_SQLSTATE
-- servers
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw;
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', colour 'red');
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'acme');
\echo :LAST_ERROR_SQLSTATE
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'ftp://acme.service-now.com');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://me:secret@acme.service-now.com');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com/api');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'http://acme.service-now.com');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', allow_http 'maybe');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', poll_interval 'soon');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', poll_interval '1ms');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', request_timeout '10 parsecs');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', page_size '0');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', max_concurrency '1000');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.service-now.com', ca_file '');
CREATE SERVER s FOREIGN DATA WRAPPER servicenow_fdw
    OPTIONS (instance_url 'https://acme.service-now.com', sync_user 'me', poll_interval '10s', page_size '500',
             max_concurrency '4', connect_timeout '5s', request_timeout '1min', ca_file '/etc/ca.pem');
ALTER SERVER s OPTIONS (SET page_size 'many');
ALTER SERVER s OPTIONS (DROP instance_url);
ALTER SERVER s OPTIONS (SET page_size '100', DROP ca_file);
SELECT srvoptions FROM pg_foreign_server WHERE srvname = 's';
CREATE SERVER plain FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'http://acme.service-now.com', allow_http 'on');
CREATE ROLE options_user;
GRANT USAGE ON FOREIGN DATA WRAPPER servicenow_fdw TO options_user;
SET ROLE options_user;
CREATE SERVER mine FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'http://acme.service-now.com', allow_http 'on');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
-- user mappings
CREATE USER MAPPING FOR PUBLIC SERVER s;
\echo :LAST_ERROR_SQLSTATE
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'smoke_signals');
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'client_credentials', client_id 'x');
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'basic', username 'x');
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'password', username 'x', password 'y', client_id 'z');
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'basic', username 'x', password 'y', token 'z');
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'basic', username 'x', password '');
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'basic', username 'x', password 'y', token_url 'x');
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (auth 'basic', username 'x', password 'y');
-- foreign tables and columns
CREATE FOREIGN TABLE t (sys_id text) SERVER s OPTIONS ("table" 'a/b');
CREATE FOREIGN TABLE t (sys_id text) SERVER s OPTIONS (query 'not a query');
CREATE FOREIGN TABLE t (sys_id text) SERVER s OPTIONS (query 'RLQUERYincident.caller_id,>=1^active=true^ENDRLQUERY');
CREATE FOREIGN TABLE t (sys_id text) SERVER s OPTIONS (mode 'live');
CREATE FOREIGN TABLE t (sys_id text) SERVER s OPTIONS (updatable '2');
CREATE FOREIGN TABLE t (sys_id text, a text OPTIONS (field 'caller id')) SERVER s;
CREATE FOREIGN TABLE t (sys_id text, a text OPTIONS (show 'both')) SERVER s;
CREATE FOREIGN TABLE t (sys_id text, a text OPTIONS (hidden 'yes')) SERVER s;
CREATE FOREIGN TABLE t (number text) SERVER s;
\echo :LAST_ERROR_SQLSTATE
CREATE FOREIGN TABLE t (sys_id bigint) SERVER s;
CREATE FOREIGN TABLE t (sys_id text, id text OPTIONS (field 'sys_id')) SERVER s;
CREATE FOREIGN TABLE t (sys_id text, _sn_mod_count bigint) SERVER s;
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE FOREIGN TABLE t (sys_id text, a positive) SERVER s;
\echo :LAST_ERROR_SQLSTATE
CREATE FOREIGN TABLE "no such name!" (sys_id text) SERVER s;
\echo :LAST_ERROR_SQLSTATE
CREATE FOREIGN TABLE "no such name!" (sys_id text) SERVER s OPTIONS ("table" 'incident');
\dt servicenow_cache.*
-- imports
IMPORT FOREIGN SCHEMA servicenow FROM SERVER s INTO public OPTIONS (values 'perhaps');
IMPORT FOREIGN SCHEMA servicenow FROM SERVER s INTO public OPTIONS (labels 'true');
\echo :LAST_ERROR_SQLSTATE
DROP EXTENSION servicenow_fdw CASCADE;
DROP OWNED BY options_user;
DROP ROLE options_user;
