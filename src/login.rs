//! Logins of user mappings, and where it is kept how far they are: one file for each, which all processes of the server
//! share ([`servicenow::client::auth::vault`]). In backends and in the worker.
//!
//! A file belongs to a version of a user mapping: whatever is altered begins anew, and what is rolled back goes on. Beside
//! them are files of accounts that may be locked, for all mappings of one. Base
//! backups leave the files out, as they are called like temporary ones (see [`crate::push::intent`]). A refresh token that
//! cannot be got again without a person is in a table too, for a standby that takes over ([`keep`]).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pgrx::pg_sys;
use servicenow::client::auth::vault::{LOCK, Vault, VaultFile, refresh_token_in, remove_unused};
use servicenow::client::auth::{self, Credentials, Secret};
use url::Url;

use crate::catalog;
use crate::option::{self, ServerOptions};
use crate::pg;
use crate::pg::catalog::Mapping;
use crate::push::intent;

/// What the names of files begin with (see [`crate::push::intent`]).
pub const PREFIX: &str = "pgsql_tmp";
/// Their directory, beside the notes of writes.
pub const DIRECTORY: &str = "logins";
/// What the names of files go on with that are of accounts, which several user mappings may be of.
const ACCOUNT: &str = "account";
/// How long it is remembered of an account that nobody tries that it was refused.
const MEMORY: Duration = Duration::from_secs(90 * 86_400);
/// Files of user mappings that are no more are left this long to transactions that are not over.
const GRACE: Duration = Duration::from_secs(600);

/// The login of a user mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The credentials.
    pub credentials: Credentials,
    /// The token endpoint, if it is not the instance's own.
    pub token_url: Option<Url>,
    /// What this version of the mapping is called.
    pub name: String,
    /// The account that may be locked, as a digest: its refusals are counted whichever mapping they came by.
    account: String,
    /// The user mapping, and its version.
    mapping: (String, String),
    /// The refresh token to begin with.
    spare: Option<Secret>,
    /// It is to be tried out, whatever others have.
    is_trial: bool,
}

impl Login {
    /// Reads a user mapping of a server.
    pub fn of(server: pg_sys::Oid, options: &ServerOptions, mapping: &Mapping) -> option::Result<Self> {
        let option::Login { credentials, token_url } = option::credentials(&mapping.options)?;
        let token_address = token_url.as_ref().map_or("", Url::as_str);
        // A transaction may alter a mapping more than once: whose login it is counts too.
        let identity = credentials.identity();
        // However a password is sent, by where it goes: what somebody else's endpoint says of it is nothing to the instance.
        // Instances do not tell users by upper and lower case.
        let endpoint = token_url.as_ref().filter(|_| matches!(credentials, Credentials::Password { .. }));
        let asked = endpoint.unwrap_or(&options.instance_url).origin().ascii_serialization();
        let account = [asked, credentials.username().unwrap_or_default().to_lowercase()];
        let whose = [options.instance_url.as_str(), token_address, &identity].map(Secret::new);
        let whose = &auth::digest(&whose)[..16];
        let name = format!("{}.{}.{}.{whose}", server.to_u32(), mapping.oid.to_u32(), mapping.version);
        let mapping =
            (format!("{}.{}", server.to_u32(), mapping.oid.to_u32()), format!("{}.{whose}", mapping.version));
        let account = auth::digest(&account.map(Secret::new))[..32].to_owned();
        let mut login = Self { credentials, token_url, name, account, mapping, spare: None, is_trial: false };
        if login.needs_a_person() && !login.path().exists() {
            login.spare = catalog::kept_token(&login.name);
        }
        Ok(login)
    }

    /// To see whether the instance still accepts it, what it gave before is not used, unless that takes a person.
    pub fn tried_out(self) -> Self {
        let is_trial = !self.needs_a_person();
        Self { is_trial, ..self }
    }

    /// Where it is kept how far it is.
    pub fn vault(&self) -> Vault {
        if self.is_trial {
            return Vault::default();
        }
        // Without it each process has a login of its own; whoever writes says what is wrong.
        let _none = intent::make_directory();
        let (path, spare) = (self.path(), self.spare.clone());
        let syncs = pg::io::syncs_files();
        let account = directory().join(format!("{PREFIX}.{ACCOUNT}.{}", self.account));
        let account = Vault::shared(VaultFile { path: account, syncs, spare: None });
        let (mapping, version) = self.mapping.clone();
        Vault::shared(VaultFile { path, syncs, spare }).of_account(account, mapping, version)
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        directory().join(format!("{PREFIX}.{}", self.name))
    }

    /// Whether nobody but a person gets another refresh token.
    fn needs_a_person(&self) -> bool {
        matches!(self.credentials, Credentials::AuthorizationCode { .. } | Credentials::RefreshToken { .. })
    }
}

/// The directory of this database's logins, in the data directory, where every process of the server works.
pub fn directory() -> PathBuf {
    intent::directory().join(DIRECTORY)
}

/// Refresh tokens as the worker has seen them.
#[derive(Default)]
pub struct Keeper {
    seen: HashMap<String, SystemTime>,
}

impl Keeper {
    /// Has the table tell what the files tell of refresh tokens that only a person gets. In a transaction.
    pub fn keep(&mut self) {
        let files = files();
        // Versions of mappings that are no more are not remembered.
        self.seen.retain(|name, _| files.iter().any(|(there, _)| there == name));
        for (name, path) in files {
            let written = std::fs::metadata(&path).and_then(|file| file.modified());
            let Ok(written) = written else { continue };
            if self.seen.get(&name) == Some(&written) {
                continue;
            }
            if let Some(token) = refresh_token_in(&path)
                && needs_a_person(&name)
            {
                catalog::keep_token(&name, &token);
            }
            self.seen.insert(name, written);
        }
    }
}

/// The mapping that a file is called after, if it is of this version.
fn needs_a_person(name: &str) -> bool {
    catalog::mappings().into_iter().any(|(server, mapping)| {
        let read = || -> Option<bool> {
            let options = ServerOptions::parse(&pg::catalog::server(server).options).ok()?;
            let login = Login::of(server, &options, &pg::catalog::mapping(mapping, server)?).ok()?;
            Some(login.name == name && login.needs_a_person())
        };
        pg::xact::subtransaction(std::panic::AssertUnwindSafe(read)).ok().flatten().unwrap_or(false)
    })
}

/// Removes what belongs to no version of a user mapping that is there. In a transaction.
pub fn tidy() {
    let current: HashSet<String> = catalog::mappings()
        .into_iter()
        .filter_map(|(server, oid)| {
            let version = pg::catalog::mapping(oid, server)?.version;
            Some(format!("{}.{}.{version}.", server.to_u32(), oid.to_u32()))
        })
        .collect();
    let is_current = |name: &str| name.rfind('.').is_some_and(|end| current.contains(&name[..=end]));
    catalog::forget_tokens(|name| !is_current(name));
    for entry in std::fs::read_dir(directory()).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_str().unwrap_or_default();
        let Some(name) = name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix('.')) else { continue };
        let of = name.split('.').take(4).collect::<Vec<_>>().join(".");
        let is_account = name.strip_prefix(ACCOUNT).is_some_and(|name| name.starts_with('.'));
        let grace = if is_account { MEMORY } else { GRACE };
        if !is_current(&of) {
            let is_lock = path.extension().is_some_and(|extension| extension == LOCK);
            let path = if is_lock { path.with_extension("") } else { path };
            let _tried_again_later = remove_unused(&path, grace);
        }
    }
}

/// The files of logins, and what they are called after.
fn files() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(directory()).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((login_of(&entry.path())?, entry.path()))).collect()
}

fn login_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_prefix('.')?;
    (name.split('.').count() == 4).then(|| name.to_owned())
}
