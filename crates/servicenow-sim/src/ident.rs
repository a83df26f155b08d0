//! Ids that look like the instance's: 32 hex digits, the same on every run.

use md5::{Digest, Md5};

/// The id of a thing of the base data, from its kind and label.
pub(crate) fn sys_id(kind: &str, label: &str) -> String {
    hex(&[kind.as_bytes(), b"\0", label.as_bytes()])
}

/// A value that nobody guesses from its neighbour, for tokens and new rows.
pub(crate) fn opaque(seed: u64, purpose: &str, count: u64) -> String {
    hex(&[&seed.to_be_bytes(), purpose.as_bytes(), &count.to_be_bytes()])
}

fn hex(parts: &[&[u8]]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let mut out = String::with_capacity(32);
    for byte in hash.finalize() {
        out.push(char::from_digit(u32::from(byte >> 4), 16).expect("a nibble"));
        out.push(char::from_digit(u32::from(byte & 15), 16).expect("a nibble"));
    }
    out
}
