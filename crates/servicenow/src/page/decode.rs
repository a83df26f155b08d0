//! From the JSON text of an answer to a batch, in one pass.

use std::sync::Arc;

use super::json::{self, Json, Problem};
use super::route::Route;
use super::words::ErrorObject;
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    List,
    Record,
}

/// State of one decoding; errors of ours cannot travel through the reader, so they wait here.
struct Decoder<'t> {
    rows: Rows,
    shape: Shape,
    seen_result: bool,
    words: Option<Words>,
    failure: Option<Error>,
    /// The fields of the rows so far.
    route: Route<'t>,
}

fn decode(layout: &Arc<Layout>, body: &[u8], shape: Shape) -> Result<Rows> {
    let mut decoder = Decoder {
        rows: Rows::new(layout.clone()),
        shape,
        seen_result: false,
        words: None,
        failure: None,
        route: Route::default(),
    };
    let (text, is_broken) = match std::str::from_utf8(body) {
        Ok(text) => (text, false),
        Err(e) => (std::str::from_utf8(&body[..e.valid_up_to()]).unwrap_or_default(), true),
    };
    let mut json = Json::new(text);
    let parsed = decoder.answer(&mut json).and_then(|()| json.end());
    let parsed = if is_broken { parsed.and(Err(Problem::Syntax)) } else { parsed };
    if let Some(failure) = decoder.failure {
        return Err(failure);
    }
    match (parsed, decoder.words) {
        // A list that was cut off carries an error besides its rows, or breaks off in the middle.
        (_, Some(words)) => Err(Error::CutShort(words)),
        (Err(problem), None) if decoder.seen_result => Err(Error::CutShort(Words {
            message: format!("the answer is broken JSON ({})", name_of(problem)),
            detail: None,
        })),
        (Err(problem), None) => Err(Error::Unreadable(describe(body, problem))),
        (Ok(()), None) if !decoder.seen_result => {
            Err(Error::Unreadable("the answer has no \"result\"".to_owned()))
        }
        (Ok(()), None) => Ok(decoder.rows),
    }
}

/// Says what a body is that is no answer, without quoting it.
fn describe(body: &[u8], problem: Problem) -> String {
    describe_other(body).unwrap_or_else(|| format!("the answer is no JSON ({})", name_of(problem)))
}

/// As [`describe`], of a body that is nothing at all or a web page; `None` if it is something else.
pub(crate) fn describe_other(body: &[u8]) -> Option<String> {
    let body = body.trim_ascii();
    let what = if body.is_empty() {
        "the answer is empty"
    } else if body == b"null" {
        "the answer is null"
    } else if body.starts_with(b"<") {
        let text = String::from_utf8_lossy(&body[..body.len().min(4096)]).to_lowercase();
        if text.contains("hibernating") {
            "the instance is hibernating"
        } else if ["login", "log in", "sign in", "saml"].iter().any(|word| text.contains(word)) {
            "the answer is a login page"
        } else {
            "the answer is a web page"
        }
    } else {
        return None;
    };
    Some(what.to_owned())
}

/// Not a word of the input: it may be anything.
fn name_of(problem: Problem) -> &'static str {
    match problem {
        Problem::Short => "it ends early",
        Problem::Syntax => "syntax error",
    }
}

impl<'t> Decoder<'t> {
    /// The outermost object of an answer.
    fn answer(&mut self, json: &mut Json<'t>) -> json::Result<()> {
        json.object(|json, name| match name {
            "result" => {
                self.seen_result = true;
                match self.shape {
                    Shape::List => json.array(|json| self.row(json)),
                    Shape::Record => self.row(json),
                }
            }
            "error" => {
                let error: ErrorObject = serde_json::from_str(json.skip()?).map_err(|_| Problem::Syntax)?;
                self.words = Some(error.into());
                Ok(())
            }
            _ => json.skip().map(|_| ()),
        })
    }

    fn row(&mut self, json: &mut Json<'t>) -> json::Result<()> {
        let Decoder { rows, route, failure, .. } = self;
        let layout = rows.layout.clone();
        let first = rows.cells.len();
        if rows.is_full || (first + layout.columns.len()) * size_of::<Cell>() > MEMORY_LIMIT {
            failure.get_or_insert(Error::TooLarge { limit: MEMORY_LIMIT });
            return Err(Problem::Syntax);
        }
        rows.cells.resize(first + layout.columns.len(), Cell::Absent);
        let mut found = Found::default();
        let mut misfit = None;
        let mut place = 0;
        json.members(|json| {
            if let Some(again) = route.repeated(place, json) {
                for &column in again.target.iter().flat_map(|target| &layout.targets[*target].columns) {
                    rows.cells[first + column] = rows.cells[again.cells + column];
                }
            } else {
                let begin = json.place();
                let target = route.name(place, json, &layout)?;
                let head = json.place() - begin;
                match target {
                    None => drop(json.skip()?),
                    Some(target) => {
                        let (target, found, misfit) = (&layout.targets[target], &mut found, &mut misfit);
                        FieldSink { rows, first, target, found, misfit }.read(json)?;
                    }
                }
                route.stood(place, json.since(begin), head, first, &layout);
            }
            place += 1;
            Ok(())
        })?;
        if rows.is_full {
            failure.get_or_insert(Error::TooLarge { limit: MEMORY_LIMIT });
            return Err(Problem::Syntax);
        }
        let Some((start, len)) = found.id.filter(|(_, len)| *len > 0) else {
            failure.get_or_insert(Error::NoSysId);
            return Err(Problem::Syntax);
        };
        if let Some((column, expected)) = misfit {
            let sys_id = rows.text[start as usize..(start + len) as usize].to_owned();
            let field = rows.layout.columns[column].field.clone();
            failure.get_or_insert(Error::Value { field, sys_id, expected });
            return Err(Problem::Syntax);
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

/// What a member of a field's object is.
enum Side {
    Value,
    Label,
    Other,
}

/// Reads the name of a member of a field's object.
fn side(json: &mut Json<'_>) -> json::Result<Side> {
    // The way they always stand there, compared before anything is looked for.
    if json.repeats(r#""display_value":"#) {
        return Ok(Side::Label);
    }
    if json.repeats(r#""value":"#) {
        return Ok(Side::Value);
    }
    Ok(match json.name()?.as_ref() {
        "display_value" => Side::Label,
        "value" => Side::Value,
        _ => Side::Other,
    })
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
    /// Reads a field: an object of its sides, or its stored value alone. Anything else has no value.
    fn read(mut self, json: &mut Json<'_>) -> json::Result<()> {
        match json.peek()? {
            b'{' => {
                let wants = self.target.wants;
                json.members(|json| match (side(json)?, json.peek()?) {
                    (_, b'{' | b'[') => json.skip().map(|_| ()),
                    (Side::Value, _) if wants.value => {
                        self.value(&json.scalar()?);
                        Ok(())
                    }
                    (Side::Label, _) if wants.label => {
                        self.label(&json.scalar()?);
                        Ok(())
                    }
                    _ => json.skip().map(|_| ()),
                })
            }
            b'[' => json.skip().map(|_| ()),
            _ => {
                self.value(&json.scalar()?);
                Ok(())
            }
        }
    }

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

    /// Rows with next to nothing in them, for many columns; and one text for many columns.
    #[test]
    fn a_small_answer_does_not_take_all_the_memory() {
        let column = |field: &str| Column { field: field.to_owned(), show: Show::Value, kind: Kind::Text };
        let wide = Arc::new(Layout::new((0..1_400).map(|n| column(&format!("f{n}"))).collect()));
        let many = vec![r#"{"sys_id":"1"}"#; 20_000].join(",");
        let error = decode_list(&wide, format!(r#"{{"result":[{many}]}}"#).as_bytes()).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
        let again = Arc::new(Layout::new((0..1_400).map(|_| column("f")).collect()));
        let long = "x".repeat(1 << 20);
        let error =
            decode_list(&again, format!(r#"{{"result":[{{"sys_id":"1","f":"{long}"}}]}}"#).as_bytes());
        assert!(matches!(error, Err(Error::TooLarge { .. })));
        // What an instance may well send.
        let rows = vec![r#"{"sys_id":"1"}"#; 10_000].join(",");
        assert!(decode_list(&wide, format!(r#"{{"result":[{rows}]}}"#).as_bytes()).is_ok());
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

    /// Rows as text. Most have the same fields, of few values, so that much of a row stands in others too. A field may
    /// come twice in a row, which is no good JSON, but what comes of it must not depend on the rows before.
    fn alike() -> impl Strategy<Value = Vec<String>> {
        let name = || prop::sample::select(vec!["state", "caller_id.email", "sys_mod_count", "other"]);
        let value = prop::sample::select(vec![
            r#""""#,
            r#""1""#,
            "1",
            "12",
            "null",
            r#"{"value":"1"}"#,
            r#"{"display_value":"a\"","value":"12"}"#,
        ]);
        let row = (prop::collection::vec(value, 6), 0..6usize, prop::option::of((0..6usize, name())));
        (prop::collection::vec(name(), 6), prop::collection::vec(row, 1..10)).prop_map(|(names, rows)| {
            let text = |(values, length, other): (Vec<&str>, usize, Option<(usize, &str)>)| {
                let mut text = r#"{"sys_id":"a""#.to_owned();
                for i in 0..length {
                    let name = other.filter(|(place, _)| *place == i).map_or(names[i], |(_, name)| name);
                    text += &format!(r#","{name}":{}"#, values[i]);
                }
                text + "}"
            };
            rows.into_iter().map(text).collect()
        })
    }

    proptest! {
        #[test]
        fn a_row_is_read_alike_whatever_stands_before_it(texts in alike()) {
            let list = format!("{{\"result\":[{}]}}", texts.join(","));
            let rows = decode_list(&layout(), list.as_bytes()).unwrap();
            prop_assert_eq!(rows.len(), texts.len());
            for (i, text) in texts.iter().enumerate() {
                let alone = decode_record(&layout(), format!("{{\"result\":{text}}}").as_bytes()).unwrap();
                prop_assert_eq!((rows.id(i), rows.version(i)), (alone.id(0), alone.version(0)));
                for column in 0..layout().columns().len() {
                    let read = |rows: &Rows, row| (rows.is_shown(row, column), format!("{:?}", rows.value(row, column)));
                    prop_assert_eq!(read(&rows, i), read(&alone, 0), "column {} of {}", column, text);
                }
            }
        }

        #[test]
        fn decoding_never_panics(body in "[{}\\[\\]\":,a-z0-9 _.]{0,200}") {
            let _ = decode_list(&layout(), body.as_bytes());
            let _ = decode_record(&layout(), body.as_bytes());
        }
    }
}
