//! What those who are no superusers cannot get at.

use servicenow_sim::Dataset;
use world::World;

/// What everybody may call, and what everybody may read.
const FOR_ALL: [&str; 8] = [
    "_pending_writes",
    "_turned_away",
    "authorize_url",
    "exchange_code",
    "servicenow_fdw_handler",
    "servicenow_fdw_validator",
    "sync",
    "version",
];
const VIEWS: [&str; 7] =
    ["progress", "schema_drift", "stat_capture", "stat_mail", "stat_requests", "sync_error", "sync_status"];

#[tokio::test(flavor = "multi_thread")]
async fn the_extensions_own_objects_are_nobodys_whatever_the_default_privileges() {
    let world = World::bare(Dataset::Small).await;
    let reader = world.session_as("reader").await;
    let role = world.role("reader");
    for to in ["PUBLIC", &role] {
        world.db.run(&format!("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {to}; ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO {to}")).await;
    }
    world.set_up("").await;
    world.import(&["incident"]).await;
    let names =
        async |sql: &str| -> Vec<String> { reader.rows(sql).await.iter().map(|row| row.get(0)).collect() };
    let readable = names(
        "SELECT relname::text FROM pg_class WHERE relnamespace IN ('servicenow'::regnamespace, 'servicenow_cache'::regnamespace)
         AND relkind IN ('r', 'v', 'S') AND (relkind = 'S' AND has_sequence_privilege(oid, 'USAGE,SELECT,UPDATE')
              OR relkind <> 'S' AND has_any_column_privilege(oid, 'SELECT,INSERT,UPDATE,REFERENCES')
                 AND relnamespace = 'servicenow'::regnamespace) ORDER BY 1",
    )
    .await;
    let internal: Vec<&String> = readable.iter().filter(|name| !VIEWS.contains(&name.as_str())).collect();
    assert!(internal.is_empty(), "{internal:?}");
    assert_eq!(reader.error("SELECT signing_key FROM servicenow.capture").await.code().code(), "42501");
    for statement in [
        "SELECT * FROM servicenow._capture",
        "CREATE TABLE servicenow_cache.mine ()",
        "CREATE TABLE servicenow.mine ()",
        "SELECT * FROM servicenow_cache.incident",
        "DELETE FROM servicenow_cache.incident",
        "CREATE INDEX ON servicenow_cache.incident (number)",
        "ALTER EXTENSION servicenow_fdw DROP TABLE servicenow.capture",
    ] {
        assert_eq!(reader.error(statement).await.code().code(), "42501", "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_for_those_they_are_granted_to_and_run_nobodys_operators() {
    let world = World::new().await;
    let reader = world.session_as("reader").await;
    let functions = reader
        .rows(
            "SELECT proname::text FROM pg_proc WHERE pronamespace = 'servicenow'::regnamespace
             AND has_function_privilege(oid, 'EXECUTE') ORDER BY 1",
        )
        .await;
    let mut functions: Vec<String> = functions.iter().map(|row| row.get(0)).collect();
    functions.retain(|name| name != "wait_for_sync");
    assert_eq!(functions, FOR_ALL);
    let open = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'servicenow'::regnamespace AND prosecdef
                AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)";
    assert_eq!(world.db.value::<i64>(open).await, 0, "SECURITY DEFINER without a search_path of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_its_owners_to_have_read_again() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let user = world.session_as("user").await;
    let role = world.role("user");
    world
        .db
        .run(&format!(
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA servicenow TO {role}; GRANT SELECT ON incident TO {role}"
        ))
        .await;
    user.run("SELECT servicenow.sync('incident')").await;
    for call in ["resync('incident')", "refresh_schema('incident')"] {
        let error = user.error(&format!("SELECT servicenow.{call}")).await;
        assert_eq!(error.code().code(), "42501", "{call}");
        assert_eq!(error.message(), "must be owner of foreign table incident", "{call}");
    }
    for call in [
        "check_server('acme')",
        "install_capture('acme')",
        "uninstall_capture('acme')",
        "capture_script('incident')",
    ] {
        let error = user.error(&format!("SELECT servicenow.{call}")).await;
        assert_eq!(error.code().code(), "42501", "{call}: {}", error.message());
    }
    // What comes in by the way around the checks would run as the caches' owner.
    world.db.run(&format!("REVOKE EXECUTE ON FUNCTION servicenow._resync(regclass) FROM {role}; GRANT CREATE, USAGE ON SCHEMA public TO {role}; ALTER TABLE incident OWNER TO {role}")).await;
    user.run("SELECT servicenow.resync('incident')").await;
    let owner =
        "SELECT relowner = (SELECT extowner FROM pg_extension WHERE extname = 'servicenow_fdw') FROM pg_class
                 WHERE oid = 'servicenow_cache.incident'::regclass";
    assert!(world.db.value::<bool>(owner).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_runs_no_script_of_those_who_are_no_superusers() {
    let world = World::new().await;
    let user = world.session_as("user").await;
    let role = world.role("user");
    world
        .db
        .run(&format!(
            "GRANT USAGE ON FOREIGN SERVER acme TO {role}; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
        ))
        .await;
    let create = |query: &str| {
        format!(
            "CREATE FOREIGN TABLE scripted (sys_id text) SERVER acme OPTIONS (\"table\" 'incident', query '{query}')"
        )
    };
    for query in [
        "assigned_to=javascript:gs.getUserID()",
        "assigned_to=JavaScript:gs.getUserID()",
        "active=true^NQassigned_to= javascript:gs.getUserID()",
        "active=true^ORassigned_to=javascript:x()",
        "assigned_toINa,javascript:x()",
        "sys_created_onBETWEENjavascript:gs.daysAgo(2)@javascript:gs.daysAgo(1)",
        "number=a^^javascript:x()",
        "active=true^ORDERBYjavascript:x()",
        "active=true^EQ^GROUPBYjavascript:x()",
    ] {
        let error = user.error(&create(query)).await;
        assert_eq!(error.code().code(), "42501", "{query}: {}", error.message());
        assert_eq!(error.message(), "only a superuser may set option \"query\" to one with a script");
    }
    user.run(&create("sys_created_onRELATIVEGE@dayofweek@ago@7")).await;
    world
        .db
        .run("ALTER FOREIGN TABLE scripted OPTIONS (SET query 'sys_created_on>javascript:gs.daysAgo(2)')")
        .await;
}

/// A query stays a query, and applies to whatever is read, however it is read.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_smuggled_into_requests_by_a_query_or_a_name() {
    let world = World::new().await;
    let count = |query: &str| world.sim.edit().find("incident", query).expect("a query").len() as i64;
    for (name, query) in [
        ("parameter", "active=true&sysparm_limit=1&sysparm_query=active=false"),
        ("line", "short_descriptionISNOTEMPTY^active=true\r\nX-Header: 1"),
        ("fragment", "short_description=a#b%26sysparm_limit=0"),
        ("alternative", "active=false^NQactive=true^state=2^EQ^ORDERBYDESCnumber^GROUPBYstate"),
    ] {
        world
            .db
            .client()
            .execute(
                &format!(
                    "CREATE FOREIGN TABLE {name} (sys_id text, number text) SERVER acme OPTIONS (\"table\" 'incident', query E'{}')",
                    query.replace('\r', "\\r").replace('\n', "\\n")
                ),
                &[],
            )
            .await
            .expect("it can be read");
        world.sync(name).await;
        let plain = query.split("^EQ").next().unwrap_or_default();
        let rows = world.db.value::<i64>(&format!("SELECT count(*) FROM {name}")).await;
        assert_eq!(rows, count(plain), "{name}");
    }
    for request in world.sim.requests().iter().filter(|r| r.table.as_deref() == Some("incident")) {
        let query = request.parameter("sysparm_query").unwrap_or_default();
        let once = |name: &str| request.query.iter().filter(|(given, _)| given == name).count() <= 1;
        assert!(once("sysparm_limit") && once("sysparm_query"), "{:?}: {query}", request.query);
    }
    for table in [
        "incident?sysparm_limit=1",
        "../table/sys_user",
        "incident/..",
        "incident%2f",
        "incident#",
        "incident;x",
        "incident\n",
    ] {
        let error = world
            .db
            .error(&format!("CREATE FOREIGN TABLE x (sys_id text) SERVER acme OPTIONS (\"table\" '{table}')"))
            .await;
        assert_eq!(error.code().code(), "22023", "{table}: {}", error.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_instance_calls_things_is_quoted() {
    let world = World::new().await;
    world.db.run("CREATE TABLE precious (id int)").await;
    let hostile = "'; DROP TABLE precious; --\\\"$$";
    world.sim.edit().add_column("incident", "u_select", hostile, "string").expect("a column");
    world.import(&["incident"]).await;
    let comment = "SELECT col_description('incident'::regclass, attnum) FROM pg_attribute
                   WHERE attrelid = 'incident'::regclass AND attname LIKE '%u_select'";
    assert_eq!(world.db.value::<String>(comment).await, hostile);
    let error = world
        .db
        .error("IMPORT FOREIGN SCHEMA \"x'; DROP TABLE precious; --\" FROM SERVER acme INTO public")
        .await;
    assert_eq!(error.code().code(), "HV00Q");
    world.db.run("SELECT * FROM precious").await;
}

/// The worker logs in with the mapping of `sync_user`, wherever the server points.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_has_nobody_elses_login_sent() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let owner = world.session_as("owner").await;
    let (role, victim) = (world.role("owner"), world.role("victim"));
    world
        .db
        .run(&format!(
            "CREATE ROLE {victim}; GRANT USAGE ON FOREIGN DATA WRAPPER servicenow_fdw TO {role};
             CREATE USER MAPPING FOR {victim} SERVER acme OPTIONS (auth 'basic', username 'victim', password 'victims');
             ALTER SERVER acme OWNER TO {role}"
        ))
        .await;
    let set = format!("ALTER SERVER acme OPTIONS (ADD sync_user '{victim}')");
    assert_eq!(owner.error(&set).await.code().code(), "42501");
    // A superuser may, and the worker does not do it for such an owner either.
    world.db.run(&set).await;
    world
        .until("SELECT bool_and(last_error LIKE '%does not have the privileges of role%') FROM servicenow.sync_status")
        .await;
    assert!(world.sim.requests().iter().all(|request| request.status != 401));
    world
        .db
        .run(&format!("GRANT {victim} TO {role}; ALTER SERVER acme OPTIONS (SET poll_interval '2 s')"))
        .await;
    world.until("SELECT bool_and(last_error NOT LIKE '%privileges%') FROM servicenow.sync_status").await;
}
