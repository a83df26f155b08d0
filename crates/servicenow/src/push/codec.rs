//! The file of a backend's notes: a header, then frames of length, check sum and JSON, appended one by one.
//!
//! Whoever appends writes a frame and makes it durable before the writes are sent that it tells of. So a frame that is
//! cut off was never followed by a send, and the notes end before it. An append that failed half-way is cut off
//! again before the next one, or what follows would be lost with it.

use std::io::{self, Read};

use super::intent::Note;

/// What a file begins with: four letters, and the version of the format.
pub const HEADER: [u8; 8] = *b"snwi\x01\0\0\0";

/// The letters of [`HEADER`].
const LETTERS: usize = 4;
/// The bytes of a frame before its payload: length and CRC-32, both little-endian. The sum is of length and payload, so
/// that zeros, with which a file system may fill up a file after a crash, are no frame.
const PREFIX: usize = 8;
/// What is looked through at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// What a file tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// The notes, in order.
    pub notes: Vec<Note>,
    /// How many bytes of the file that is, the header included: an append goes on from there, with the header if this
    /// is 0.
    pub valid_len: usize,
    /// Whether something comes after them that is no whole frame.
    pub torn: bool,
}

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is something else.
    #[error("the file does not hold write intents")]
    Foreign,
    /// Another version of the extension has written it.
    #[error("write intents have format {0}, but this version reads format 1")]
    Format(u32),
    /// A frame is whole and makes no sense; what comes after it may be of use, so nothing is passed over.
    #[error("could not read the write intents at byte {at}")]
    Note {
        /// Where in the file the frame begins.
        at: usize,
    },
}

/// Appends a note's frame. A file begins with [`HEADER`].
pub fn encode(note: &Note, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend([0; PREFIX]);
    serde_json::to_writer(&mut *out, note).expect("every note has a JSON form");
    let payload = out.len() - start - PREFIX;
    let length = u32::try_from(payload).expect("one flush is far smaller than 4 GiB").to_le_bytes();
    let sum = check_sum(length, &out[start + PREFIX..]).to_le_bytes();
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..start + PREFIX].copy_from_slice(&sum);
}

/// Reads a file up to the first frame that is cut off or does not check. Whatever the bytes are, this takes memory in
/// proportion to them; [`Reader`] takes no more than one note needs.
pub fn decode(file: &[u8]) -> Result<Decoded, Unreadable> {
    let mut reader = Reader::new(file);
    let mut notes = Vec::new();
    for note in reader.by_ref() {
        match note {
            Ok(note) => notes.push(note),
            Err(Failure::Unreadable(why)) => return Err(why),
            Err(Failure::Io(_)) => break, // bytes in memory are always there
        }
    }
    Ok(Decoded { notes, valid_len: reader.valid_len, torn: reader.torn })
}

/// Why the next note cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It cannot be made sense of.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// Reads the notes of a file one after the other, up to the first frame that is cut off or does not check.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// The bytes of the notes so far, with the header.
    valid_len: usize,
    torn: bool,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// A reader from a file's beginning; a buffer is the caller's matter.
    pub fn new(input: R) -> Self {
        Self { input, valid_len: 0, torn: false, is_over: false }
    }

    /// The next so many bytes, or fewer at the end.
    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(count as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether there is a header of ours.
    fn header(&mut self) -> Result<bool, Failure> {
        let header = self.take(HEADER.len())?;
        let is_nothing = header.iter().all(|&byte| byte == 0);
        if header == HEADER {
            self.valid_len = HEADER.len();
            return Ok(true);
        }
        if is_nothing && self.is_nothing_else()? || HEADER.starts_with(&header) {
            // The crash came while the file was being made.
            self.torn = !header.is_empty();
            return Ok(false);
        }
        Err(match header.split_first_chunk::<LETTERS>() {
            Some((letters, &[a, b, c, d])) if letters[..] == HEADER[..LETTERS] => {
                Unreadable::Format(u32::from_le_bytes([a, b, c, d])).into()
            }
            _ => Unreadable::Foreign.into(),
        })
    }

    /// Whether only zeros follow.
    fn is_nothing_else(&mut self) -> io::Result<bool> {
        loop {
            let bytes = self.take(CHUNK)?;
            if bytes.is_empty() || bytes.iter().any(|&byte| byte != 0) {
                return Ok(bytes.is_empty());
            }
        }
    }

    /// The payload of the next frame; `None` at the end, or if it is not whole.
    fn frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        let prefix = self.take(PREFIX)?;
        let Some((length, sum)) = prefix.split_first_chunk::<4>() else {
            self.torn = !prefix.is_empty();
            return Ok(None);
        };
        let length_in_bytes = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let payload = self.take(length_in_bytes)?;
        let is_whole = payload.len() == length_in_bytes && check_sum(*length, &payload).to_le_bytes() == *sum;
        self.torn = !is_whole;
        Ok(is_whole.then_some(payload))
    }

    fn note(&mut self) -> Result<Option<Note>, Failure> {
        if self.valid_len == 0 && !self.header()? {
            return Ok(None);
        }
        let Some(payload) = self.frame()? else { return Ok(None) };
        let note = serde_json::from_slice(&payload).map_err(|_| Unreadable::Note { at: self.valid_len })?;
        self.valid_len += PREFIX + payload.len();
        Ok(Some(note))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Note, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let note = self.note();
        self.is_over = !matches!(note, Ok(Some(_)));
        note.transpose()
    }
}

fn check_sum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::push::intent::tests::note;

    fn file_of(notes: &[Note]) -> Vec<u8> {
        let mut file = HEADER.to_vec();
        for note in notes {
            encode(note, &mut file);
        }
        file
    }

    #[test]
    fn a_file_of_another_version_or_of_something_else_is_told() {
        assert_eq!(decode(b"snwi\x02\0\0\0"), Err(Unreadable::Format(2)));
        assert_eq!(decode(b"something else"), Err(Unreadable::Foreign));
        assert_eq!(decode(b"some"), Err(Unreadable::Foreign));
        assert_eq!(decode(b""), Ok(Decoded::default()));
        for cut in 1..HEADER.len() {
            let torn = Decoded { torn: true, ..Decoded::default() };
            assert_eq!(decode(&HEADER[..cut]), Ok(torn), "the crash came while the file was being made");
        }
    }

    #[test]
    fn a_file_system_may_fill_up_with_zeros() {
        let notes = vec![Note::Refused(Vec::new())];
        let mut file = file_of(&notes);
        let valid_len = file.len();
        file.resize(4_096, 0);
        assert_eq!(decode(&file), Ok(Decoded { notes, valid_len, torn: true }));
        let nothing = Decoded { torn: true, ..Decoded::default() };
        assert_eq!(decode(&[0; 4_096]), Ok(nothing.clone()));
        assert_eq!(decode(&[0; 3]), Ok(nothing));
    }

    #[test]
    fn a_frame_that_checks_and_makes_no_sense_is_not_passed_over() {
        let mut file = file_of(&[Note::Refused(Vec::new())]);
        let at = file.len();
        let payload = br#"{"something_new":[]}"#;
        let length = (payload.len() as u32).to_le_bytes();
        file.extend(length);
        file.extend(check_sum(length, payload).to_le_bytes());
        file.extend(payload);
        assert_eq!(decode(&file), Err(Unreadable::Note { at }));
    }

    proptest! {
        #[test]
        fn what_is_appended_is_read(notes in prop::collection::vec(note(), 0..6)) {
            let file = file_of(&notes);
            let decoded = decode(&file).unwrap();
            prop_assert_eq!(decoded, Decoded { notes, valid_len: file.len(), torn: false });
        }

        #[test]
        fn a_file_that_is_cut_off_tells_of_what_was_whole(
            notes in prop::collection::vec(note(), 1..5), cut in any::<prop::sample::Index>(),
        ) {
            let file = file_of(&notes);
            let cut = cut.index(file.len());
            let decoded = decode(&file[..cut]).unwrap();
            prop_assert!(decoded.valid_len <= cut);
            prop_assert_eq!(decoded.torn, decoded.valid_len < cut);
            let mut again = if decoded.valid_len == 0 { Vec::new() } else { HEADER.to_vec() };
            decoded.notes.iter().for_each(|note| encode(note, &mut again));
            prop_assert_eq!(&file[..decoded.valid_len], again);
            prop_assert!(notes.starts_with(&decoded.notes));
        }

        #[test]
        fn a_damaged_frame_ends_the_notes(
            notes in prop::collection::vec(note(), 1..4), at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let mut file = file_of(&notes);
            let at = HEADER.len() + at.index(file.len() - HEADER.len());
            file[at] ^= 1 << bit;
            let decoded = decode(&file).unwrap();
            prop_assert!(decoded.valid_len <= at && decoded.torn);
            prop_assert!(notes.starts_with(&decoded.notes));
        }

        #[test]
        fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..300), with_header in any::<bool>()) {
            let file = if with_header { [&HEADER[..], &bytes].concat() } else { bytes };
            if let Ok(decoded) = decode(&file) {
                prop_assert!(decoded.valid_len <= file.len());
            }
        }

        #[test]
        fn a_length_beyond_the_file_is_a_torn_frame(length in 100u32.., rest in prop::collection::vec(any::<u8>(), 0..90)) {
            let mut file = HEADER.to_vec();
            file.extend(length.to_le_bytes());
            file.extend(rest);
            let torn = Decoded { notes: Vec::new(), valid_len: HEADER.len(), torn: true };
            prop_assert_eq!(decode(&file), Ok(torn));
        }
    }
}
