//! What ServiceNow puts on the wire for one field, and the typed value behind it.
//!
//! Every scalar travels as a JSON string, whatever the column's type; an empty string stands for
//! "no value". This module turns such a string into a [`Value`] of the [`Kind`] a mirror wants, and back.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, Timelike};
use serde::{Deserialize, Serialize};

/// Microseconds in a second.
const SECOND: i64 = 1_000_000;
/// Seconds in a day.
const DAY: i64 = 86_400;

/// The primary key of a record: usually 32 hexadecimal digits, but `global` and `4` occur too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SysId(String);

impl SysId {
    /// Takes over an identifier as the instance gave it.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// A fresh identifier in ServiceNow's own form: 32 lower-case hexadecimal digits.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// The identifier's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the identifier can stand in an encoded query, where `^`, `,` and `@` cannot be escaped.
    pub fn is_plain(&self) -> bool {
        !self.0.is_empty()
            && self.0.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b' '))
    }
}

impl fmt::Display for SysId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A table's name in ServiceNow, such as `incident` or `x_acme_app_thing`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName(String);

/// A name that is not a table or field name of ServiceNow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a valid ServiceNow name")]
pub struct InvalidName(pub String);

impl TableName {
    /// Accepts letters, digits and underscores, the only characters ServiceNow allows in a name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        match !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(is_name_byte) {
            true => Ok(Self(name)),
            false => Err(InvalidName(name)),
        }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TableName {
    type Error = InvalidName;
    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl From<TableName> for String {
    fn from(name: TableName) -> Self {
        name.0
    }
}

/// The longest name of a table or field, in bytes.
const LONGEST_NAME: usize = 80;

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Whether a text can be the name of a field.
pub fn is_field_name(field: &str) -> bool {
    is_field_path(field) && !field.contains('.')
}

/// Whether `field` names a field or a dot-walk (`caller_id.email`) and nothing else.
pub fn is_field_path(field: &str) -> bool {
    let is_name = |part: &str| matches!(part.len(), 1..=LONGEST_NAME) && part.bytes().all(is_name_byte);
    field.split('.').all(is_name)
}

/// Which side of a field a column shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Show {
    /// The stored value: a choice's value, a reference's `sys_id`.
    Value,
    /// The display value: a choice's label, a referenced record's name.
    Label,
}

/// The type a mirror keeps a field as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text, kept verbatim but for NUL characters.
    Text,
    /// `true` or `false`; an empty boolean counts as false.
    Boolean,
    /// A whole number of 64 bits.
    Integer,
    /// A floating point number.
    Float,
    /// A decimal number, carried as its text.
    Numeric,
    /// A point in time; on the wire UTC.
    Instant,
    /// A date and time without a zone.
    DateTime,
    /// A date.
    Date,
    /// A time of day; on the wire a date-time whose date does not count.
    Time,
    /// A duration; on the wire the date-time that lies so long after 1970-01-01 00:00:00.
    Duration,
}

/// One decoded value; `Text` borrows from the page it came in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// No value.
    Null,
    /// [`Kind::Text`] and [`Kind::Numeric`].
    Text(&'a str),
    /// [`Kind::Boolean`].
    Boolean(bool),
    /// [`Kind::Integer`].
    Integer(i64),
    /// [`Kind::Float`].
    Float(f64),
    /// [`Kind::Instant`] and [`Kind::DateTime`]: microseconds since 1970-01-01 00:00:00.
    Micros(i64),
    /// [`Kind::Date`]: days since 1970-01-01.
    Days(i32),
    /// [`Kind::Time`]: microseconds since midnight.
    TimeOfDay(i64),
    /// [`Kind::Duration`]: seconds.
    Seconds(i64),
}

/// A wire value that does not fit the kind its column has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("value is not a valid {0}")]
pub struct Misfit(pub &'static str);

impl Kind {
    /// What a message calls the kind.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Boolean => "boolean",
            Kind::Integer => "whole number",
            Kind::Float => "number",
            Kind::Numeric => "decimal number",
            Kind::Instant | Kind::DateTime => "date and time",
            Kind::Date => "date",
            Kind::Time => "time of day",
            Kind::Duration => "duration",
        }
    }

    /// Decodes a stored value as it stands on the wire (not a display value, which is always text).
    pub fn decode(self, wire: &str) -> Result<Value<'_>, Misfit> {
        if self == Kind::Text {
            return Ok(if wire.is_empty() { Value::Null } else { Value::Text(wire) });
        }
        let wire = wire.trim_ascii();
        if wire.is_empty() {
            return Ok(if self == Kind::Boolean { Value::Boolean(false) } else { Value::Null });
        }
        let decoded = match self {
            Kind::Text => unreachable!("handled above"),
            Kind::Boolean => match wire {
                "true" | "1" => Some(Value::Boolean(true)),
                "false" | "0" => Some(Value::Boolean(false)),
                _ => None,
            },
            Kind::Integer => decode_integer(wire).map(Value::Integer),
            Kind::Float => wire.parse().ok().filter(|f: &f64| f.is_finite()).map(Value::Float),
            Kind::Numeric => is_decimal(wire).then_some(Value::Text(wire)),
            Kind::Instant | Kind::DateTime => decode_seconds(wire).and_then(micros).map(Value::Micros),
            Kind::Date => {
                decode_seconds(wire).and_then(|s| i32::try_from(s.div_euclid(DAY)).ok()).map(Value::Days)
            }
            Kind::Time => decode_time(wire).map(|s| Value::TimeOfDay(s * SECOND)),
            Kind::Duration => decode_seconds(wire).map(Value::Seconds),
        };
        decoded.ok_or(Misfit(self.name()))
    }
}

impl Value<'_> {
    /// The value as a write sends it, in the form the Table API takes without `sysparm_input_display_value`.
    /// A duration's kind is told by its variant; no value is `""`, which empties a field. Times beyond the years
    /// 1 to 9999 and numbers that are not finite have no such form.
    pub fn encode(&self) -> Result<String, Misfit> {
        let time = |seconds| date_time(seconds).ok_or(Misfit("date and time"));
        Ok(match *self {
            Value::Null => String::new(),
            Value::Text(text) => text.to_owned(),
            Value::Boolean(b) => b.to_string(),
            Value::Integer(i) => i.to_string(),
            Value::Float(f) if f.is_finite() => f.to_string(),
            Value::Float(_) => return Err(Misfit("number")),
            Value::Micros(us) => time(us.div_euclid(SECOND))?,
            Value::Days(days) => {
                let text = time(i64::from(days) * DAY)?;
                text.split(' ').next().unwrap_or_default().to_owned()
            }
            Value::TimeOfDay(us) => time(us.div_euclid(SECOND).rem_euclid(DAY))?,
            Value::Seconds(s) => time(s).map_err(|_| Misfit("duration"))?,
        })
    }
}

/// An instant in ServiceNow's form, `yyyy-MM-dd HH:mm:ss` in UTC, from seconds since 1970; `None` if its year
/// does not have four digits.
pub fn date_time(seconds: i64) -> Option<String> {
    let t = DateTime::from_timestamp(seconds, 0).filter(|t| (1..=9999).contains(&t.year()))?;
    let (date, time) = ((t.year(), t.month(), t.day()), (t.hour(), t.minute(), t.second()));
    Some(format!("{:04}-{:02}-{:02} {:02}:{:02}:{:02}", date.0, date.1, date.2, time.0, time.1, time.2))
}

/// Parses `yyyy-MM-dd HH:mm:ss` (or a date alone) as seconds since 1970-01-01 00:00:00.
pub fn decode_seconds(wire: &str) -> Option<i64> {
    let (date, time) = match wire.split_once([' ', 'T']) {
        Some((date, time)) => (date, time),
        None => (wire, "00:00:00"),
    };
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() < 4 || year.len() > 6 {
        return None;
    }
    let date = NaiveDate::from_ymd_opt(digits(year)? as i32, digits(month)?, digits(day)?)?;
    let days = date.signed_duration_since(DateTime::UNIX_EPOCH.date_naive()).num_days();
    Some(days * DAY + decode_time(time)?)
}

/// Parses `HH:mm:ss`, or the time part of a date-time, as seconds since midnight.
fn decode_time(wire: &str) -> Option<i64> {
    let time = wire.rsplit_once(' ').map_or(wire, |(_, time)| time);
    let time = time.split_once('.').map_or(time, |(whole, _)| whole).trim_end_matches('Z');
    let mut parts = time.split(':');
    let (hour, minute) = (digits(parts.next()?)?, digits(parts.next()?)?);
    let second = parts.next().map_or(Some(0), digits)?;
    (parts.next().is_none() && hour < 24 && minute < 60 && second < 60)
        .then_some(i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
}

fn digits(text: &str) -> Option<u32> {
    let digit = |b: u8| b.is_ascii_digit().then(|| u32::from(b - b'0'));
    let number = || text.bytes().try_fold(0, |number, b| Some(number * 10 + digit(b)?));
    (1..=6).contains(&text.len()).then(number).flatten()
}

fn micros(seconds: i64) -> Option<i64> {
    seconds.checked_mul(SECOND)
}

/// Whole numbers; a zero fraction (`5.00`), which decimal-backed integer fields show, is accepted.
fn decode_integer(wire: &str) -> Option<i64> {
    match wire.split_once('.') {
        None => wire.parse().ok(),
        Some((whole, fraction)) if fraction.bytes().all(|b| b == b'0') => whole.parse().ok(),
        Some(_) => None,
    }
}

fn is_decimal(wire: &str) -> bool {
    let unsigned = wire.strip_prefix(['-', '+']).unwrap_or(wire);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((m, e)) => (m, e.strip_prefix(['-', '+']).unwrap_or(e)),
        None => (unsigned, "0"),
    };
    let digit = |b: u8| b.is_ascii_digit();
    mantissa.bytes().any(digit)
        && mantissa.bytes().filter(|&b| b == b'.').count() <= 1
        && mantissa.bytes().all(|b| digit(b) || b == b'.')
        && !exponent.is_empty()
        && exponent.len() <= 4
        && exponent.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn date_times_are_read_as_utc() {
        assert_eq!(Kind::Instant.decode("2016-12-14 02:46:44"), Ok(Value::Micros(1_481_683_604_000_000)));
        assert_eq!(Kind::Instant.decode("2016-12-14"), Ok(Value::Micros(1_481_673_600_000_000)));
        assert_eq!(Kind::Instant.decode(""), Ok(Value::Null));
        assert_eq!(Kind::Instant.decode("UNKNOWN"), Err(Misfit("date and time")));
        assert_eq!(Kind::Instant.decode("2016-02-30 00:00:00"), Err(Misfit("date and time")));
    }

    #[test]
    fn durations_are_the_distance_from_the_epoch() {
        assert_eq!(Kind::Duration.decode("1970-01-02 04:23:17"), Ok(Value::Seconds(86_400 + 15_797)));
        assert_eq!(Kind::Duration.decode("2016-01-01 00:02:17"), Ok(Value::Seconds(16_801 * DAY + 137)));
        assert_eq!(Kind::Duration.decode("1969-12-31 23:59:00"), Ok(Value::Seconds(-60)));
        assert_eq!(Value::Seconds(102_197).encode().unwrap(), "1970-01-02 04:23:17");
    }

    #[test]
    fn an_empty_boolean_counts_as_false_and_every_other_empty_value_as_none() {
        assert_eq!(Kind::Boolean.decode(""), Ok(Value::Boolean(false)));
        for kind in [Kind::Text, Kind::Integer, Kind::Numeric, Kind::Date, Kind::Time, Kind::Float] {
            assert_eq!(kind.decode(""), Ok(Value::Null));
        }
    }

    #[test]
    fn numbers_keep_their_text_where_precision_matters() {
        assert_eq!(Kind::Numeric.decode("699.99"), Ok(Value::Text("699.99")));
        assert_eq!(Kind::Numeric.decode("-1.5e10"), Ok(Value::Text("-1.5e10")));
        assert_eq!(Kind::Numeric.decode("1,5"), Err(Misfit("decimal number")));
        assert_eq!(Kind::Integer.decode("-5"), Ok(Value::Integer(-5)));
        assert_eq!(Kind::Integer.decode("5.00"), Ok(Value::Integer(5)));
        assert_eq!(Kind::Integer.decode("102,197"), Err(Misfit("whole number")));
    }

    #[test]
    fn times_of_day_ignore_the_date() {
        assert_eq!(Kind::Time.decode("1970-01-01 16:04:32"), Ok(Value::TimeOfDay(57_872_000_000)));
        assert_eq!(Kind::Time.decode("08:00:00"), Ok(Value::TimeOfDay(28_800_000_000)));
        assert_eq!(Value::TimeOfDay(28_800_000_000).encode().unwrap(), "1970-01-01 08:00:00");
    }

    #[test]
    fn names_are_checked_before_they_reach_a_url() {
        assert!(TableName::new("u_pg_changes").is_ok());
        assert!(TableName::new("incident/../sys_user").is_err());
        assert!(TableName::new("").is_err());
        assert!(is_field_path("caller_id.email"));
        assert!(!is_field_path("caller_id..email"));
        assert!(!is_field_path("a^b"));
        let longest = "a".repeat(LONGEST_NAME);
        assert!(is_field_path(&format!("{longest}.{longest}")) && !is_field_path(&format!("{longest}a")));
    }

    #[test]
    fn what_the_wire_has_no_form_for_is_refused() {
        assert!(Value::Micros(i64::MAX).encode().is_err());
        assert!(Value::Micros(i64::MIN).encode().is_err());
        assert!(Value::Days(i32::MAX).encode().is_err());
        assert!(Value::Seconds(300_000_000_000).encode().is_err());
        assert!(Value::Float(f64::NAN).encode().is_err());
        assert!(Value::Float(f64::INFINITY).encode().is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(wire in "\\PC{0,40}") {
            for kind in [Kind::Boolean, Kind::Integer, Kind::Float, Kind::Numeric, Kind::Instant,
                         Kind::DateTime, Kind::Date, Kind::Time, Kind::Duration, Kind::Text] {
                let _ = kind.decode(&wire);
            }
        }

        #[test]
        fn what_is_written_reads_back(seconds in -60_000_000_000i64..250_000_000_000) {
            let wire = Value::Micros(seconds * SECOND).encode().unwrap();
            prop_assert_eq!(Kind::Instant.decode(&wire), Ok(Value::Micros(seconds * SECOND)));
            prop_assert_eq!(Kind::Duration.decode(&wire), Ok(Value::Seconds(seconds)));
        }
    }
}
