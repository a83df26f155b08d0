//! Text that must not be shown, and where it comes from.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroize;

use crate::error::{Error, Result};

/// The longest file a secret is read from, in bytes.
const FILE_LIMIT: u64 = 64 << 10;

/// Text that must not be shown; `Debug` hides it and there is no `Display`. It is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Takes over a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, to be sent and never to be shown.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// Here.
    Text(Secret),
    /// In a file, which is read at every use; line ends at its end do not belong to the secret.
    File(PathBuf),
}

impl From<Secret> for SecretSource {
    fn from(secret: Secret) -> Self {
        Self::Text(secret)
    }
}

impl SecretSource {
    /// The secret; [`Error::Setup`] if its file cannot be read.
    pub fn read(&self) -> Result<Secret> {
        let path = match self {
            Self::Text(secret) => return Ok(secret.clone()),
            Self::File(path) => path,
        };
        let unusable =
            |reason: String| Error::Setup(format!("could not read file \"{}\": {reason}", path.display()));
        let about = std::fs::metadata(path).map_err(|e| unusable(e.to_string()))?;
        if !about.is_file() || about.len() > FILE_LIMIT {
            return Err(unusable(format!("it is not a regular file of at most {FILE_LIMIT} bytes")));
        }
        let mut text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
        text.truncate(text.trim_end_matches(['\r', '\n']).len());
        if text.is_empty() {
            return Err(unusable("it is empty".to_owned()));
        }
        Ok(Secret(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_at_every_use_and_only_if_it_can_hold_a_secret() {
        let path = std::env::temp_dir().join(format!("servicenow-secret-{}", std::process::id()));
        let source = SecretSource::File(path.clone());
        assert!(matches!(source.read(), Err(Error::Setup(_))), "there is none");
        for (content, secret) in [("one\n", "one"), (" two \r\n\n", " two ")] {
            std::fs::write(&path, content).expect("a file");
            assert_eq!(source.read().expect("a secret").reveal(), secret);
        }
        std::fs::write(&path, "\n").expect("a file");
        assert!(matches!(source.read(), Err(Error::Setup(_))), "it is empty");
        std::fs::write(&path, vec![b'x'; FILE_LIMIT as usize + 1]).expect("a file");
        assert!(matches!(source.read(), Err(Error::Setup(_))), "it is too long");
        std::fs::remove_file(&path).expect("it is there");
        assert!(matches!(SecretSource::File("/dev/zero".into()).read(), Err(Error::Setup(_))));
    }
}
