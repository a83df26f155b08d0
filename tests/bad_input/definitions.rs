//! Foreign tables that cannot be mirrored, refused when they are made or changed.

use servicenow_sim::Dataset;
use world::{World, connect};

use crate::{GOOD, recovers};

#[tokio::test(flavor = "multi_thread")]
async fn a_table_needs_its_key() {
    let world = World::new().await;
    let error = world.db.error("CREATE FOREIGN TABLE incident (number text) SERVER acme").await;
    assert_eq!(error.code().code(), "HV005");
    assert_eq!(error.message(), "foreign table \"incident\" must have a column for field \"sys_id\"");
    assert_eq!(error.hint(), Some("Add a column \"sys_id\" of type text."));
    world
        .db
        .run("CREATE FOREIGN TABLE incident (id text OPTIONS (field 'sys_id'), number text) SERVER acme")
        .await;
    let error = world.db.error("ALTER FOREIGN TABLE incident DROP COLUMN id").await;
    assert_eq!(error.code().code(), "HV005");
    let error = world.db.error("ALTER FOREIGN TABLE incident ALTER id OPTIONS (ADD show 'label')").await;
    assert_eq!(error.code().code(), "HV005");
    world.sync("incident").await;
    assert!(world.db.value::<i64>("SELECT count(id) FROM incident").await > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_has_to_be_text_and_only_one() {
    let world = World::new().await;
    for type_ in ["uuid", "bigint", "bytea"] {
        let error =
            world.db.error(&format!("CREATE FOREIGN TABLE incident (sys_id {type_}) SERVER acme")).await;
        assert_eq!(error.code().code(), "HV004", "{type_}: {}", error.message());
        assert_eq!(error.message(), "column \"sys_id\" of foreign table \"incident\" must have type text");
    }
    let error = world
        .db
        .error("CREATE FOREIGN TABLE incident (sys_id text, again text OPTIONS (field 'sys_id')) SERVER acme")
        .await;
    assert_eq!(error.code().code(), "42701", "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_may_have_any_collation_that_tells_all_of_them_apart() {
    let world = World::with(Dataset::Small, ", reconcile_interval '1s'").await;
    // Not in every build.
    let has_icu = "SELECT EXISTS (SELECT FROM pg_collation WHERE collname = 'en-x-icu')";
    let has_icu = world.db.value::<bool>(has_icu).await;
    if has_icu {
        let any_case = "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
        world.db.run(&format!("CREATE COLLATION any_case {any_case}")).await;
    } else {
        eprintln!("NOT TESTED: collations of ICU, which this Postgres is built without");
    }
    for type_ in ["text", "varchar(32)"].into_iter().filter(|_| has_icu) {
        let create = format!("CREATE FOREIGN TABLE incident (sys_id {type_} COLLATE any_case) SERVER acme");
        let error = world.db.error(&create).await;
        assert_eq!(error.code().code(), "0A000", "{type_}: {}", error.message());
        let message = "column \"sys_id\" of foreign table \"incident\" must have a deterministic collation";
        assert_eq!(error.message(), message);
        assert!(error.hint().is_some_and(|hint| hint.contains("use another collation")));
    }
    const COLUMNS: &[&str] = &["number", "short_description"];
    world.db.run("CREATE FOREIGN TABLE incident (sys_id text COLLATE \"C\", number text, short_description text) SERVER acme").await;
    world.db.run("SET enable_seqscan = off").await;
    let edit = world.sim.edit().without_workflow();
    let other = if has_icu { "\"en-x-icu\"" } else { "\"POSIX\"" };
    for (collation, odd) in [("\"C\"", "Zz-1"), (other, "aB-2")] {
        world
            .db
            .run(&format!("ALTER FOREIGN TABLE incident ALTER sys_id TYPE text COLLATE {collation}"))
            .await;
        world.sync("incident").await;
        // Without a trace: what is there and here is compared range by range.
        let gone = edit.find("incident", "number!=INC0012345^ORDERBYsys_id").expect("a query").remove(3);
        edit.delete("incident", &gone).expect("it is there");
        world.until_like_the_instance("incident", COLUMNS).await;
        let stamp = "2019-01-01 00:00:00";
        let old = [("sys_id", odd), ("sys_created_on", stamp), ("sys_updated_on", stamp), ("number", "ODD")];
        let silent = world.sim.edit().without_workflow().without_auto_sys_fields();
        silent.insert("incident", &old).expect("a record");
        world.until_like_the_instance("incident", COLUMNS).await;
        let sorted = format!(
            "SELECT array_agg(sys_id ORDER BY sys_id) = array_agg(sys_id ORDER BY sys_id::text COLLATE {collation})
                    AND count(*) FILTER (WHERE sys_id = '{odd}') = 1 FROM incident"
        );
        assert!(world.db.value::<bool>(&sorted).await, "{collation}");
        let one = format!("SELECT number FROM incident WHERE sys_id = '{odd}'");
        let plan = world.db.explain(&one).await;
        assert!(plan.contains("_pkey"), "{plan}");
        world.db.run(&format!("UPDATE incident SET short_description = 'odd' WHERE sys_id = '{odd}'")).await;
        assert_eq!(world.remote("incident", odd, "short_description").as_deref(), Some("odd"));
        let made = "INSERT INTO incident (short_description) VALUES ('made') RETURNING sys_id";
        let made = world.db.value::<String>(made).await;
        world.db.run(&format!("DELETE FROM incident WHERE sys_id IN ('{made}', '{odd}')")).await;
        world.until_like_the_instance("incident", COLUMNS).await;
    }
}

/// The caches are filled by a superuser, who must not run what a user has written.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_whose_values_run_a_users_code_is_refused() {
    let world = World::new().await;
    world
        .db
        .run(
            "CREATE TABLE proof (who text);
             CREATE FUNCTION check_it(text) RETURNS boolean LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO public.proof VALUES (current_user); RETURN true; END $$;
             CREATE DOMAIN checked AS text CHECK (check_it(VALUE));
             CREATE TYPE composed AS (a checked);
             CREATE TYPE spans AS RANGE (subtype = text)",
        )
        .await;
    let mut taken = Vec::new();
    for type_ in ["checked", "checked[]", "composed", "composed[]", "spans", "spans[]"] {
        let made =
            format!("CREATE FOREIGN TABLE incident (sys_id text, short_description {type_}) SERVER acme");
        match world.db.client().batch_execute(&made).await {
            Ok(()) => {
                taken.push(type_);
                world.db.run("DROP FOREIGN TABLE incident").await;
            }
            Err(e) => {
                let e = e.as_db_error().expect("the session goes on").clone();
                assert_eq!(e.code().code(), "0A000", "{type_}: {}", e.message());
                assert!(e.message().starts_with(
                    "column \"short_description\" of foreign table \"incident\" cannot have type"
                ));
                assert!(e.hint().is_some());
            }
        }
    }
    assert!(taken.is_empty(), "{taken:?}");
    world.db.run("CREATE FOREIGN TABLE incident (sys_id text, short_description text) SERVER acme").await;
    let error = world.db.error("ALTER FOREIGN TABLE incident ALTER short_description TYPE checked").await;
    assert_eq!(error.code().code(), "0A000", "{}", error.message());
}

/// Whoever owns an enum may have a function of theirs make text of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cast_of_a_users_is_not_carried_out_with_other_rights() {
    let world = World::new().await;
    let user = world.find("sys_user", "user_name=itil.user");
    world.sim.edit().update_where("incident", "number=INC0012345", &[("caller_id", &user)]).expect("a query");
    world
        .db
        .run(&format!(
            "CREATE TABLE proof (who text);
             CREATE TYPE caller AS ENUM ('{user}');
             CREATE TYPE state AS ENUM ('1', '2', '3', '4', '5', '6', '7', '8');
             CREATE FUNCTION told(caller) RETURNS text LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO public.proof VALUES (current_user); RETURN 'x'; END $$;
             CREATE FUNCTION told(state) RETURNS text LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO public.proof VALUES (current_user); RETURN 'x'; END $$;
             CREATE CAST (caller AS text) WITH FUNCTION told(caller);
             CREATE CAST (state AS text) WITH FUNCTION told(state);
             CREATE FOREIGN TABLE incident (sys_id text, caller_id text OPTIONS (show 'label'),
                 caller caller OPTIONS (field 'caller_id'), state text OPTIONS (show 'label'), state_value state OPTIONS (field 'state'))
             SERVER acme OPTIONS (\"table\" 'incident', query 'caller_id={user}')"
        ))
        .await;
    world.sync("incident").await;
    assert!(world.db.value::<i64>("SELECT count(*) FROM incident").await > 0);
    world.sim.edit().update("sys_user", &user, &[("name", "Somebody Else")]).expect("a user");
    world.until("SELECT bool_and(caller_id = 'Somebody Else') FROM incident").await;
    let state = world.db.value::<String>("SELECT min(enum_out(state_value)::text) FROM incident").await;
    world.sim.edit().relabel_choice("incident", "state", &state, "Another").expect("a choice");
    world.until("SELECT bool_or(state = 'Another') FROM incident").await;
    world.db.run("SELECT * FROM servicenow.verify('incident')").await;
    assert_eq!(world.db.value::<Option<String>>("SELECT string_agg(who, ' ') FROM proof").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_the_caches_need_for_themselves_are_refused() {
    let world = World::new().await;
    for name in ["_sn_updated_on", "_sn_mod_count"] {
        let error = world
            .db
            .error(&format!("CREATE FOREIGN TABLE incident (sys_id text, {name} text) SERVER acme"))
            .await;
        assert_eq!(error.code().code(), "42939", "{}", error.message());
        assert!(error.message().contains(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_cannot_be_a_remote_tables_asks_for_the_option() {
    let world = World::new().await;
    let error = world.db.error("CREATE FOREIGN TABLE \"my incidents\" (sys_id text) SERVER acme").await;
    assert_eq!(error.code().code(), "HV00R", "{}", error.message());
    assert!(error.hint().is_some_and(|hint| hint.contains("\"table\"")), "{:?}", error.hint());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_utf8_is_refused() {
    let world = World::new().await;
    let name = format!("{}_ascii", world.database);
    world.db.run(&format!("CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")).await;
    let db = connect(world.cluster, &name).await;
    db.run(
        "CREATE EXTENSION servicenow_fdw;
         CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw OPTIONS (instance_url 'https://acme.example')",
    )
    .await;
    let error = db.error("CREATE FOREIGN TABLE incident (sys_id text) SERVER acme").await;
    assert_eq!((error.code().code(), error.message()), ("0A000", "database encoding must be UTF8"));
    assert!(error.hint().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_was_dropped_or_changed_by_hand_is_said_and_made_anew() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    world.db.run(GOOD).await;
    world.sync("good").await;
    for damage in [
        "ALTER EXTENSION servicenow_fdw DROP TABLE servicenow_cache.incident; DROP TABLE servicenow_cache.incident",
        "ALTER TABLE servicenow_cache.incident DROP COLUMN number",
        "ALTER TABLE servicenow_cache.incident ALTER number TYPE varchar(50)",
        "ALTER TABLE servicenow_cache.incident DROP CONSTRAINT incident_pkey",
        "ALTER TABLE servicenow_cache.incident DROP COLUMN sys_mod_count",
    ] {
        world.db.run(damage).await;
        let statement = "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'";
        let error = world.db.error(statement).await;
        assert_eq!(error.code().code(), "55000", "{damage}: {}", error.message());
        assert_eq!(error.hint(), Some("Run SELECT servicenow.resync('public.incident')."), "{damage}");
        crate::follows(&world, "good", "problem").await;
        world.db.run("SELECT servicenow.resync('incident')").await;
        recovers(&world, "incident").await;
        world.db.run("UPDATE incident SET impact_value = impact_value WHERE number = 'INC0012345'").await;
    }
    world.until_like_the_instance("incident", &["number", "state_value=state"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_refuse_what_is_no_foreign_table_of_theirs() {
    let world = World::new().await;
    for call in ["sync('pg_class')", "wait_for_sync('pg_class')", "resync('pg_class')"] {
        let error = world.db.error(&format!("SELECT servicenow.{call}")).await;
        assert_eq!(error.code().code(), "42809", "{call}: {}", error.message());
        assert_eq!(error.message(), "\"pg_class\" is not a foreign table of servicenow_fdw");
    }
    world.import(&["incident"]).await;
    let error =
        world.db.error("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT servicenow.sync('incident')").await;
    assert_eq!(error.code().code(), "25001", "{}", error.message());
    world.db.run("ROLLBACK").await;
    let session = world.session_as("nobody").await;
    for call in [
        "sync('incident')",
        "wait_for_sync('incident')",
        "resync('incident')",
        "stop_worker()",
        "start_worker()",
    ] {
        let error = session.error(&format!("SELECT servicenow.{call}")).await;
        assert_eq!(error.code().code(), "42501", "{call}: {}", error.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_what_is_not_there_says_so() {
    let world = World::new().await;
    let import = |what: &str| format!("IMPORT FOREIGN SCHEMA {what} FROM SERVER acme INTO public");
    let error = world.db.error(&import("servicenow LIMIT TO (incident, no_such_table)")).await;
    assert_eq!((error.code().code(), error.message()), ("HV00R", "[ServiceNow] Invalid table no_such_table"));
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM pg_foreign_table").await, 0, "all or nothing");
    let error = world.db.error(&import("x_no_app")).await;
    assert_eq!(error.code().code(), "HV00Q", "{}", error.message());
    assert!(error.hint().is_some());
    let error = world.db.error(&import("x_acme_app LIMIT TO (incident)")).await;
    assert_eq!(error.code().code(), "HV00R", "{}", error.message());
    assert_eq!(error.message(), "table \"incident\" does not exist in remote schema \"x_acme_app\"");
    let error = world.db.error(&import("servicenow LIMIT TO (\"in cident\")")).await;
    assert_eq!(error.code().code(), "HV00R", "{}", error.message());
    world.db.run("CREATE TABLE incident (id int)").await;
    let error = world.db.error(&import("servicenow LIMIT TO (incident)")).await;
    assert_eq!(error.code().code(), "42P07", "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_be_started_is_said() {
    let cluster = Box::leak(Box::new(world::cluster::Cluster::start("max_worker_processes = 0")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.db.run("CREATE FOREIGN TABLE incident (sys_id text, number text) SERVER acme").await;
    let error = world.db.error("SELECT servicenow.wait_for_sync('incident', '1 s')").await;
    assert_eq!(error.code().code(), "55000", "{}", error.message());
    assert!(error.hint().is_some_and(|hint| hint.contains("max_worker_processes")), "{:?}", error.hint());
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, 0, "reading still works");
}
