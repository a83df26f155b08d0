//! The disk on which writes are noted: when it is full nothing is sent, and what is damaged on it does no harm.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use world::World;

use crate::rollback::notes;
use crate::{KNOWN, incidents, known};

const COLUMNS: &[&str] = &["number", "short_description", "state_value=state", "impact_value=impact"];

async fn database(world: &World) -> u32 {
    world.db.value("SELECT oid FROM pg_database WHERE datname = current_database()").await
}

/// The directory in which a world's writes are noted, whether or not it is there.
async fn directory(world: &World) -> PathBuf {
    world.cluster.data().join("servicenow_fdw").join(database(world).await.to_string())
}

/// Makes a file or directory the server's, like another one.
pub fn give(path: &Path, like: &Path) {
    let owner = std::fs::metadata(like).expect("it is there");
    chown(path, Some(owner.uid()), Some(owner.gid())).expect("its owner may do this");
}

/// Writes of every kind.
fn statements() -> Vec<String> {
    vec![
        format!("UPDATE incident SET impact_value = 3 WHERE {KNOWN}"),
        "INSERT INTO incident (short_description) VALUES ('x')".to_owned(),
        "INSERT INTO incident (short_description) SELECT 'x' FROM generate_series(1, 30)".to_owned(),
        format!("DELETE FROM incident WHERE {KNOWN}"),
        format!("SET servicenow_fdw.push = 'commit'; UPDATE incident SET impact_value = 3 WHERE {KNOWN}"),
    ]
}

async fn all_fail(world: &World, sqlstate: &str) {
    let session = world.session().await;
    let sent = world.writes().len();
    for statement in statements() {
        let error = session.error(&statement).await;
        assert_eq!(error.code().code(), sqlstate, "{statement}: {}", error.message());
        assert!(error.message().starts_with("could not write file \""), "{}", error.message());
        let detail = "Nothing was sent to ServiceNow: writes are noted on disk before.";
        assert_eq!(error.detail(), Some(detail));
        session.run("RESET servicenow_fdw.push").await;
    }
    assert_eq!(world.writes().len(), sent);
    session.run("SELECT count(*) FROM incident").await;
}

/// As [`all_fail`], but nothing does.
async fn all_succeed(world: &World) {
    for statement in statements() {
        world.db.run(&statement).await;
    }
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    assert!(notes(world, database(world).await).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_that_cannot_be_noted() {
    let world = incidents().await;
    let directory = directory(&world).await;
    // A file is where the directory should be.
    std::fs::create_dir_all(directory.parent().expect("it has one")).expect("a directory");
    give(directory.parent().expect("it has one"), &world.cluster.data());
    let _none_yet = std::fs::remove_dir_all(&directory);
    std::fs::write(&directory, "").expect("a file");
    all_fail(&world, "58030").await;
    std::fs::remove_file(&directory).expect("the file");
    all_succeed(&world).await;
}

/// A small disk of its own, while it lives.
pub struct Disk(PathBuf);

impl Disk {
    /// None if this process may not have one.
    pub fn mount(at: &Path, bytes: u64) -> Option<Disk> {
        let owner = std::fs::metadata(at).expect("a directory");
        let options = format!("size={bytes},mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        mount.is_ok_and(|mount| mount.status.success()).then(|| Disk(at.to_owned()))
    }

    /// Writes a file until all but so many bytes are used.
    pub fn fill(&self, bytes: usize) -> PathBuf {
        let path = self.0.join("filler.new");
        let mut file = std::fs::File::create(&path).expect("a file");
        while file.write_all(&[0; 512]).is_ok() {}
        let length = file.metadata().expect("a file").len();
        file.set_len(length - bytes as u64).expect("it is longer");
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, as sessions have files open there.
        let _umount = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_when_the_disk_is_full() {
    let world = incidents().await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')").await;
    world.sync("incident").await;
    let directory = directory(&world).await;
    std::fs::create_dir_all(&directory).expect("a directory");
    give(directory.parent().expect("it has one"), &world.cluster.data());
    give(&directory, &world.cluster.data());
    let Some(disk) = Disk::mount(&directory, 256 << 10) else {
        eprintln!("NOT TESTED: a disk that is full, as this user may not mount one");
        return;
    };
    let filler = disk.fill(0);
    all_fail(&world, "53100").await;
    // What is written of a note that does not fit is cut off again, and what comes after it is read.
    let before = world.remote("incident", &known(&world), "short_description");
    disk.fill(16 << 10);
    let session = world.session().await;
    session
        .run(&format!("BEGIN; UPDATE incident SET short_description = 'first' WHERE {KNOWN}; SAVEPOINT s"))
        .await;
    let large = "INSERT INTO incident (short_description, description) VALUES ('large', repeat('x', 100000))";
    assert_eq!(session.error(large).await.code().code(), "53100");
    session.run("ROLLBACK TO s; INSERT INTO incident (short_description) VALUES ('second'); ROLLBACK").await;
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    assert_eq!(world.remote("incident", &known(&world), "short_description"), before);
    let made = world.sim.edit().find("incident", "short_descriptionINlarge,second").expect("a query");
    assert!(made.is_empty(), "{made:?}");
    std::fs::remove_file(filler).expect("the file");
    all_succeed(&world).await;
}

/// What a crash of the machine may leave of the last note.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_and_files_that_are_none_do_no_harm() {
    let world = incidents().await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    world.sync("incident").await;
    world.stop_worker().await;
    let directory = directory(&world).await;
    let texts: Vec<String> = (0..4).map(|n| format!("torn {n}")).collect();
    for text in &texts {
        let session = world.session().await;
        session
            .run(&format!("BEGIN; INSERT INTO incident (short_description) VALUES ('{text}'); ROLLBACK"))
            .await;
    }
    let files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("a directory")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.is_file())
        .collect();
    assert_eq!(files.len(), texts.len());
    let torn: [&[u8]; 4] = [b"\0", &[0; 4096], b"\x10\0\0\0\x01\x02\x03\x04 not a note", &[0xff; 100]];
    for (file, torn) in files.iter().zip(torn) {
        let mut file = std::fs::OpenOptions::new().append(true).open(file).expect("a file");
        file.write_all(torn).expect("it is written");
    }
    let foreign = directory.join("999999.0");
    std::fs::write(&foreign, "somebody else's").expect("a file");
    give(&foreign, &directory);
    // A directory cannot be read as a file, whoever reads it.
    let unreadable = directory.join("999999.1");
    std::fs::create_dir(&unreadable).expect("a directory");
    assert_eq!(world.db.value::<i64>("SELECT pending_writes FROM servicenow.sync_status").await, 4);
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    world.until("SELECT count(*) = 4 FROM incident WHERE short_description LIKE 'torn %'").await;
    for path in &files {
        assert!(!path.exists(), "{}", path.display());
    }
    assert!(!foreign.exists() && directory.join("999999.0.bad.new").exists(), "it is set aside");
    let said = |path: &Path| {
        let name = path.strip_prefix(world.cluster.data()).expect("it is there").display().to_string();
        world.cluster.log().matches(&format!("could not read file \"{name}\": ")).count()
    };
    assert_eq!((said(&foreign), said(&unreadable)), (1, 1));
    std::fs::remove_dir(unreadable).expect("a directory");
}
