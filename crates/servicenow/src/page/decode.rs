//! From the JSON text of an answer to a batch, in one pass.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::*;
use crate::error::{Error, Result, Words};
use crate::value::decode_seconds;

/// Decodes the answer to a list call.
pub fn decode_list(layout: &Arc<Layout>, body: &[u8]) -> Result<Rows> {
    decode(layout, body, Shape::List)
}

/// Decodes the answer to a call on one record, as a batch of one row.
pub fn decode_record(layout: &Arc<Layout>, body: &[u8]) -> Result<Rows> {
    decode(layout, body, Shape::Record)
}

/// Decodes the `error` object of an answer; `None` if the body is not one.
pub fn decode_words(body: &[u8]) -> Option<Words> {
    #[derive(Deserialize)]
    struct Failure {
        error: ErrorObject,
    }
    serde_json::from_slice::<Failure>(body).ok().map(|failure| failure.error.into())
}

/// The `error` object. Its parts are strings; whatever else an instance puts there is not worth failing for.
#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    message: serde_json::Value,
    #[serde(default)]
    detail: serde_json::Value,
}

impl From<ErrorObject> for Words {
    fn from(object: ErrorObject) -> Self {
        let text = |value: serde_json::Value| value.as_str().map(str::to_owned).filter(|s| !s.is_empty());
        Self { message: text(object.message).unwrap_or_default(), detail: text(object.detail) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    List,
    Record,
}

/// State of one decoding; errors of ours cannot travel through serde, so they wait here.
struct Decoder {
    rows: Rows,
    shape: Shape,
    seen_result: bool,
    words: Option<Words>,
    failure: Option<Error>,
    /// The field names of the row before and where they went: rows of a class have the same keys in the same
    /// order, so most keys are recognised by one comparison.
    route: Vec<(String, Option<Target>)>,
}

fn decode(layout: &Arc<Layout>, body: &[u8], shape: Shape) -> Result<Rows> {
    let mut decoder = Decoder {
        rows: Rows::new(layout.clone()),
        shape,
        seen_result: false,
        words: None,
        failure: None,
        route: Vec::new(),
    };
    // Once for all: the parser would look at every string by itself.
    let (valid, is_broken) = match std::str::from_utf8(body) {
        Ok(text) => (text, false),
        Err(e) => (std::str::from_utf8(&body[..e.valid_up_to()]).unwrap_or_default(), true),
    };
    let mut json = serde_json::Deserializer::from_str(valid);
    let parsed = Answer(&mut decoder).deserialize(&mut json).and_then(|()| json.end());
    let parsed = if is_broken { parsed.and(Err(serde_json::Error::custom("not UTF-8"))) } else { parsed };
    if let Some(failure) = decoder.failure {
        return Err(failure);
    }
    match (parsed, decoder.words) {
        // A list that was cut off carries an error besides its rows, or breaks off in the middle.
        (_, Some(words)) => Err(Error::CutShort(words)),
        (Err(e), None) if decoder.seen_result => Err(Error::CutShort(Words {
            message: format!("the answer is broken JSON ({})", category(&e)),
            detail: None,
        })),
        (Err(e), None) => Err(Error::Unreadable(describe(body, &e))),
        (Ok(()), None) if !decoder.seen_result => {
            Err(Error::Unreadable("the answer has no \"result\"".to_owned()))
        }
        (Ok(()), None) => Ok(decoder.rows),
    }
}

/// Says what a body is that is no answer, without quoting it.
fn describe(body: &[u8], e: &serde_json::Error) -> String {
    let body = body.trim_ascii();
    if body.is_empty() {
        "the answer is empty".to_owned()
    } else if body == b"null" {
        "the answer is null".to_owned()
    } else if body.starts_with(b"<") {
        let text = String::from_utf8_lossy(&body[..body.len().min(4096)]).to_lowercase();
        if text.contains("hibernating") {
            "the instance is hibernating".to_owned()
        } else if ["login", "log in", "sign in", "saml"].iter().any(|word| text.contains(word)) {
            "the answer is a login page".to_owned()
        } else {
            "the answer is a web page".to_owned()
        }
    } else {
        format!("the answer is no JSON ({})", category(e))
    }
}

/// serde_json's messages may quote the input; its category does not.
fn category(e: &serde_json::Error) -> &'static str {
    match e.classify() {
        serde_json::error::Category::Io => "it could not be read",
        serde_json::error::Category::Syntax => "syntax error",
        serde_json::error::Category::Data => "unexpected structure",
        serde_json::error::Category::Eof => "it ends early",
    }
}

/// The outermost object of an answer.
struct Answer<'d>(&'d mut Decoder);

impl<'de> DeserializeSeed<'de> for Answer<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Answer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match key.as_ref() {
                "result" => {
                    self.0.seen_result = true;
                    map.next_value_seed(ResultRows(self.0))?;
                }
                "error" => {
                    self.0.words = Some(map.next_value::<ErrorObject>()?.into());
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The value of `result`: an array of rows, or one row.
struct ResultRows<'d>(&'d mut Decoder);

impl<'de> DeserializeSeed<'de> for ResultRows<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        match self.0.shape {
            Shape::List => deserializer.deserialize_seq(self),
            Shape::Record => deserializer.deserialize_map(Row(self.0)),
        }
    }
}

impl<'de> Visitor<'de> for ResultRows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while seq.next_element_seed(Row(self.0))?.is_some() {}
        Ok(())
    }
}

/// One row.
struct Row<'d>(&'d mut Decoder);

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Decoder { rows, route, failure, .. } = self.0;
        let first = rows.cells.len();
        rows.cells.resize(first + rows.layout.columns.len(), Cell::Absent);
        let mut found = Found::default();
        let mut misfit = None;
        let mut position = 0;
        while map.next_key_seed(Key { route, layout: &rows.layout, position })?.is_some() {
            match &route[position].1 {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(target) => {
                    let (found, misfit) = (&mut found, &mut misfit);
                    map.next_value_seed(FieldSink { rows, first, target, found, misfit })?;
                }
            }
            position += 1;
        }
        let Some((start, len)) = found.id.filter(|(_, len)| *len > 0) else {
            failure.get_or_insert(Error::NoSysId);
            return Err(A::Error::custom("row without sys_id"));
        };
        if let Some((column, expected)) = misfit {
            let sys_id = rows.text[start as usize..(start + len) as usize].to_owned();
            let field = rows.layout.columns[column].field.clone();
            failure.get_or_insert(Error::Value { field, sys_id, expected });
            return Err(A::Error::custom("value does not fit"));
        }
        rows.ids.push((start, len));
        rows.versions.push(found.version);
        Ok(())
    }
}

/// What a row tells about itself.
#[derive(Default)]
struct Found {
    id: Option<(u32, u32)>,
    version: Version,
}

/// Reads a key and looks up where its value goes, trying the place the row before had it at first.
struct Key<'d> {
    route: &'d mut Vec<(String, Option<Target>)>,
    layout: &'d Layout,
    position: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, key: &str) -> std::result::Result<(), E> {
        match self.route.get(self.position) {
            Some((name, _)) if name == key => {}
            _ => {
                let entry = (key.to_owned(), self.layout.targets.get(key).cloned());
                self.route.truncate(self.position);
                self.route.push(entry);
            }
        }
        Ok(())
    }
}

/// Puts one field's value where it belongs.
struct FieldSink<'d> {
    rows: &'d mut Rows,
    first: usize,
    target: &'d Target,
    found: &'d mut Found,
    misfit: &'d mut Option<(usize, &'static str)>,
}

impl FieldSink<'_> {
    fn value(&mut self, wire: &str) {
        match self.target.stamp {
            Some(Stamp::SysId) => {
                if let Cell::Text { start, len } = self.rows.keep(wire) {
                    self.found.id = Some((start, len));
                }
            }
            Some(Stamp::UpdatedOn) => self.found.version.updated_on = decode_seconds(wire),
            Some(Stamp::ModCount) => self.found.version.mod_count = wire.parse().ok(),
            None => {}
        }
        for &column in &self.target.columns {
            let Column { show: Show::Value, kind, .. } = self.rows.layout.columns[column] else { continue };
            let cell = match kind.decode(wire) {
                Ok(Value::Null) => Cell::Null,
                Ok(Value::Text(text)) => self.rows.keep(text),
                Ok(Value::Boolean(b)) => Cell::Boolean(b),
                Ok(Value::Integer(i)) => Cell::Integer(i),
                Ok(Value::Float(f)) => Cell::Float(f),
                Ok(Value::Micros(us)) => Cell::Micros(us),
                Ok(Value::Days(days)) => Cell::Days(days),
                Ok(Value::TimeOfDay(us)) => Cell::TimeOfDay(us),
                Ok(Value::Seconds(s)) => Cell::Seconds(s),
                Err(misfit) => {
                    self.misfit.get_or_insert((column, misfit.0));
                    Cell::Null
                }
            };
            self.rows.cells[self.first + column] = cell;
        }
    }

    fn label(&mut self, wire: &str) {
        for i in 0..self.target.columns.len() {
            let column = self.target.columns[i];
            if self.rows.layout.columns[column].show == Show::Label {
                let cell = if wire.is_empty() { Cell::Null } else { self.rows.keep(wire) };
                self.rows.cells[self.first + column] = cell;
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for FieldSink<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldSink<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's value")
    }

    fn visit_str<E>(mut self, wire: &str) -> std::result::Result<(), E> {
        self.value(wire);
        Ok(())
    }

    fn visit_bool<E>(mut self, wire: bool) -> std::result::Result<(), E> {
        self.value(if wire { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E>(mut self, wire: i64) -> std::result::Result<(), E> {
        self.value(&wire.to_string());
        Ok(())
    }

    fn visit_u64<E>(mut self, wire: u64) -> std::result::Result<(), E> {
        self.value(&wire.to_string());
        Ok(())
    }

    fn visit_f64<E>(mut self, wire: f64) -> std::result::Result<(), E> {
        self.value(&wire.to_string());
        Ok(())
    }

    fn visit_unit<E>(mut self) -> std::result::Result<(), E> {
        self.value("");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<(), A::Error> {
        let wants = self.target.wants;
        while let Some(side) = map.next_key_seed(SideName)? {
            match side {
                Some(Show::Value) if wants.value => {
                    map.next_value_seed(Scalar { sink: &mut self, label: false })?
                }
                Some(Show::Label) if wants.label => {
                    map.next_value_seed(Scalar { sink: &mut self, label: true })?
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// The name of a field's side.
struct SideName;

impl<'de> DeserializeSeed<'de> for SideName {
    type Value = Option<Show>;
    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Option<Show>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for SideName {
    type Value = Option<Show>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> std::result::Result<Option<Show>, E> {
        Ok(match name {
            "value" => Some(Show::Value),
            "display_value" => Some(Show::Label),
            _ => None,
        })
    }
}

/// One side of a field that came as an object.
struct Scalar<'s, 'd> {
    sink: &'s mut FieldSink<'d>,
    label: bool,
}

impl<'de> DeserializeSeed<'de> for Scalar<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Scalar<'_, '_> {
    fn put(self, wire: &str) {
        if self.label {
            self.sink.label(wire);
        } else {
            self.sink.value(wire);
        }
    }
}

impl<'de> Visitor<'de> for Scalar<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar")
    }

    fn visit_str<E>(self, wire: &str) -> std::result::Result<(), E> {
        self.put(wire);
        Ok(())
    }

    fn visit_bool<E>(self, wire: bool) -> std::result::Result<(), E> {
        self.put(if wire { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E>(self, wire: i64) -> std::result::Result<(), E> {
        self.put(&wire.to_string());
        Ok(())
    }

    fn visit_u64<E>(self, wire: u64) -> std::result::Result<(), E> {
        self.put(&wire.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, wire: f64) -> std::result::Result<(), E> {
        self.put(&wire.to_string());
        Ok(())
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        self.put("");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout() -> Arc<Layout> {
        let column = |field: &str, show, kind| Column { field: field.to_owned(), show, kind };
        Arc::new(Layout::new(vec![
            column("sys_id", Show::Value, Kind::Text),
            column("state", Show::Label, Kind::Text),
            column("state", Show::Value, Kind::Integer),
            column("opened_at", Show::Value, Kind::Instant),
            column("caller_id.email", Show::Value, Kind::Text),
        ]))
    }

    #[test]
    fn both_sides_of_a_field_reach_their_columns() {
        let body = br#"{"result":[{"link":"x","state":{"display_value":"In Progress","value":"2"},
            "sys_id":{"display_value":"a1","value":"a1"},"opened_at":{"display_value":"x","value":"2016-02-29 01:16:00"},
            "sys_updated_on":{"display_value":"y","value":"2016-02-29 01:23:00"},"sys_mod_count":{"display_value":"1,000","value":"1000"}},
            {"sys_id":"b2","state":"3","caller_id.email":"a\u0000\n\"b","opened_at":null}]}"#;
        let rows = decode_list(&layout(), body).unwrap();
        assert_eq!(rows.ids().collect::<Vec<_>>(), ["a1", "b2"]);
        assert_eq!(rows.value(0, 1), Value::Text("In Progress"));
        assert_eq!(rows.value(0, 2), Value::Integer(2));
        assert_eq!(rows.value(0, 3), Value::Micros(1_456_708_560_000_000));
        assert_eq!(rows.value(0, 4), Value::Null);
        assert!(!rows.is_shown(0, 4) && rows.is_shown(1, 3));
        assert_eq!(rows.version(0), Version { updated_on: Some(1_456_708_980), mod_count: Some(1000) });
        assert_eq!(rows.value(1, 1), Value::Null);
        assert_eq!(rows.value(1, 2), Value::Integer(3));
        assert_eq!(rows.value(1, 4), Value::Text("a\n\"b"));
    }

    #[test]
    fn a_reference_with_its_link_is_read_like_one_without() {
        let body = br#"{"result":{"sys_id":"a","state":{"link":"https://x/api","value":"7"}}}"#;
        let rows = decode_record(&layout(), body).unwrap();
        assert_eq!(rows.value(0, 2), Value::Integer(7));
    }

    #[test]
    fn a_list_with_an_error_beside_it_is_cut_short() {
        for body in [
            r#"{"result":[{"sys_id":"a"}],"error":{"message":"Transaction cancelled: maximum execution time exceeded","detail":"d"},"status":"failure"}"#,
            r#"{"error":{"message":"m","detail":null},"result":[{"sys_id":"a"}]}"#,
            r#"{"result":[{"sys_id":"a"},]}"#,
            r#"{"result":[{"sys_id":"a"}"#,
            r#"{"result":[{"sys_id":"a"},"text inside"]}"#,
        ] {
            assert!(matches!(decode_list(&layout(), body.as_bytes()), Err(Error::CutShort(_))), "{body}");
        }
    }

    #[test]
    fn what_is_no_answer_is_named() {
        let say = |body: &str| match decode_list(&layout(), body.as_bytes()) {
            Err(Error::Unreadable(what)) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(say("null"), "the answer is null");
        assert_eq!(say(""), "the answer is empty");
        assert_eq!(say("<html><title> Instance Hibernating page </title>"), "the instance is hibernating");
        assert_eq!(say("<html>login</html>"), "the answer is a login page");
        assert_eq!(say("<html></html>"), "the answer is a web page");
        assert_eq!(say("{}"), "the answer has no \"result\"");
    }

    #[test]
    fn a_misfit_names_field_and_record_but_not_the_value() {
        let body = br#"{"result":[{"opened_at":"secret","sys_id":"a"}]}"#;
        let error = decode_list(&layout(), body).unwrap_err();
        assert_eq!(
            error.to_string(),
            "value of field \"opened_at\" in record \"a\" is not a valid date and time"
        );
        assert!(matches!(decode_list(&layout(), br#"{"result":[{"state":"1"}]}"#), Err(Error::NoSysId)));
    }

    #[test]
    fn rows_of_different_classes_with_other_keys_in_other_order_are_told_apart() {
        let body = br#"{"result":[{"sys_id":"a","state":"1"},{"x":"9","state":"2","sys_id":"b"},{"sys_id":"c","state":"3"}]}"#;
        let rows = decode_list(&layout(), body).unwrap();
        let states: Vec<_> = (0..3).map(|row| rows.value(row, 2)).collect();
        assert_eq!(states, [Value::Integer(1), Value::Integer(2), Value::Integer(3)]);
    }

    #[test]
    fn fields_are_asked_for_once() {
        assert_eq!(
            layout().fields(),
            ["sys_id", "sys_updated_on", "sys_mod_count", "state", "opened_at", "caller_id.email"]
        );
        assert!(layout().wants_labels());
        assert!(!Layout::of_text(&["name"]).wants_labels());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(body in "[{}\\[\\]\":,a-z0-9 _.]{0,200}") {
            let _ = decode_list(&layout(), body.as_bytes());
            let _ = decode_record(&layout(), body.as_bytes());
        }
    }
}
