//! What an instance says of a call that has failed, in a form that can be shown.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::Words;

/// The longest message, in characters, and the longest detail.
const MESSAGE: usize = 1_000;
const DETAIL: usize = 4_000;

/// Decodes the `error` object of an answer; `None` if the body is not one.
pub(crate) fn decode_words(body: &[u8]) -> Option<Words> {
    #[derive(Deserialize)]
    struct Failure {
        error: ErrorObject,
    }
    serde_json::from_slice::<Failure>(body).ok().map(|failure| failure.error.into())
}

/// The `error` object. Its parts are strings; whatever else an instance puts there is not worth failing for.
#[derive(Deserialize)]
pub(super) struct ErrorObject {
    #[serde(default)]
    message: Spoken,
    #[serde(default)]
    detail: Spoken,
}

impl From<ErrorObject> for Words {
    fn from(object: ErrorObject) -> Self {
        let text = |Spoken(text): Spoken, most| text.map(|text| plain(&text, most)).filter(|s| !s.is_empty());
        Self {
            message: text(object.message, MESSAGE).unwrap_or_default(),
            detail: text(object.detail, DETAIL),
        }
    }
}

/// A text without what would do something to a terminal, a log or a database, and not longer than anybody reads.
fn plain(text: &str, most: usize) -> String {
    let is_plain = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    let mut plain: String = text.chars().filter(is_plain).take(most + 1).collect();
    if let Some((end, _)) = plain.char_indices().nth(most) {
        plain.truncate(end);
        plain.push('…');
    }
    plain
}

/// A text, or nothing where something else stands, however much: that is read over.
#[derive(Debug, Default)]
pub(crate) struct Spoken(pub(crate) Option<String>);

impl<'de> Deserialize<'de> for Spoken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Spoken;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Spoken, E> {
                Ok(Spoken(Some(text.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Spoken, E> {
                Ok(Spoken(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Spoken, E> {
                Ok(Spoken(None))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Spoken, E> {
                Ok(Spoken(None))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Spoken, E> {
                Ok(Spoken(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Spoken, E> {
                Ok(Spoken(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Spoken, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Spoken(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Spoken, A::Error> {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Spoken(None))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_can_be_shown_of_them() {
        let words = |body: &str| decode_words(body.as_bytes());
        let said =
            words(r#"{"error":{"message":"No\u0000 \u001b[31mRecord","detail":"a\nb"},"status":"failure"}"#);
        assert_eq!(
            said,
            Some(Words { message: "No [31mRecord".to_owned(), detail: Some("a\nb".to_owned()) })
        );
        for other in ["null", "1", "-1.5", "true", "[0,[0]]", r#"{"a":{"b":0}}"#, r#""""#] {
            let said = words(&format!(r#"{{"error":{{"message":{other},"detail":{other}}}}}"#));
            assert_eq!(said, Some(Words::default()), "{other}");
        }
        let long = "ü".repeat(5_000);
        let said = words(&format!(r#"{{"error":{{"message":"{long}","detail":"{long}"}}}}"#)).expect("words");
        assert_eq!(said.message.chars().count(), MESSAGE + 1);
        assert_eq!(said.detail.map(|detail| detail.chars().count()), Some(DETAIL + 1));
    }
}
