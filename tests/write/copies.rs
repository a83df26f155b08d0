//! Copies of a data directory: they must not take back what the original has committed.

use std::io::Write;
use std::path::Path;

use servicenow_sim::Dataset;
use world::cluster::Cluster;
use world::{Session, World, connect};

use crate::{KNOWN, known};

/// A world on a cluster of its own, whose incidents are restored after a rollback, and a session that has written to the
/// one everybody knows and not committed. No worker runs.
async fn writing() -> (World, Session) {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.import(&["incident"]).await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')").await;
    world.sync("incident").await;
    world.stop_worker().await;
    let session = world.session().await;
    session.run(&format!("BEGIN; UPDATE incident SET short_description = 'ours' WHERE {KNOWN}")).await;
    world.db.run("CHECKPOINT").await;
    (world, session)
}

/// Starts a copy, and waits until its worker has done what it may.
async fn recover(world: World, copy: Cluster) -> World {
    let copy: &'static Cluster = Box::leak(Box::new(copy));
    copy.control(&["start"]);
    let db = connect(copy, &world.database).await;
    let copy = World { cluster: copy, db, ..world };
    copy.until("SELECT NOT pg_is_in_recovery()").await;
    copy.db.run("SELECT servicenow.start_worker()").await;
    copy.sync("incident").await;
    copy.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    copy.until_like_the_instance("incident", &["number", "short_description"]).await;
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_has_no_notes_of_writes() {
    let (world, session) = writing().await;
    let socket = world.cluster.socket().display().to_string();
    let program = world.cluster.bin().join("pg_basebackup");
    let copy = world.cluster.copied(&program, &["-h", &socket, "-U", "postgres", "--checkpoint=fast", "-D"]);
    let notes = walk(&copy.data().join("servicenow_fdw"));
    assert!(notes.is_empty(), "{notes:?}");
    let (id, sent) = (known(&world), world.writes().len());
    let copy = recover(world, copy).await;
    session.run("COMMIT").await;
    assert_eq!(copy.remote("incident", &id, "short_description").as_deref(), Some("ours"));
    assert_eq!(copy.writes().len(), sent, "the copy has written nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_directory_undoes_nothing_and_says_so() {
    let (world, session) = writing().await;
    let data = world.cluster.data().display().to_string();
    let copy = world.cluster.copied(Path::new("/bin/cp"), &["-a", &data]);
    let files = walk(&copy.data().join("servicenow_fdw"));
    let is_note = |path: &&std::path::PathBuf| {
        let path = path.to_string_lossy();
        !path.contains("/logins/") && !path.ends_with("pgsql_tmp_mark")
    };
    assert_eq!(files.iter().filter(is_note).count(), 1, "{files:?}");
    let (id, sent) = (known(&world), world.writes().len());
    let copy = recover(world, copy).await;
    session.run("COMMIT").await;
    assert_eq!(copy.remote("incident", &id, "short_description").as_deref(), Some("ours"));
    assert_eq!(copy.writes().len(), sent, "the copy has written nothing");
    let text = format!(
        "record \"{id}\" of table \"incident\" was not restored after a rollback: the note of the write was copied from another place, where the transaction may have been committed"
    );
    assert!(copy.cluster.log().contains(&text), "it is in the log");
    let status = "SELECT last_error FROM servicenow.sync_status WHERE last_error_at IS NOT NULL";
    assert_eq!(copy.db.value::<String>(status).await, text);
}

/// The server's own directory, after a crash, at the same place: that is no copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_moved_on_its_disk_is_no_copy() {
    let (world, session) = writing().await;
    let id = known(&world);
    world.cluster.control(&["-m", "immediate", "stop"]);
    drop(session);
    let data = world.cluster.data().display().to_string();
    let moved = world.cluster.copied(Path::new("/bin/mv"), &[&data]);
    let moved = recover(world, moved).await;
    assert_ne!(moved.remote("incident", &id, "short_description").as_deref(), Some("ours"));
}

/// Another timeline begins where a server was restored to a point in time: the numbers of transactions mean others there.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_timeline_has_left_is_not_undone_and_that_is_said() {
    let (world, session) = writing().await;
    let id = known(&world);
    world.cluster.control(&["-m", "immediate", "stop"]);
    drop(session);
    let data = world.cluster.data().display().to_string();
    let restored = world.cluster.copied(Path::new("/bin/mv"), &[&data]);
    std::fs::write(restored.data().join("recovery.signal"), "").expect("a file");
    let settings = std::fs::OpenOptions::new().append(true).open(restored.data().join("postgresql.conf"));
    writeln!(settings.expect("a file"), "restore_command = '/bin/false'").expect("a line");
    let sent = world.writes().len();
    let restored = recover(world, restored).await;
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    restored.db.run("CHECKPOINT").await;
    assert_eq!(restored.db.value::<i32>(timeline).await, 2);
    assert_eq!(restored.remote("incident", &id, "short_description").as_deref(), Some("ours"));
    assert_eq!(restored.writes().len(), sent);
    let error: String = restored.db.value("SELECT last_error FROM servicenow.sync_status").await;
    assert!(error.contains(&id) && error.contains("is of another timeline"), "{error}");
}

/// The files below a directory.
fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standby_writes_are_refused_before_any_call() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up("").await;
    world.import(&["incident"]).await;
    world.stop_worker().await;
    let (socket, program) = (cluster.socket().display().to_string(), cluster.bin().join("pg_basebackup"));
    let standby =
        cluster.copied(&program, &["-h", &socket, "-U", "postgres", "--checkpoint=fast", "-R", "-D"]);
    standby.control(&["start"]);
    let session = connect(&standby, &world.database).await;
    let before = world.sim.requests().len();
    for push in ["statement", "commit", "dry_run"] {
        session.run(&format!("SET servicenow_fdw.push = '{push}'")).await;
        for (statement, verb) in [
            ("INSERT INTO incident (short_description) VALUES ('x')", "INSERT"),
            ("UPDATE incident SET short_description = 'x'", "UPDATE"),
            ("DELETE FROM incident", "DELETE"),
        ] {
            let error = session.error(statement).await;
            let message = format!("cannot execute {verb} in a read-only transaction");
            assert_eq!((error.code().code(), error.message()), ("25006", message.as_str()));
        }
    }
    let here = session.value::<i64>("SELECT count(*) FROM incident").await;
    assert_eq!(here, world.db.value::<i64>("SELECT count(*) FROM incident").await);
    assert_eq!(world.sim.requests().len(), before);
}
