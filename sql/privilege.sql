-- Nobody gets to see tables and what only other views use by default privileges that happen to be set: some of it is
-- secret.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT format('TABLE %s', c.oid::regclass) AS object, a.grantee
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'servicenow'::regnamespace AND a.grantee <> c.relowner
              AND (c.relkind <> 'v' OR starts_with(c.relname, '_'))
        UNION
        SELECT format('SCHEMA %I', n.nspname), a.grantee
        FROM pg_namespace n, aclexplode(n.nspacl) a
        WHERE n.nspname = 'servicenow_cache' AND a.grantee <> n.nspowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', given.object,
                       CASE given.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(given.grantee)) END);
    END LOOP;
END
$$;
