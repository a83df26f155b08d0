//! Where the state of a login is kept, and who may change it: one at a time, in this process and in any other.
//!
//! A file has the state of a login that several processes share. It is replaced as a whole, and whoever is about to log in
//! locks the file beside it. As long as they wait they do so without blocking the thread, and whoever gives up leaves
//! nothing behind. If files cannot be had, each process has its own state: that is a nuisance, and no reason to fail.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::sleep;

use super::secret::Secret;
use super::state::State;

/// How often those who wait for another process look whether it is their turn.
const GLANCE: Duration = Duration::from_millis(10);
/// The longest file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// What the name of the file ends with that is locked.
pub const LOCK: &str = "lock";
/// What the name of a file ends with that is being written.
const UNFINISHED: &str = "new";

/// Keeps the state of a login. Cloning shares it.
#[derive(Clone)]
pub struct Vault {
    held: Arc<Mutex<Held>>,
    file: Option<Arc<VaultFile>>,
    tally: Option<Arc<Account>>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

/// A file for a login's state.
#[derive(Debug)]
pub struct VaultFile {
    /// Where it is. Nobody else reads it: its directory is made if need be, for this user alone.
    pub path: PathBuf,
    /// Whether it has to be on disk before anybody relies on it.
    pub syncs: bool,
    /// The refresh token to begin with if there is no file.
    pub spare: Option<Secret>,
}

/// An account that several logins may be of, and the one of them that this is.
#[derive(Debug)]
struct Account {
    vault: Vault,
    login: String,
    version: String,
}

impl Default for Vault {
    fn default() -> Self {
        Self { held: Arc::default(), file: None, tally: None, clock: Arc::new(SystemTime::now) }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Vault {
    /// One that other processes share.
    pub fn shared(file: VaultFile) -> Self {
        Self { file: Some(Arc::new(file)), ..Self::default() }
    }

    /// The same for a login that is one of several of an account, whose refusals are counted together in a vault of
    /// their own. Another version of the login is somebody's word that the account may be tried again.
    #[must_use]
    pub fn of_account(self, account: Vault, login: String, version: String) -> Self {
        Self { tally: Some(Arc::new(Account { vault: account, login, version })), ..self }
    }

    /// The same with another clock.
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// The moment.
    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// The state as this process knows it, for itself while it is held.
    pub(super) async fn known(&self) -> Known {
        Known { held: self.held.clone().lock_owned().await, file: self.file.clone() }
    }

    /// What is known of the account, for everybody while it is held: after the login itself has been locked.
    pub(super) async fn account(&self) -> Option<Locked> {
        let account = self.tally.as_ref()?;
        let mut locked = account.vault.known().await.lock().await;
        if !locked.state().tally().has_met(&account.login, &account.version) {
            let meet = |state: &mut State| state.tally_mut().meet(&account.login, &account.version);
            let _known_here = locked.change(meet);
        }
        Some(locked)
    }

    /// A password of the account, which is held, was refused.
    pub(super) fn refuse_account(&self, mut held: Locked, digest: String) {
        let Some(Account { login, version, .. }) = self.tally.as_deref() else { return };
        let _known_here = held.change(|state| state.tally_mut().refuse(login, version, digest));
    }

    /// The credentials of the account were accepted.
    pub(super) async fn forgive_account(&self) {
        let Some(account) = &self.tally else { return };
        let mut known = account.vault.known().await;
        known.look();
        if !known.state().tally().is_clear() {
            let _known_here = known.lock().await.change(|state| state.tally_mut().clear());
        }
    }
}

/// What a process knows of a login.
#[derive(Default)]
struct Held {
    state: State,
    /// The file as it was when this process last had a look at it, or wrote it. As long as it is that one nobody has
    /// written anything else: what is held is as new, also if it could not be written.
    seen: Option<Stamp>,
}

/// What tells a file from what replaces it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamp {
    /// There is none.
    Nothing,
    /// Its number, and the last time that it was changed.
    File(u64, SystemTime),
}

/// A state that no other task of this process changes.
pub(super) struct Known {
    held: OwnedMutexGuard<Held>,
    file: Option<Arc<VaultFile>>,
}

impl Known {
    pub(super) fn state(&self) -> &State {
        &self.held.state
    }

    /// The state as all processes know it. What is known is better than nothing if that cannot be read.
    pub(super) fn look(&mut self) {
        let Some(file) = &self.file else { return };
        let Ok(stamp) = file.stamp() else { return };
        if self.held.seen == Some(stamp) {
            return;
        }
        match file.read() {
            Ok(state) => *self.held = Held { state, seen: Some(stamp) },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let state = State::with_refresh_token(file.spare.clone());
                *self.held = Held { state, seen: Some(Stamp::Nothing) };
            }
            // It is written over by whoever logs in next.
            Err(_) => self.held.seen = Some(stamp),
        }
    }

    /// Waits until no other process changes it.
    pub(super) async fn lock(mut self) -> Locked {
        let lock = match &self.file {
            None => None,
            Some(file) => file.lock().await.ok(),
        };
        self.look();
        Locked { known: self, _lock: lock }
    }
}

/// A state that nobody else changes.
pub(super) struct Locked {
    known: Known,
    _lock: Option<File>,
}

impl Locked {
    pub(super) fn state(&self) -> &State {
        &self.known.held.state
    }

    /// Changes it, for everybody. If the file cannot be written, as on a full disk, only this process knows, until the
    /// next change.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let held = &mut *self.known.held;
        change(&mut held.state);
        if let Some(file) = &self.known.file {
            file.write(&held.state)?;
            held.seen = file.stamp().ok();
        }
        Ok(())
    }
}

impl VaultFile {
    fn stamp(&self) -> io::Result<Stamp> {
        match fs::metadata(&self.path) {
            Ok(file) => Ok(Stamp::File(file.ino(), file.modified()?)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Stamp::Nothing)
            }
            Err(e) => Err(e),
        }
    }

    fn read(&self) -> io::Result<State> {
        read_state(&self.path)
    }

    fn write(&self, state: &State) -> io::Result<()> {
        let unfinished = self.path.with_added_extension(UNFINISHED);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        let text = Secret::new(serde_json::to_string(state)?);
        file.write_all(text.reveal().as_bytes())?;
        if self.syncs {
            file.sync_all()?;
        }
        fs::rename(&unfinished, &self.path)?;
        match self.path.parent() {
            Some(directory) if self.syncs => File::open(directory)?.sync_all(),
            _ => Ok(()),
        }
    }

    async fn lock(&self) -> io::Result<File> {
        if let Some(directory) = self.path.parent().filter(|directory| !directory.is_dir()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            if let Some(parent) = directory.parent().filter(|_| self.syncs) {
                File::open(parent)?.sync_all()?;
            }
        }
        let path = self.path.with_added_extension(LOCK);
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open()?;
        loop {
            match file.try_lock() {
                Ok(()) if is_there(&file, &path)? => return Ok(file),
                // It was removed meanwhile: others lock another one.
                Ok(()) => file = open()?,
                Err(TryLockError::WouldBlock) => sleep(GLANCE).await,
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }
}

/// Whether a path leads to an open file still.
fn is_there(file: &File, path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(there) => {
            let held = file.metadata()?;
            Ok((there.dev(), there.ino()) == (held.dev(), held.ino()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes the file of a [`Vault::shared`] and its lock if nobody has written it for so long, nor holds it; gives back
/// whether they are gone.
pub fn remove_unused(path: &Path, unused_for: Duration) -> io::Result<bool> {
    let lock = path.with_added_extension(LOCK);
    let held = match OpenOptions::new().write(true).open(&lock) {
        Ok(file) => Some(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    if let Some(held) = &held
        && (held.try_lock().is_err() || !is_there(held, &lock)?)
    {
        return Ok(false);
    }
    // What was locked and never written is as old as its lock.
    let about = fs::metadata(path).or_else(|_| fs::metadata(&lock))?;
    if about.modified()?.elapsed().is_ok_and(|age| age > unused_for) {
        let gone = |path: &Path| match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        gone(path)?;
        gone(&lock)?;
        return Ok(true);
    }
    Ok(false)
}

fn read_state(path: &Path) -> io::Result<State> {
    if fs::metadata(path)?.len() > FILE_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let text = Secret::new(fs::read_to_string(path)?);
    Ok(serde_json::from_str(text.reveal())?)
}

/// Reads what is in a file of [`Vault::shared`], and gives back how it would be written again; none if it is not one.
pub fn reread(text: &str) -> Option<Secret> {
    let state: State = serde_json::from_str(text).ok()?;
    Some(Secret::new(serde_json::to_string(&state).ok()?))
}

/// The refresh token in a file of [`Vault::shared`], if there is one.
pub fn refresh_token_in(path: &Path) -> Option<Secret> {
    read_state(path).ok()?.refresh_token().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever waits for a lock that is removed must not be let in beside who locks its successor.
    #[tokio::test]
    async fn what_somebody_holds_is_not_removed_and_what_was_removed_locks_nobody_out() {
        let directory = std::env::temp_dir().join(format!("servicenow-vault-{}", std::process::id()));
        let path = directory.join("login");
        let file = || VaultFile { path: path.clone(), syncs: false, spare: None };
        let held = file().lock().await.expect("a lock");
        fs::write(&path, "{}").expect("a file");
        assert!(!remove_unused(&path, Duration::ZERO).expect("it is looked at"), "somebody holds it");
        assert!(path.exists());
        let opened = File::open(path.with_added_extension(LOCK)).expect("a lock");
        drop(held);
        assert!(!remove_unused(&path, Duration::from_secs(3_600)).expect("it is looked at"), "it is new");
        assert!(remove_unused(&path, Duration::ZERO).expect("it is looked at"));
        assert!(!path.exists() && !path.with_added_extension(LOCK).exists());
        assert!(!is_there(&opened, &path.with_added_extension(LOCK)).expect("it is looked at"));
        // As if it was removed between opening and locking.
        let first = file().lock().await.expect("a lock");
        let waits = VaultFile { path: path.clone(), syncs: false, spare: None };
        let waiting = tokio::spawn(async move { waits.lock().await });
        sleep(GLANCE * 3).await;
        fs::remove_file(path.with_added_extension(LOCK)).expect("it is there");
        let second = file().lock().await.expect("a lock");
        drop(first);
        sleep(GLANCE * 5).await;
        assert!(!waiting.is_finished(), "two hold it");
        drop(second);
        waiting.await.expect("it ends").expect("a lock");
        fs::remove_dir_all(&directory).expect("it is there");
    }
}
