-- Cache tables follow their foreign tables. The functions run as the extension's owner, who owns the caches; they
-- look into the catalogs first, so that DDL on other relations does not even load the library.

CREATE FUNCTION servicenow._on_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET default_tablespace = '' SET default_table_access_method = heap SET quote_all_identifiers = off AS $$
DECLARE
    relation oid;
BEGIN
    -- Columns of a parent table are added to, changed in and dropped from its foreign children too.
    FOR relation IN
        WITH RECURSIVE touched AS (
            SELECT objid FROM pg_event_trigger_ddl_commands() WHERE classid = 'pg_class'::regclass
            UNION
            SELECT inhrelid FROM pg_inherits JOIN touched ON inhparent = touched.objid)
        SELECT ftrelid FROM touched
            JOIN pg_foreign_table ON ftrelid = touched.objid
            JOIN pg_foreign_server s ON s.oid = ftserver
            JOIN pg_foreign_data_wrapper w ON w.oid = srvfdw AND fdwname = 'servicenow_fdw'
    LOOP
        PERFORM servicenow._follow_foreign_table(relation, tg_tag);
    END LOOP;
    -- Another address or login may show other rows.
    FOR relation IN
        SELECT DISTINCT s.oid FROM pg_event_trigger_ddl_commands()
            LEFT JOIN pg_user_mapping m ON classid = 'pg_user_mapping'::regclass AND m.oid = objid
            JOIN pg_foreign_server s
                ON s.oid = m.umserver OR classid = 'pg_foreign_server'::regclass AND s.oid = objid
            JOIN pg_foreign_data_wrapper w ON w.oid = srvfdw AND fdwname = 'servicenow_fdw'
    LOOP
        PERFORM servicenow._follow_server(relation);
    END LOOP;
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands()
                   JOIN pg_extension e ON classid = 'pg_extension'::regclass AND e.oid = objid
               WHERE extname = 'servicenow_fdw') THEN
        PERFORM servicenow._follow_extension();
    END IF;
END
$$;

CREATE FUNCTION servicenow._on_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET default_tablespace = '' SET default_table_access_method = heap SET quote_all_identifiers = off AS $$
DECLARE
    dropped record;
BEGIN
    FOR dropped IN
        SELECT DISTINCT objid, object_type FROM pg_event_trigger_dropped_objects()
        WHERE object_type IN ('foreign table', 'foreign table column')
    LOOP
        IF dropped.object_type = 'foreign table' THEN
            PERFORM servicenow._forget_foreign_table(dropped.objid);
        ELSE
            -- A column that went with its type, or by ALTER.
            PERFORM servicenow._follow_foreign_table(dropped.objid, tg_tag);
        END IF;
    END LOOP;
    -- What is in the instance can only be taken away through the server.
    FOR dropped IN
        SELECT o.object_name AS server, c.subscription FROM pg_event_trigger_dropped_objects() o
            JOIN servicenow.capture c ON c.server = o.objid
        WHERE o.object_type = 'server' AND c.installed
    LOOP
        RAISE WARNING 'what server "%" captures changes by stays in ServiceNow', dropped.server
            USING HINT = format('Delete the Business Rules and the table named "servicenow_fdw %s" there; '
                'servicenow.uninstall_capture() before DROP SERVER does that.', dropped.subscription);
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION servicenow._on_ddl(), servicenow._on_drop(),
    servicenow._follow_foreign_table(oid, text), servicenow._forget_foreign_table(oid),
    servicenow._follow_server(oid), servicenow._follow_extension() FROM PUBLIC;

CREATE EVENT TRIGGER servicenow_ddl ON ddl_command_end
    WHEN TAG IN ('CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA', 'ALTER TABLE', 'ALTER SERVER',
                 'CREATE USER MAPPING', 'ALTER USER MAPPING', 'ALTER EXTENSION')
    EXECUTE FUNCTION servicenow._on_ddl();

CREATE EVENT TRIGGER servicenow_drop ON sql_drop
    EXECUTE FUNCTION servicenow._on_drop();
