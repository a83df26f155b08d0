//! What tells a data directory from a copy of it: a base backup, a promoted standby, a snapshot of a disk.

use std::fs::{self, File};
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a machine, or a container, is known by. Snapshots of disks show up on another one; whoever has renamed a
/// machine is taken for a copy, which does no harm.
const HOST: [&str; 2] = ["/etc/machine-id", "/proc/sys/kernel/hostname"];
/// Where the mark is, in the data directory.
const DIRECTORY: &str = "servicenow_fdw";
/// A file with random digits. Base backups leave files of such names out, and so do pg_rewind and standbys.
const MARK: &str = "pgsql_tmp_mark";
/// Bytes of a mark.
const MARK_LENGTH: usize = 16;

/// What this machine, or container, is known by.
pub fn host() -> String {
    let names = HOST.map(|path| fs::read_to_string(path).unwrap_or_default());
    names.iter().map(|name| name.trim()).collect::<Vec<_>>().join(" ")
}

/// Where this data directory is, in words to compare. Devices are left out: their numbers change with restarts.
pub fn place() -> Result<String> {
    Ok(format!("{} {} {}", mark()?, fs::metadata(".")?.ino(), host()))
}

/// The directory's mark; made if there is none. The process is in the data directory.
fn mark() -> Result<String> {
    let path = Path::new(DIRECTORY).join(MARK);
    match fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        known => return known,
    }
    let mut bytes = [0; MARK_LENGTH];
    getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(DIRECTORY)?;
    // It appears whole, and once, whoever else does the same.
    let draft = path.with_file_name(format!("{MARK}.{}", std::process::id()));
    let mut file = File::create(&draft)?;
    file.write_all(digits.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&draft, &path);
    let _left_for_the_next = fs::remove_file(&draft);
    match linked {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    File::open(DIRECTORY)?.sync_all()?;
    fs::read_to_string(&path)
}
