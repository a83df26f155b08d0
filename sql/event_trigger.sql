-- Cache tables follow their foreign tables.

CREATE FUNCTION servicenow._on_ddl() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation oid;
BEGIN
    FOR relation IN
        SELECT DISTINCT objid FROM pg_event_trigger_ddl_commands() WHERE classid = 'pg_class'::regclass
    LOOP
        PERFORM servicenow._follow_foreign_table(relation, tg_tag);
    END LOOP;
END
$$;

CREATE FUNCTION servicenow._on_drop() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation oid;
BEGIN
    FOR relation IN
        SELECT objid FROM pg_event_trigger_dropped_objects()
        WHERE classid = 'pg_class'::regclass AND objsubid = 0
    LOOP
        PERFORM servicenow._forget_foreign_table(relation);
    END LOOP;
END
$$;

CREATE EVENT TRIGGER servicenow_ddl ON ddl_command_end
    WHEN TAG IN ('CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'IMPORT FOREIGN SCHEMA', 'ALTER TABLE')
    EXECUTE FUNCTION servicenow._on_ddl();

CREATE EVENT TRIGGER servicenow_drop ON sql_drop
    EXECUTE FUNCTION servicenow._on_drop();
