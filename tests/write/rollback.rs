//! What ServiceNow has accepted and the transaction here has not kept: it is noted, looked at again, or undone.

use std::time::Duration;

use servicenow_sim::{Dataset, Effect, Fault};
use world::World;
use world::cluster::{Cluster, signal};
use world::death::{arm, until_struck};

use crate::{KNOWN, incidents, known};

const COLUMNS: &[&str] = &["number", "short_description", "state_value=state", "impact_value=impact"];

/// The files in which writes of this world's database are noted, and their sizes.
pub fn notes(world: &World, database: u32) -> Vec<u64> {
    let directory = world.cluster.data().join("servicenow_fdw").join(database.to_string());
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|metadata| metadata.is_file()) // logins have a directory there
        .map(|metadata| metadata.len())
        .filter(|len| *len > 0)
        .collect()
}

async fn oid(world: &World) -> u32 {
    world.db.value("SELECT oid FROM pg_database WHERE datname = current_database()").await
}

/// How many writes to incidents are not settled.
pub async fn pending(world: &World) -> i64 {
    let pending =
        "SELECT pending_writes FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass";
    world.session().await.value(pending).await
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_noted_until_their_transaction_has_been_committed() {
    let world = incidents().await;
    let database = oid(&world).await;
    assert_eq!(pending(&world).await, 0);
    world.db.run(&format!("BEGIN; UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    assert_eq!((notes(&world, database).len(), pending(&world).await), (1, 1));
    world.db.run("INSERT INTO incident (short_description) VALUES ('a'), ('b')").await;
    assert_eq!((notes(&world, database).len(), pending(&world).await), (1, 3));
    world.db.run("COMMIT").await;
    assert_eq!((notes(&world, database).len(), pending(&world).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rolled_back_is_looked_at_without_a_poll() {
    let world = incidents().await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.sync("incident").await;
    let database = oid(&world).await;
    let gone: String = world.db.value("SELECT sys_id FROM incident WHERE state = 'Canceled' LIMIT 1").await;
    for end in ["ROLLBACK", "ROLLBACK TO s; COMMIT"] {
        let text = format!("taken back by {end}");
        world
            .db
            .run(&format!(
                "BEGIN; SAVEPOINT s;
                 UPDATE incident SET short_description = '{text}' WHERE {KNOWN};
                 INSERT INTO incident (short_description) VALUES ('{text}');
                 DELETE FROM incident WHERE sys_id = '{gone}';
                 {end}"
            ))
            .await;
        world.until(&format!("SELECT count(*) = 2 FROM incident WHERE short_description = '{text}'")).await;
        world.until(&format!("SELECT count(*) = 0 FROM incident WHERE sys_id = '{gone}'")).await;
        world.until_like_the_instance("incident", COLUMNS).await;
        world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
        assert!(notes(&world, database).is_empty());
        world
            .sim
            .edit()
            .insert("incident", &[("sys_id", gone.as_str()), ("state", "8")])
            .expect("it is free");
        world.db.run("SELECT servicenow.sync('incident')").await;
    }
}

/// Only what was rolled back is looked at, though it is noted in one file with what was kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_keeps_is_not_undone_with_what_it_rolls_back() {
    let world = compensated().await;
    let id = known(&world);
    world
        .db
        .run(&format!(
            "BEGIN;
             UPDATE incident SET short_description = 'kept' WHERE {KNOWN};
             SAVEPOINT s;
             INSERT INTO incident (short_description) VALUES ('not kept');
             ROLLBACK TO s;
             COMMIT"
        ))
        .await;
    until_settled(&world).await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("kept"));
    assert!(world.sim.edit().find("incident", "short_description=not kept").expect("a query").is_empty());
}

/// A world whose incidents are restored after a rollback.
pub async fn compensated() -> World {
    let world = incidents().await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')").await;
    world.sync("incident").await;
    world
}

/// Waits until nothing is left to be settled.
pub async fn until_settled(world: &World) {
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    world.until_like_the_instance("incident", COLUMNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_wants_it_has_its_records_restored_after_a_rollback() {
    let world = compensated().await;
    let id = known(&world);
    let gone: String = world.db.value("SELECT sys_id FROM incident WHERE state = 'Canceled' LIMIT 1").await;
    let fields = [
        "number",
        "short_description",
        "state",
        "impact",
        "caller_id",
        "opened_at",
        "work_start",
        "category",
    ];
    let image = |id: &str| -> Vec<Option<String>> {
        fields.iter().map(|f| world.remote("incident", id, f)).collect()
    };
    let before = (image(&id), image(&gone));
    world
        .db
        .run(&format!(
            "BEGIN;
             UPDATE incident SET short_description = 'first', impact_value = 3 WHERE {KNOWN};
             UPDATE incident SET short_description = 'second', category = 'Hardware' WHERE {KNOWN};
             DELETE FROM incident WHERE sys_id = '{gone}';
             INSERT INTO incident (short_description) VALUES ('made'), ('made');
             UPDATE incident SET description = 'changed' WHERE short_description = 'made';
             ROLLBACK"
        ))
        .await;
    until_settled(&world).await;
    assert_eq!((image(&id), image(&gone)), before);
    assert!(world.sim.edit().find("incident", "short_description=made").expect("a query").is_empty());
    assert_eq!(
        world.db.value::<i64>(&format!("SELECT count(*) FROM incident WHERE sys_id = '{gone}'")).await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_somebody_has_changed_since_is_left_and_that_is_said() {
    let world = compensated().await;
    let id = known(&world);
    world.db.run(&format!("BEGIN; UPDATE incident SET short_description = 'ours' WHERE {KNOWN}")).await;
    world.sim.clock().advance(Duration::from_secs(2));
    world.sim.edit().update("incident", &id, &[("short_description", "theirs")]).expect("it is there");
    world.db.run("ROLLBACK").await;
    until_settled(&world).await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("theirs"));
    let log = world.cluster.log();
    let line = format!(
        "record \"{id}\" of table \"incident\" was not restored after a rollback: somebody else has changed the record"
    );
    assert!(log.contains(&line), "it is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_undone_at_once_is_undone_later() {
    let world = compensated().await;
    let id = known(&world);
    let before = world.remote("incident", &id, "short_description");
    world.db.run(&format!("BEGIN; UPDATE incident SET short_description = 'ours' WHERE {KNOWN}")).await;
    world.sim.set(|s| s.availability = servicenow_sim::Availability::Down);
    world.db.run("ROLLBACK").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pending(&world).await, 1);
    world.sim.set(|s| s.availability = servicenow_sim::Availability::Up);
    until_settled(&world).await;
    assert_eq!(world.remote("incident", &id, "short_description"), before);
}

/// The session is gone, and nobody was told how the transaction ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_in_a_transaction_leaves_nothing_behind() {
    let world = compensated().await;
    let id = known(&world);
    let before = world.remote("incident", &id, "short_description");
    let other = world.session().await;
    other.run(&format!("BEGIN; UPDATE incident SET short_description = 'ours' WHERE {KNOWN}")).await;
    drop(other);
    until_settled(&world).await;
    assert_eq!(world.remote("incident", &id, "short_description"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_not_the_version_in_the_cache_is_not_written_if_the_table_wants_that() {
    let world = incidents().await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.sync("incident").await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD optimistic_lock 'true')").await;
    world.sync("incident").await;
    let id = known(&world);
    world.db.run(&format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}")).await;
    world.sim.clock().advance(Duration::from_secs(2));
    world.sim.edit().update("incident", &id, &[("short_description", "theirs")]).expect("it is there");
    let sent = world.writes().len();
    for statement in [
        format!("UPDATE incident SET impact_value = 1 WHERE {KNOWN}"),
        format!("DELETE FROM incident WHERE {KNOWN}"),
    ] {
        let error = world.db.error(&statement).await;
        assert_eq!(error.code().code(), "40001", "{}", error.message());
        assert!(error.detail().is_some_and(|detail| detail.contains(&id)) && error.hint().is_some());
    }
    // One of many keeps the others from being written, too.
    let error = world.db.error("UPDATE incident SET description = 'many'").await;
    assert_eq!(error.code().code(), "40001", "{}", error.message());
    assert!(error.detail().is_some_and(|detail| detail.contains(&id)));
    assert_eq!(world.writes().len(), sent);
    world.db.run("SELECT servicenow.sync('incident')").await;
    world.db.run(&format!("UPDATE incident SET impact_value = 1 WHERE {KNOWN}")).await;
    world.db.run("UPDATE incident SET description = 'many'").await;
    assert_eq!(world.remote("incident", &id, "impact").as_deref(), Some("1"));
}

/// Nobody can undo anything without a login; what the instance has is seen all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_gone_keeps_nothing_from_being_looked_at() {
    let world = compensated().await;
    let role = world.role("editor");
    world
        .db
        .run(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, UPDATE ON incident TO {role};
             CREATE USER MAPPING FOR {role} SERVER acme
             OPTIONS (auth 'client_credentials', client_id 'fdw-client', client_secret 'fdw-client-secret')"
        ))
        .await;
    let session = world.session().await;
    session.run(&format!("SET ROLE {role}")).await;
    session.run(&format!("BEGIN; UPDATE incident SET short_description = 'ours' WHERE {KNOWN}")).await;
    world
        .db
        .run(&format!("DROP USER MAPPING FOR {role} SERVER acme; DROP USER MAPPING FOR PUBLIC SERVER acme"))
        .await;
    session.run("ROLLBACK").await;
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    let id = known(&world);
    let line = format!("record \"{id}\" of table \"incident\" was not restored after a rollback: ");
    assert!(world.cluster.log().contains(&line), "it is in the log");
    world
        .db
        .run(
            "CREATE USER MAPPING FOR PUBLIC SERVER acme
             OPTIONS (auth 'client_credentials', client_id 'fdw-client', client_secret 'fdw-client-secret')",
        )
        .await;
    world.until_like_the_instance("incident", COLUMNS).await;
    assert_eq!(world.remote("incident", &id, "short_description").as_deref(), Some("ours"));
}

/// The instance is slow: it comes to a write only after the session has gone and the record was looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_carried_out_after_everybody_has_gone_is_found_and_undone() {
    let world = World::with(Dataset::Small, ", request_timeout '6s'").await;
    world.import(&["incident", "problem"]).await;
    world
        .db
        .run("ALTER SERVER acme OPTIONS (SET poll_interval '1h'); ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')")
        .await;
    for table in ["incident", "problem"] {
        world.sync(table).await;
    }
    for (table, is_undone) in [("incident", true), ("problem", false)] {
        let id: String = world.db.value(&format!("SELECT min(sys_id) FROM {table}")).await;
        let before = world.remote(table, &id, "short_description");
        let session = world.session().await;
        let pid: i32 = session.value("SELECT pg_backend_pid()").await;
        let late = Fault::new(Effect::Delay { ms: 4_000 }).method("PATCH").table(table);
        let fault = world.sim.fault(late);
        let cancel = async {
            while world.sim.fault_count(fault) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            world.db.run(&format!("SELECT pg_cancel_backend({pid})")).await;
        };
        let update = format!("UPDATE {table} SET short_description = 'late' WHERE sys_id = '{id}'");
        let (error, ()) = tokio::join!(session.error(&update), cancel);
        assert_eq!(error.code().code(), "57014", "{}", error.message());
        assert_eq!(world.remote(table, &id, "short_description"), before, "it has not been carried out yet");
        let pending = format!(
            "SELECT sum(pending_writes) = 0 FROM servicenow.sync_status WHERE foreign_table = '{table}'::regclass"
        );
        world.until(&pending).await;
        let sent = world.writes().iter().filter(|write| write.table.as_deref() == Some(table)).count();
        let late = Some("late".to_owned());
        let expected = if is_undone { (before, 2) } else { (late, 1) };
        assert_eq!((world.remote(table, &id, "short_description"), sent), expected, "{table}");
        world.until_like_the_instance(table, &["number", "short_description"]).await;
        world.sim.remove_fault(fault);
    }
}

/// A world on a cluster of its own, with more settings.
async fn alone(settings: &str) -> World {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(settings)));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.import(&["incident"]).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undoing_that_fails_by_a_bug_is_tried_again() {
    let world = alone("").await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')").await;
    world.sync("incident").await;
    let id = known(&world);
    let before = world.remote("incident", &id, "short_description");
    arm(&world, "recovery.undoing:panic").await;
    world
        .db
        .run(&format!("BEGIN; UPDATE incident SET short_description = 'ours' WHERE {KNOWN}; ROLLBACK"))
        .await;
    until_struck(&world, "recovery.undoing", 0).await;
    world.cluster.configure("");
    until_settled(&world).await;
    assert_eq!(world.remote("incident", &id, "short_description"), before);
    let line = "could not undo writes to table \"incident\", trying again: the task failed unexpectedly";
    assert!(world.cluster.log().contains(line), "it is in the log");
}

/// What polls do not see, and what is to be undone, is on disk before the instance hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_and_what_is_to_be_undone_are_synced_before_they_are_sent() {
    let world = alone("fsync = on").await;
    let delete = format!("DELETE FROM incident WHERE {KNOWN}");
    let update = format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}");
    let session = world.session().await;
    session.run("LOAD 'servicenow_fdw'; SET servicenow_fdw.failpoint = 'push.syncing:error'").await;
    assert!(session.error(&delete).await.message().contains("push.syncing"));
    assert!(world.writes().is_empty());
    session.run(&update).await;
    assert_eq!(world.writes().len(), 1, "it is synced meanwhile");
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')").await;
    world.sync("incident").await;
    let update = update.replace("= 3", "= 2");
    assert!(session.error(&update).await.message().contains("push.syncing"));
    assert_eq!(world.writes().len(), 1);
    session.run(&format!("RESET servicenow_fdw.failpoint; {update}; {delete}")).await;
    assert_eq!(world.writes().len(), 3);
}

/// What the instance has accepted is not lost with the server, whatever the session thinks of its own work.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_has_written_is_committed_synchronously() {
    let world = alone("").await;
    world.stop_worker().await;
    world.db.run("CREATE TABLE local (text text); SET synchronous_commit = off").await;
    // Nobody else is to write the log.
    let writer: i32 =
        world.db.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").await;
    signal(writer as u32, "-STOP");
    let unwritten = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn())::float8";
    let fill = "INSERT INTO local SELECT string_agg(md5(n::text), '') FROM generate_series(1, 40) n";
    world.db.run(fill).await;
    assert!(world.db.value::<f64>(unwritten).await > 1_000.0, "others are committed as they want");
    world.db.run(&format!("BEGIN; {fill}; UPDATE incident SET impact_value = 3 WHERE {KNOWN}; COMMIT")).await;
    assert!(world.db.value::<f64>(unwritten).await < 1_000.0);
    signal(writer as u32, "-CONT");
}
