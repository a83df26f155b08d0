-- Nobody gets to see tables and what only other views use, or to make objects beside them, by default privileges that
-- happen to be set: some of it is secret.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT format('ALL ON TABLE %s', c.oid::regclass) AS right_on, a.grantee
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'servicenow'::regnamespace AND a.grantee <> c.relowner
              AND (c.relkind <> 'v' OR starts_with(c.relname, '_'))
        UNION
        SELECT CASE n.nspname WHEN 'servicenow' THEN 'CREATE ON SCHEMA servicenow' ELSE 'ALL ON SCHEMA servicenow_cache' END,
               a.grantee
        FROM pg_namespace n, aclexplode(n.nspacl) a
        WHERE n.nspname IN ('servicenow', 'servicenow_cache') AND a.grantee <> n.nspowner
    LOOP
        EXECUTE format('REVOKE %s FROM %s', given.right_on,
                       CASE given.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(given.grantee)) END);
    END LOOP;
END
$$;
