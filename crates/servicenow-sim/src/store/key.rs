//! Index keys with the order of the instance's collation.

use super::collation;

/// A folded `sys_id`, padded with NUL to a fixed width so that comparing bytes compares ids.
///
/// Ids are usually 32 hex digits, but not always (facts §1.4): shorter ones are padded, longer ones cut, the row
/// position telling cut ones apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct IdKey([u8; 32]);

impl IdKey {
    /// The key of a text.
    pub(crate) fn of(text: &str) -> Self {
        let folded = collation::fold(text);
        let mut key = [0u8; 32];
        let bytes = &folded.as_bytes()[..folded.len().min(32)];
        key[..bytes.len()].copy_from_slice(bytes);
        Self(key)
    }

    /// True when the text did not fit and equal keys may stand for different ids.
    pub(crate) fn is_cut(text: &str) -> bool {
        collation::fold(text).len() > 32
    }
}
