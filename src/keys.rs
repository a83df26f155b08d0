//! What was seen of whether instances take the keys that records are sent with ([`servicenow::client::keys`]), kept for
//! sessions to come: a file beside that of the login, which goes with it. In backends.
//!
//! A line for each table and change of mind, appended; what is lost is seen again by the next record.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use servicenow::client::keys::Keys;
use servicenow::value::TableName;

use crate::connection::HttpClient;
use crate::login::Login;

/// The file of a login.
#[derive(Clone, Debug)]
pub struct KeyFile(PathBuf);

impl KeyFile {
    /// The one beside a login's own.
    pub fn of(login: &Login) -> Self {
        let mut path = login.path().into_os_string();
        path.push(".keys");
        Self(path.into())
    }

    /// Tells a client what is known.
    pub fn tell(&self, client: &HttpClient) {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        for (table, keys) in text.lines().filter_map(|line| line.split_once(' ')) {
            if let (Ok(table), Some(keys)) = (TableName::new(table), keys_of(keys)) {
                client.note_keys(&table, keys);
            }
        }
    }

    /// Keeps what was seen of a table.
    pub fn note(&self, table: &TableName, keys: Keys) {
        let Some(word) = word_for(keys) else { return };
        let file = OpenOptions::new().append(true).create(true).open(&self.0);
        // One write, so that those of other sessions do not come in between.
        let _seen_again = file.and_then(|mut file| file.write_all(format!("{table} {word}\n").as_bytes()));
    }
}

fn word_for(keys: Keys) -> Option<&'static str> {
    match keys {
        Keys::Unknown => None,
        Keys::Taken => Some("taken"),
        Keys::Ignored => Some("ignored"),
    }
}

fn keys_of(word: &str) -> Option<Keys> {
    [Keys::Taken, Keys::Ignored].into_iter().find(|keys| word_for(*keys) == Some(word))
}
