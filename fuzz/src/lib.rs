//! What reads bytes that strangers have written. Each target takes any bytes, and panics if what they are read as has
//! not the properties it should have; `targets` hands them to libFuzzer, `tests` to what is in `corpus` and its like.
//!
//! `cargo fuzz run --features libfuzzer --sanitizer none page` looks for more; no nightly compiler is needed, and no
//! sanitizer: what is tested has no `unsafe`.

use std::hint::black_box;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;
use servicenow::capture::webhook::{Gatekeeper, key};
use servicenow::client::auth::vault::reread;
use servicenow::page::{Column, Layout, Rows, decode_list, decode_record};
use servicenow::push::codec::{self, HEADER};
use servicenow::push::intent::open_writes;
use servicenow::query::{Op, Query, Term};
use servicenow::value::{Kind, Show};

/// What reads a stranger's bytes, and must not panic whatever they are.
pub type Target = fn(&[u8]);

/// A target by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("page", page),
    ("query", query),
    ("value", value),
    ("webhook", webhook),
    ("intent", intent),
    ("login", login),
];

const KINDS: [(&str, Kind); 10] = [
    ("short_description", Kind::Text),
    ("active", Kind::Boolean),
    ("state", Kind::Integer),
    ("ratio", Kind::Float),
    ("price", Kind::Numeric),
    ("opened_at", Kind::Instant),
    ("local_at", Kind::DateTime),
    ("due", Kind::Date),
    ("at", Kind::Time),
    ("took", Kind::Duration),
];

/// A column of every kind, as text too, and labels.
static LAYOUT: LazyLock<Arc<Layout>> = LazyLock::new(|| {
    let column = |field: &str, show, kind| Column { field: field.to_owned(), show, kind };
    let values = KINDS.iter().map(|(field, kind)| column(field, Show::Value, *kind));
    let labels = KINDS.iter().map(|(field, _)| column(field, Show::Label, Kind::Text));
    let texts =
        ["sys_id", "number", "caller_id", "caller_id.email"].map(|f| column(f, Show::Value, Kind::Text));
    Arc::new(Layout::new(values.chain(labels).chain(texts).collect()))
});

/// Answers of the Table API: whatever comes takes memory in proportion to it, and rows that can be read whole.
pub fn page(bytes: &[u8]) {
    for decode in [decode_list, decode_record] {
        match decode(&LAYOUT, bytes) {
            Ok(rows) => read(&rows, bytes.len()),
            Err(e) => drop(black_box(e.to_string())),
        }
    }
}

fn read(rows: &Rows, length: usize) {
    let columns = LAYOUT.columns().len();
    // A row takes two bytes at least, and 16 per cell.
    assert!(rows.size() <= 4096 + 64 * columns * length, "{} bytes of {length}", rows.size());
    for row in 0..rows.len() {
        assert!(!rows.id(row).is_empty(), "a record without identity");
        black_box(rows.version(row));
        for column in 0..columns {
            black_box((rows.value(row, column), rows.is_shown(row, column)));
        }
    }
    if !rows.is_empty() {
        let picked = rows.pick(rows.len() - 1);
        assert_eq!(picked.id(0), rows.id(rows.len() - 1));
    }
}

/// Encoded queries: what was read and written is read as the same again, and a condition that is added applies.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(query) = Query::parse(text) else { return };
    let again = Query::parse(&query.to_string()).expect("it was read before");
    assert_eq!(query, again);
    let term = Term::new("sys_id", Op::Gt, "46d44a").expect("a condition");
    let more = query.clone().and(term);
    let fields = |query: &Query| query.fields().map(str::to_owned).collect::<Vec<_>>();
    assert!(fields(&more).len() > fields(&query).len(), "{more}");
    assert_eq!(Query::parse(&more.to_string()).expect("it was read before"), more);
}

/// Stored values: what is taken for one is sent and read again as the same.
pub fn value(bytes: &[u8]) {
    let Ok(wire) = std::str::from_utf8(bytes) else { return };
    for (_, kind) in KINDS {
        let Ok(value) = kind.decode(wire) else { continue };
        if let Ok(sent) = value.encode() {
            assert_eq!(kind.decode(&sent).expect("it was sent by us"), value, "{kind:?}");
        }
    }
}

/// What the listener gets: the first byte decides whether it is signed.
pub fn webhook(bytes: &[u8]) {
    let secret = key([7; 32]);
    let mut gatekeeper = Gatekeeper::new(&secret).expect("a key");
    let (first, body) = bytes.split_first().unwrap_or((&0, bytes));
    let now = 1_700_000_000_000;
    let (time, tag) = match first % 4 {
        0 => {
            let text = String::from_utf8_lossy(body).into_owned();
            let (time, tag) = text.split_once('\n').unwrap_or((&text, ""));
            (time.to_owned(), tag.to_owned())
        }
        _ => {
            let time = now.to_string();
            let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
            let signed = [time.as_bytes(), b".", body].concat();
            (time, BASE64_STANDARD.encode(hmac::sign(&key, &signed)))
        }
    };
    if let Ok(event) = gatekeeper.admit(Some(&time), Some(&tag), body, now) {
        assert!(first % 4 != 0, "nobody can sign without the key");
        assert!(!event.id.as_str().is_empty() && !event.id.as_str().contains('\0'));
        assert!(gatekeeper.admit(Some(&time), Some(&tag), body, now).is_err(), "once is enough");
    }
}

/// Files of write intents: what is read can be written and read again; the rest of the file is left alone.
pub fn intent(bytes: &[u8]) {
    intents(bytes);
    intents(&[&HEADER[..], bytes].concat());
    // A frame's check sum is not guessed by trying.
    let mut frame = HEADER.to_vec();
    let length = u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes();
    frame.extend(length);
    frame.extend(crc32fast::hash(&[&length[..], bytes].concat()).to_le_bytes());
    frame.extend(bytes);
    intents(&frame);
}

fn intents(file: &[u8]) {
    let Ok(decoded) = codec::decode(file) else { return };
    assert!(decoded.valid_len <= file.len());
    let mut again = HEADER.to_vec();
    decoded.notes.iter().for_each(|note| codec::encode(note, &mut again));
    let reread = codec::decode(&again).expect("it was written by us");
    assert_eq!(reread.notes, decoded.notes);
    assert!(!reread.torn);
    black_box(open_writes(decoded.notes));
}

/// Files of logins: what is read is written as what is read as the same again.
pub fn login(bytes: &[u8]) {
    let Some(written) = std::str::from_utf8(bytes).ok().and_then(reread) else { return };
    let again = reread(written.reveal()).expect("it was written by us");
    assert!(again == written);
}
