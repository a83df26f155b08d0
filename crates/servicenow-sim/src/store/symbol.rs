//! Interned text: every stored value is four bytes, so that a million incidents of 92 columns fit in memory.
//!
//! A [`Val`] is either a packed date-time (seconds since 1970, up to 2038) or an index into [`Symbols`]. Each symbol
//! knows its *fold*, the representative of all texts that the instance's collation calls equal (facts §2.3).

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::collation;
use crate::{calendar, json};

/// A stored value: interned text or a packed date-time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Val(u32);

const DATE_BIT: u32 = 1 << 31;

impl Val {
    /// The empty text, which the instance does not tell from NULL (facts §1.4).
    pub(crate) const EMPTY: Self = Self(0);

    /// True for the empty text.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The seconds since 1970 of a packed date-time.
    pub(crate) fn as_seconds(self) -> Option<i64> {
        (self.0 & DATE_BIT != 0).then_some(i64::from(self.0 & !DATE_BIT))
    }

    /// Packs seconds since 1970 when they fit.
    pub(crate) fn from_seconds(seconds: i64) -> Option<Self> {
        (0..i64::from(DATE_BIT)).contains(&seconds).then_some(Self(DATE_BIT | seconds as u32))
    }
}

/// The table of interned texts.
#[derive(Debug, Clone)]
pub(crate) struct Symbols {
    texts: Vec<Box<str>>,
    folds: Vec<u32>,
    /// Texts that stand in JSON as they are.
    plain: Vec<bool>,
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Default for Symbols {
    fn default() -> Self {
        let mut symbols = Self {
            texts: Vec::new(),
            folds: Vec::new(),
            plain: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::new(),
        };
        symbols.intern_text("");
        symbols
    }
}

impl Symbols {
    /// Interns a text; a canonical date-time is packed instead.
    pub(crate) fn intern(&mut self, text: &str) -> Val {
        if text.is_empty() {
            return Val::EMPTY;
        }
        if let Some(packed) = calendar::parse_canonical(text).and_then(Val::from_seconds) {
            return packed;
        }
        Val(self.intern_text(text))
    }

    fn intern_text(&mut self, text: &str) -> u32 {
        let hash = self.hasher.hash_one(text);
        if let Some(found) = self.table.find(hash, |&at| &*self.texts[at as usize] == text) {
            return *found;
        }
        let at = u32::try_from(self.texts.len()).expect("fewer than two thousand million symbols");
        assert!(at < DATE_BIT, "the symbol table is full");
        self.texts.push(text.into());
        self.folds.push(at);
        self.plain.push(json::is_plain(text));
        let (texts, hasher) = (&self.texts, &self.hasher);
        self.table.insert_unique(hash, at, |&at| hasher.hash_one(&*texts[at as usize]));
        let folded = collation::fold(text);
        if folded != text {
            let fold = self.intern_text(&folded);
            self.folds[at as usize] = fold;
        }
        at
    }

    /// The value of a text if it was ever interned.
    pub(crate) fn find(&self, text: &str) -> Option<Val> {
        if text.is_empty() {
            return Some(Val::EMPTY);
        }
        if let Some(packed) = calendar::parse_canonical(text).and_then(Val::from_seconds) {
            return Some(packed);
        }
        let hash = self.hasher.hash_one(text);
        self.table.find(hash, |&at| &*self.texts[at as usize] == text).map(|&at| Val(at))
    }

    /// The representative of all values that the collation calls equal to this one.
    pub(crate) fn fold(&self, value: Val) -> Val {
        match value.as_seconds() {
            Some(_) => value,
            None => Val(self.folds[value.0 as usize]),
        }
    }

    /// The representative of a text, if any stored value is equal to it under the collation.
    pub(crate) fn find_fold(&self, text: &str) -> Option<Val> {
        self.find(&collation::fold(text))
    }

    /// Calls `f` with the text of a value, unpacking a date-time on the stack.
    pub(crate) fn with<R>(&self, value: Val, f: impl FnOnce(&str) -> R) -> R {
        match value.as_seconds() {
            Some(seconds) => {
                let mut buffer = [0u8; 19];
                f(calendar::write_canonical(seconds, &mut buffer))
            }
            None => f(&self.texts[value.0 as usize]),
        }
    }

    /// Appends the text of a value as the inside of a JSON string.
    pub(crate) fn push_json(&self, out: &mut String, value: Val) {
        match value.as_seconds() {
            Some(seconds) => {
                let mut buffer = [0u8; 19];
                out.push_str(calendar::write_canonical(seconds, &mut buffer));
            }
            None if self.plain[value.0 as usize] => out.push_str(&self.texts[value.0 as usize]),
            None => json::push_escaped(out, &self.texts[value.0 as usize]),
        }
    }

    /// The text of a value as an owned string.
    pub(crate) fn text(&self, value: Val) -> String {
        self.with(value, str::to_owned)
    }

    /// The interned text behind a value, or `None` for a packed date-time.
    pub(crate) fn borrow(&self, value: Val) -> Option<&str> {
        match value.as_seconds() {
            Some(_) => None,
            None => Some(&self.texts[value.0 as usize]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_equal_under_the_collation_share_a_fold() {
        let mut symbols = Symbols::default();
        let a = symbols.intern("Crème brûlée ");
        let b = symbols.intern("CREME BRULEE");
        assert_ne!(a, b);
        assert_eq!(symbols.fold(a), symbols.fold(b));
        assert_eq!(symbols.find_fold("creme brulee"), Some(symbols.fold(a)));
    }

    #[test]
    fn canonical_dates_are_packed_and_come_back_unchanged() {
        let mut symbols = Symbols::default();
        let before = symbols.texts.len();
        let value = symbols.intern("2016-02-29 01:23:00");
        assert_eq!(symbols.texts.len(), before);
        assert_eq!(symbols.text(value), "2016-02-29 01:23:00");
        assert_eq!(symbols.text(Val::EMPTY), "");
    }
}
