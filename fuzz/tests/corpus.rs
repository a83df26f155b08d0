//! The kept corpus, and what comes of changing it a little, through every target.

use std::path::{Path, PathBuf};

/// Changed inputs per target, unless `FUZZ_TRIES` says how many.
const TRIES: usize = 20_000;
/// The largest input that is made.
const LARGEST: usize = 4_096;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// What numbers, times and structures break at.
const PIECES: [&[u8]; 16] = [
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"^NQ",
    b"^OR",
    b"^^",
    b"-1",
    b"9223372036854775808",
    b"\xff\xfe",
    b"1e999",
];

fn change(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
        }
    }
    bytes.truncate(LARGEST);
    bytes
}

fn try_out(name: &str) {
    let (_, target) = fuzz::TARGETS.into_iter().find(|(n, _)| *n == name).expect("a target");
    let inputs = corpus(name);
    assert!(!inputs.is_empty());
    inputs.iter().for_each(|input| target(input));
    let tries = std::env::var("FUZZ_TRIES").map_or(TRIES, |text| text.parse().expect("a number"));
    let since = std::time::UNIX_EPOCH.elapsed().expect("a clock that is set");
    let mut random = Random(since.as_nanos() as u64);
    for _ in 0..tries {
        let input = change(&inputs, &mut random);
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            panic!("{name} does not bear {:?}", String::from_utf8_lossy(&input));
        }
    }
}

#[test]
fn pages_are_read_or_refused() {
    try_out("page");
}

#[test]
fn encoded_queries_are_read_or_refused() {
    try_out("query");
}

#[test]
fn values_are_read_or_refused() {
    try_out("value");
}

#[test]
fn requests_to_the_listener_are_read_or_refused() {
    try_out("webhook");
}

#[test]
fn files_of_intents_are_read_or_refused() {
    try_out("intent");
}

#[test]
fn files_of_logins_are_read_or_refused() {
    try_out("login");
}
