//! When writes are sent: with the statement, with COMMIT, or not at all.

use world::{INTEGRATION, World};

use crate::batches::calls;
use crate::{KNOWN, incidents, known, world_with};

const COLUMNS: &[&str] = &["number", "short_description", "state_value=state", "impact_value=impact"];

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_the_calls_and_makes_none() {
    let world = incidents().await;
    let id = known(&world);
    world.db.run("SET servicenow_fdw.push = 'dry_run'; SET log_min_messages = 'notice'").await;
    for (statement, rows, call) in [
        (
            format!("UPDATE incident SET state = 'On Hold' WHERE {KNOWN}"),
            1,
            format!("PATCH /api/now/table/incident/{id} {{\"state\":\"3\"}}"),
        ),
        (format!("DELETE FROM incident WHERE {KNOWN}"), 1, format!("DELETE /api/now/table/incident/{id}")),
        (
            "INSERT INTO incident (sys_id, short_description) VALUES ('feed', 'x')".to_owned(),
            1,
            "POST /api/now/table/incident {\"short_description\":\"x\",\"sys_id\":\"feed\"}".to_owned(),
        ),
    ] {
        assert_eq!(world.db.client().execute(&statement, &[]).await.expect(&statement), rows, "{statement}");
        assert!(world.cluster.log().contains(&format!("NOTICE:  dry run: {call}")), "{call}");
    }
    let row = world
        .db
        .rows(&format!(
            "UPDATE incident SET state = 'On Hold' WHERE {KNOWN} RETURNING state, state_value, number"
        ))
        .await;
    assert_eq!((row[0].get::<_, &str>(0), row[0].get::<_, &str>(2)), ("On Hold", "INC0012345"));
    assert!(world.writes().is_empty());
    world.until_like_the_instance("incident", COLUMNS).await;
    let error = world.db.error(&format!("UPDATE incident SET state = 'invalid-state' WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "23514");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_can_wait_for_the_commit() {
    let world = incidents().await;
    let id = known(&world);
    world.db.run("SET servicenow_fdw.push = 'commit'").await;
    world.db.run("BEGIN").await;
    let row = world
        .db
        .rows("INSERT INTO incident (short_description, state, impact_value) VALUES ('late', 'New', 2) RETURNING sys_id, number, state, state_value::text, priority")
        .await;
    let made: String = row[0].get(0);
    assert_eq!(row[0].get::<_, Option<&str>>(1), None, "only the instance knows its number");
    assert_eq!((row[0].get::<_, &str>(2), row[0].get::<_, &str>(3)), ("New", "1"));
    assert_eq!(row[0].get::<_, Option<&str>>(4), None);
    world
        .db
        .run(&format!(
            "UPDATE incident SET state = 'On Hold' WHERE {KNOWN};
             UPDATE incident SET short_description = 'late, too' WHERE {KNOWN};
             UPDATE incident SET description = 'more' WHERE short_description = 'late'"
        ))
        .await;
    assert_eq!(
        world.db.value::<String>(&format!("SELECT state_value::text FROM incident WHERE {KNOWN}")).await,
        "3"
    );
    assert!(world.writes().is_empty());
    world.db.run("COMMIT").await;
    assert_eq!(world.writes().len(), 2, "writes to one record are joined: {:?}", world.writes());
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("late, too"));
    assert_eq!(world.remote("incident", &id, "state").as_deref(), Some("3"));
    assert_eq!(world.remote("incident", &made, "description").as_deref(), Some("more"));
    let number: String =
        world.db.value(&format!("SELECT number FROM incident WHERE sys_id = '{made}'")).await;
    assert_eq!(world.remote("incident", &made, "number"), Some(number));
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_commit_is_never_sent_if_it_is_rolled_back() {
    let world = incidents().await;
    world.db.run("SET servicenow_fdw.push = 'commit'").await;
    world
        .db
        .run(&format!(
            "BEGIN; UPDATE incident SET impact_value = 3 WHERE {KNOWN}; DELETE FROM incident WHERE state = 'Canceled'; ROLLBACK;
             BEGIN;
             UPDATE incident SET short_description = 'kept' WHERE {KNOWN};
             SAVEPOINT s;
             INSERT INTO incident (short_description) VALUES ('not kept');
             UPDATE incident SET short_description = 'not kept' WHERE {KNOWN};
             ROLLBACK TO s;
             INSERT INTO incident (sys_id, short_description) VALUES ('feedfeedfeedfeedfeedfeedfeedfeed', 'made');
             DELETE FROM incident WHERE short_description = 'made';
             COMMIT"
        ))
        .await;
    assert_eq!(world.writes().len(), 1, "{:?}", world.writes());
    assert_eq!(world.remote("incident", &known(&world), "short_description").as_deref(), Some("kept"));
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_instance_refuses_makes_the_commit_fail() {
    let world = incidents().await;
    world.db.run("CREATE TABLE local (n int)").await;
    world.db.run("SET servicenow_fdw.push = 'commit'").await;
    world
        .db
        .run(&format!(
            "BEGIN; INSERT INTO local VALUES (1); UPDATE incident SET state = 'Resolved' WHERE {KNOWN}"
        ))
        .await;
    let error = world.db.error("COMMIT").await;
    assert_eq!(error.code().code(), "23502", "{}", error.message());
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM local").await, 0);
    assert_eq!(
        world.db.value::<String>(&format!("SELECT state FROM incident WHERE {KNOWN}")).await,
        "In Progress"
    );
    // A statement of its own is a transaction of its own.
    let error = world.db.error(&format!("UPDATE incident SET state = 'Resolved' WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "23502", "{}", error.message());
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_commit_cannot_be_prepared() {
    let world = world_with(&["incident"]).await;
    world.db.run("SET servicenow_fdw.push = 'commit'").await;
    world.db.run(&format!("BEGIN; UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    let error = world.db.error("PREPARE TRANSACTION 'p'").await;
    assert_eq!(error.code().code(), "0A000", "{}", error.message());
    assert!(world.writes().is_empty());
}

/// What waits was first, and must not come last.
#[tokio::test(flavor = "multi_thread")]
async fn writes_stay_in_order_though_the_setting_changes_in_between() {
    let world = incidents().await;
    world
        .db
        .run(&format!(
            "BEGIN;
             SET LOCAL servicenow_fdw.push = 'commit';
             UPDATE incident SET short_description = 'older' WHERE {KNOWN};
             INSERT INTO incident (sys_id, short_description) VALUES ('feedfeedfeedfeedfeedfeedfeedfeed', 'made');
             SET LOCAL servicenow_fdw.push = 'statement';
             UPDATE incident SET short_description = 'newer' WHERE {KNOWN};
             UPDATE incident SET description = 'changed' WHERE short_description = 'made';
             COMMIT"
        ))
        .await;
    let newer = world.remote("incident", &known(&world), "short_description");
    assert_eq!(newer.as_deref(), Some("newer"));
    let made = world.remote("incident", "feedfeedfeedfeedfeedfeedfeedfeed", "description");
    assert_eq!(made.as_deref(), Some("changed"));
    assert_eq!(
        world.db.value::<String>(&format!("SELECT short_description FROM incident WHERE {KNOWN}")).await,
        "newer"
    );
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// What is deleted makes room before others take its place, and goes only when nothing refers to it any more.
#[tokio::test(flavor = "multi_thread")]
async fn deletions_at_commit_keep_their_place() {
    let world = World::new().await;
    let edit = world.sim.edit();
    edit.grant_role(INTEGRATION, "admin").expect("a role");
    let owner = edit.insert("sys_user", &[("user_name", "owner")]).expect("a user");
    for n in 0..20 {
        let (name, code) = (format!("thing {n}"), format!("T-{n}"));
        let thing = [("name", name.as_str()), ("code", code.as_str()), ("owner", owner.as_str())];
        edit.insert("x_acme_app_thing", &thing).expect("a thing");
    }
    world
        .db
        .run(
            "CREATE FOREIGN TABLE thing (sys_id text, name text, code text, owner text) SERVER acme
             OPTIONS (table 'x_acme_app_thing');
             CREATE FOREIGN TABLE sys_user (sys_id text, user_name text, title text) SERVER acme",
        )
        .await;
    world.sync("thing").await;
    world.sync("sys_user").await;
    // Calls of their own, of which any may come first.
    world.sim.set(|s| (s.batch_api, s.jitter_ms) = (false, 60));
    world
        .db
        .run(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             DELETE FROM thing WHERE code LIKE 'T-%';
             INSERT INTO thing (name, code) SELECT 'new ' || n, 'T-' || n FROM generate_series(0, 19) n;
             COMMIT",
        )
        .await;
    world.until_like_the_instance("thing=x_acme_app_thing", &["name", "code", "owner"]).await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM thing WHERE name LIKE 'new %'").await, 20);
    world
        .db
        .run(&format!(
            "INSERT INTO thing (name, owner) VALUES ('owned', '{owner}');
             BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             UPDATE sys_user SET title = 'leaves' WHERE sys_id = '{owner}';
             UPDATE thing SET owner = NULL WHERE name = 'owned';
             DELETE FROM sys_user WHERE sys_id = '{owner}';
             COMMIT"
        ))
        .await;
    assert!(world.sim.record("sys_user", &owner).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_triggers_of_a_cache_fire_for_what_comes_with_the_commit() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE TABLE seen (id text, number text);
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO public.seen VALUES (NEW.sys_id, NEW.number); RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER see AFTER INSERT OR UPDATE ON servicenow_cache.incident
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION see()",
        )
        .await;
    world.stop_worker().await;
    world.db.run("SET servicenow_fdw.push = 'commit'").await;
    world.db.run("BEGIN; INSERT INTO incident (short_description) VALUES ('late')").await;
    world.db.run("COMMIT").await;
    let with_number = "SELECT count(*) FROM seen WHERE number LIKE 'INC%'";
    assert_eq!(world.db.value::<i64>(with_number).await, 1, "the answer fires them too");
}

/// As a table with pending trigger events: what waits could not be sent any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_writes_that_wait_is_neither_altered_nor_dropped() {
    let world = incidents().await;
    world.db.run("SET servicenow_fdw.push = 'commit'").await;
    let write = format!("UPDATE incident SET short_description = 'late' WHERE {KNOWN}");
    for (command, statement) in [
        ("DROP", "DROP FOREIGN TABLE incident"),
        ("DROP", "DROP SERVER acme CASCADE"),
        ("ALTER", "ALTER FOREIGN TABLE incident DROP COLUMN description"),
        ("ALTER", "ALTER FOREIGN TABLE incident ADD COLUMN more text"),
        ("ALTER", "ALTER FOREIGN TABLE incident OPTIONS (ADD cdc 'false')"),
    ] {
        world.db.run(&format!("BEGIN; {write}")).await;
        let error = world.db.error(statement).await;
        assert_eq!(error.code().code(), "55006", "{statement}: {}", error.message());
        let message = format!(
            "cannot {command} FOREIGN TABLE \"incident\" because it has pending writes to ServiceNow"
        );
        assert_eq!(error.message(), message, "{statement}");
        assert!(error.hint().is_some());
        world.db.run("ROLLBACK").await;
    }
    // What was rolled back does not wait any more.
    world
        .db
        .run(&format!("BEGIN; SAVEPOINT s; {write}; ROLLBACK TO s; DROP FOREIGN TABLE incident; COMMIT"))
        .await;
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_returns_system_columns() {
    let world = incidents().await;
    world.stop_worker().await;
    let columns = "ctid::text, tableoid::regclass::text, xmin::text, cmin::text";
    let read = async |sql: String| -> Vec<String> {
        let rows = world.db.rows(&sql).await;
        (0..4).map(|column| rows[0].get::<_, Option<String>>(column).unwrap_or_default()).collect()
    };
    let there = read(format!("SELECT {columns} FROM incident WHERE {KNOWN}")).await;
    world.db.run("SET servicenow_fdw.push = 'dry_run'").await;
    let update = format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN} RETURNING {columns}");
    assert_eq!(read(update).await, there);
    assert_eq!(read(format!("DELETE FROM incident WHERE {KNOWN} RETURNING {columns}")).await, there);
    let insert = format!("INSERT INTO incident (short_description) VALUES ('x') RETURNING {columns}");
    let made = read(insert).await;
    assert_eq!(made[1], "incident", "{made:?}");
    assert!(world.writes().is_empty());
}

/// Joining writes to a record must not have them overtake what they depend on.
#[tokio::test(flavor = "multi_thread")]
async fn joined_writes_overtake_nothing_they_depend_on() {
    let world = World::new().await;
    let edit = world.sim.edit();
    for (name, code) in [("first", "T-A"), ("second", "T-B")] {
        edit.insert("x_acme_app_thing", &[("name", name), ("code", code)]).expect("a thing");
    }
    world
        .db
        .run(
            "CREATE FOREIGN TABLE thing (sys_id text, name text, code text) SERVER acme OPTIONS (table 'x_acme_app_thing');
             CREATE FOREIGN TABLE incident (sys_id text, short_description text, parent_incident text) SERVER acme",
        )
        .await;
    for table in ["thing", "incident"] {
        world.sync(table).await;
    }
    let (a, b) = ("a".repeat(32), "b".repeat(32));
    // A record must be there before another refers to it.
    world
        .db
        .run(&format!(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             INSERT INTO incident VALUES ('{a}', 'a'), ('{b}', 'b');
             UPDATE incident SET parent_incident = '{b}' WHERE sys_id = '{a}';
             COMMIT"
        ))
        .await;
    let refers = |w: &servicenow_sim::LoggedRequest| {
        w.body.as_ref().is_some_and(|body| body["parent_incident"] == b.as_str())
    };
    let makes =
        |w: &servicenow_sim::LoggedRequest| w.body.as_ref().is_some_and(|body| body["sys_id"] == b.as_str());
    let writes = world.writes();
    let place = |of: &dyn Fn(&servicenow_sim::LoggedRequest) -> bool| {
        writes.iter().position(of).expect("it was sent")
    };
    assert!(place(&makes) < place(&refers), "{writes:?}");
    // A value must be free before another record takes it.
    world
        .db
        .run(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             UPDATE thing SET name = 'one' WHERE code = 'T-A';
             UPDATE thing SET code = 'T-C' WHERE code = 'T-B';
             UPDATE thing SET code = 'T-B' WHERE name = 'one';
             DELETE FROM thing WHERE code = 'T-C';
             UPDATE thing SET code = 'T-C' WHERE name = 'one';
             COMMIT",
        )
        .await;
    world.until_like_the_instance("thing=x_acme_app_thing", &["name", "code"]).await;
    assert_eq!(world.db.value::<String>("SELECT code FROM thing WHERE name = 'one'").await, "T-C");
    // Whoever writes last is last.
    world.session_of("other", "itil.user", "itil-secret").await;
    let other = world.role("other");
    world
        .db
        .run(&format!(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             UPDATE incident SET short_description = '1' WHERE sys_id = '{a}';
             SET ROLE {other};
             UPDATE incident SET short_description = '2' WHERE sys_id = '{a}';
             RESET ROLE;
             UPDATE incident SET short_description = '3' WHERE sys_id = '{a}';
             COMMIT"
        ))
        .await;
    assert_eq!(world.remote("incident", &a, "short_description").as_deref(), Some("3"));
    // Nothing is in the way of these.
    let before = world.writes().len();
    world
        .db
        .run(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             UPDATE incident SET short_description = 'x';
             UPDATE incident SET short_description = 'y';
             COMMIT",
        )
        .await;
    let all: i64 = world.db.value("SELECT count(*) FROM incident").await;
    assert_eq!(world.writes().len() - before, usize::try_from(all).expect("a number"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_says_how_much_of_the_whole_was_accepted() {
    let world = world_with(&["x_acme_app_thing"]).await;
    world.stop_worker().await;
    let error = world
        .db
        .error(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             INSERT INTO x_acme_app_thing (name, code) SELECT 'many ' || n, 'M-' || n FROM generate_series(1, 500) n;
             INSERT INTO x_acme_app_thing (name, code) VALUES ('one more', 'M-501'), ('forbidden', 'M-502');
             COMMIT",
        )
        .await;
    assert_eq!(error.code().code(), "38000", "{}", error.message());
    let there = world.sim.edit().find("x_acme_app_thing", "codeSTARTSWITHM-").expect("a query").len();
    let detail = error.detail().unwrap_or_default();
    let count = format!("{there} records of this transaction had been written in ServiceNow");
    assert!(there >= 500 && detail.contains(&count), "{there}: {detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_commit_takes_no_more_memory_than_it_may() {
    let world = incidents().await;
    let write = |rows: usize| {
        format!(
            "INSERT INTO incident (description) SELECT repeat('x', 100000) FROM generate_series(1, {rows})"
        )
    };
    world.db.run("SET servicenow_fdw.push = 'commit'; SET servicenow_fdw.push_memory = '2MB'").await;
    let error = world.db.error(&write(30)).await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("54000", "too many writes to ServiceNow wait for COMMIT")
    );
    assert_eq!(error.detail(), Some("They may take 2MB of memory (servicenow_fdw.push_memory)."));
    // What a savepoint takes back does not count.
    world
        .db
        .run(&format!(
            "BEGIN; SAVEPOINT s; {0}; ROLLBACK TO s; SAVEPOINT s; {0}; ROLLBACK TO s; COMMIT",
            write(15)
        ))
        .await;
    assert!(world.writes().is_empty());
}

/// A loop over several tables is as common as a statement on many rows.
#[tokio::test(flavor = "multi_thread")]
async fn writes_to_several_tables_by_turns_take_few_calls_at_commit() {
    let world = World::new().await;
    world.sim.edit().grant_role(INTEGRATION, "admin").expect("a role");
    world
        .db
        .run(
            "CREATE FOREIGN TABLE thing (sys_id text, name text, code text, owner text) SERVER acme
             OPTIONS (table 'x_acme_app_thing');
             CREATE FOREIGN TABLE sys_user (sys_id text, user_name text, title text) SERVER acme",
        )
        .await;
    world.sync("thing").await;
    world.sync("sys_user").await;
    let before = calls(&world);
    world
        .db
        .run(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             DO $$ BEGIN
                 FOR n IN 1..30 LOOP
                     INSERT INTO sys_user VALUES (md5('user ' || n), 'user ' || n);
                     INSERT INTO thing VALUES (md5('thing ' || n), 'thing ' || n, 'L-' || n, md5('user ' || n));
                     UPDATE sys_user SET title = 'has thing ' || n WHERE sys_id = md5('user ' || n);
                 END LOOP;
             END $$;
             COMMIT",
        )
        .await;
    let made = calls(&world) - before;
    assert!(made <= 15, "{made} calls");
    world.until_like_the_instance("thing=x_acme_app_thing", &["name", "code", "owner"]).await;
    world.until_like_the_instance("sys_user", &["user_name", "title"]).await;
    let writes = world.writes();
    let place = |table: &str, method: &str, sys_id: String| {
        let is_it = |w: &servicenow_sim::LoggedRequest| {
            w.path.contains(table) && w.method == method && format!("{w:?}").contains(&sys_id)
        };
        writes.iter().position(is_it).unwrap_or_else(|| panic!("{method} {table} {sys_id}"))
    };
    for n in 1..=30 {
        let id = async |of: &str| world.db.value::<String>(&format!("SELECT md5('{of} {n}')")).await;
        let (user, thing) = (id("user").await, id("thing").await);
        let owned = place("x_acme_app_thing", "POST", thing);
        assert!(place("sys_user", "POST", user.clone()) < owned, "who is referred to is made first");
        assert!(owned < place("sys_user", "PATCH", user), "and changed only afterwards");
    }
}

/// The record may be there without the cache knowing it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_may_be_passed_over_is_not_joined_with_what_comes_after() {
    let world = world_with(&["incident", "x_acme_app_thing"]).await;
    world.stop_worker().await;
    let edit = world.sim.edit();
    let incident = |text| edit.insert("incident", &[("short_description", text)]).expect("an incident");
    let (changed, deleted) = (incident("to be changed"), incident("to be deleted"));
    edit.insert("x_acme_app_thing", &[("name", "there"), ("code", "T-1")]).expect("a thing");
    let other = "e".repeat(32);
    world
        .db
        .run(&format!(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             INSERT INTO incident (sys_id, short_description) VALUES ('{changed}', 'mine'), ('{deleted}', 'mine')
                 ON CONFLICT DO NOTHING;
             UPDATE incident SET description = 'changed' WHERE sys_id = '{changed}';
             DELETE FROM incident WHERE sys_id = '{deleted}';
             INSERT INTO x_acme_app_thing (sys_id, name, code) VALUES ('{other}', 'mine', 'T-1') ON CONFLICT DO NOTHING;
             UPDATE x_acme_app_thing SET name = 'still mine' WHERE sys_id = '{other}';
             DELETE FROM x_acme_app_thing WHERE sys_id = '{other}';
             COMMIT"
        ))
        .await;
    let remote = |field| world.remote("incident", &changed, field);
    assert_eq!(remote("short_description").as_deref(), Some("to be changed"));
    assert_eq!(remote("description").as_deref(), Some("changed"));
    assert!(world.sim.record("incident", &deleted).is_none());
    assert_eq!(
        world.remote("x_acme_app_thing", &world.find("x_acme_app_thing", "code=T-1"), "name").as_deref(),
        Some("there")
    );
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until_like_the_instance("incident", &["short_description", "description"]).await;
    world.until_like_the_instance("x_acme_app_thing", &["name", "code"]).await;
}

/// What waits for COMMIT is not sent by a transaction that may not write any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_made_read_only_sends_nothing_at_its_end() {
    let world = incidents().await;
    world.db.run("SET servicenow_fdw.push = 'commit'").await;
    let text = world.remote("incident", &known(&world), "short_description");
    world
        .db
        .run(&format!(
            "BEGIN; UPDATE incident SET short_description = 'x' WHERE {KNOWN};
             INSERT INTO incident (short_description) VALUES ('x'); SET TRANSACTION READ ONLY"
        ))
        .await;
    let error = world.db.error("COMMIT").await;
    assert_eq!(error.code().code(), "25006", "{}", error.message());
    assert!(error.message().contains("ServiceNow"), "{}", error.message());
    assert!(world.writes().is_empty());
    assert_eq!(world.remote("incident", &known(&world), "short_description"), text);
    let rows = "SELECT count(*) FROM incident WHERE short_description = 'x'";
    assert_eq!(world.db.value::<i64>(rows).await, 0);
}
