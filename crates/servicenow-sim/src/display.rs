//! Display values: what a stored value looks like to a user (facts §1.4).

use chrono::{NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;

use crate::calendar;
use crate::query::script;

/// How a user sees dates and labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    /// The time zone.
    pub(crate) zone: Tz,
    /// The date format in Java's letters.
    pub(crate) date_format: String,
    /// The time format in Java's letters.
    pub(crate) time_format: String,
    /// The language of labels.
    pub(crate) language: String,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            zone: Tz::UTC,
            date_format: "yyyy-MM-dd".to_owned(),
            time_format: "HH:mm:ss".to_owned(),
            language: "en".to_owned(),
        }
    }
}

impl Profile {
    /// True when date-times are shown as they are stored.
    pub(crate) fn is_plain(&self) -> bool {
        self.zone == Tz::UTC && self.date_format == "yyyy-MM-dd" && self.time_format == "HH:mm:ss"
    }

    /// A UTC date-time in the user's zone and format.
    pub(crate) fn date_time(&self, seconds: i64) -> String {
        let local = Utc
            .timestamp_opt(seconds, 0)
            .single()
            .unwrap_or_default()
            .with_timezone(&self.zone)
            .naive_local();
        self.local(local)
    }

    /// A date-time in the user's format without any shift.
    pub(crate) fn local(&self, local: NaiveDateTime) -> String {
        if self.date_format == "yyyy-MM-dd" && self.time_format == "HH:mm:ss" {
            let mut buffer = [0u8; 19];
            return calendar::write_canonical(local.and_utc().timestamp(), &mut buffer).to_owned();
        }
        format!("{} {}", format_java(&self.date_format, local), format_java(&self.time_format, local))
    }

    /// A stored date `yyyy-MM-dd` in the user's format.
    pub(crate) fn date(&self, text: &str) -> String {
        match NaiveDate::parse_from_str(text, "%Y-%m-%d") {
            Ok(date) => format_java(&self.date_format, date.and_time(NaiveTime::MIN)),
            Err(_) => text.to_owned(),
        }
    }

    /// Reads a date-time in the user's zone and format as UTC text (facts §1.3, `sysparm_input_display_value`).
    pub(crate) fn parse_date_time(&self, text: &str) -> Option<String> {
        let format = format!("{} {}", self.date_format, self.time_format);
        let local = parse_java(&format, text)
            .or_else(|| parse_java(&self.date_format, text))
            .or_else(|| calendar::parse_loose(text).map(calendar::naive))?;
        Some(script::utc_text(local, self.zone))
    }

    /// Reads a date in the user's format as the stored form.
    pub(crate) fn parse_date(&self, text: &str) -> Option<String> {
        parse_java(&self.date_format, text)
            .or_else(|| calendar::parse_loose(text.get(..10)?).map(calendar::naive))
            .map(|d| d.format("%Y-%m-%d").to_string())
    }
}

/// The runs of equal letters and the literals of a Java date pattern.
fn pieces(pattern: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for c in pattern.chars() {
        match out.last_mut() {
            Some(last) if c.is_ascii_alphabetic() && last.starts_with(c) => last.push(c),
            _ => out.push(c.to_string()),
        }
    }
    out
}

fn chrono_pattern(piece: &str) -> &str {
    match piece {
        "yyyy" => "%Y",
        "yy" => "%y",
        "MMM" => "%b",
        "MM" => "%m",
        "M" => "%-m",
        "dd" => "%d",
        "d" => "%-d",
        "HH" => "%H",
        "H" => "%-H",
        "hh" => "%I",
        "h" => "%-I",
        "mm" => "%M",
        "ss" => "%S",
        "a" => "%p",
        other => other,
    }
}

fn format_java(pattern: &str, at: NaiveDateTime) -> String {
    let chrono: String = pieces(pattern).iter().map(|p| chrono_pattern(p)).collect();
    at.format(&chrono).to_string()
}

fn parse_java(pattern: &str, text: &str) -> Option<NaiveDateTime> {
    let chrono: String = pieces(pattern).iter().map(|p| chrono_pattern(p).replace("%-", "%")).collect();
    NaiveDateTime::parse_from_str(text, &chrono).ok().or_else(|| {
        let date = NaiveDate::parse_from_str(text, &chrono).ok()?;
        date.and_hms_opt(0, 0, 0)
    })
}

/// A number with thousands separators (facts §1.4: `102,197`).
pub(crate) fn grouped(text: &str) -> String {
    let (sign, rest) = text.strip_prefix('-').map_or(("", text), |r| ("-", r));
    let (whole, fraction) = rest.split_once('.').map_or((rest, None), |(w, f)| (w, Some(f)));
    if whole.len() <= 3 || !whole.bytes().all(|b| b.is_ascii_digit()) {
        return text.to_owned();
    }
    let mut out = sign.to_owned();
    for (at, c) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// An amount as shown, `$1,234.50` (facts §1.4).
pub(crate) fn currency(text: &str) -> String {
    let n: f64 = text.parse().unwrap_or(0.0);
    let sign = if n < 0.0 { "-" } else { "" };
    format!("{sign}${}", grouped(&format!("{:.2}", n.abs())))
}

/// The third key of an amount in `all` mode, `USD;699.99`.
pub(crate) fn currency_code(text: &str) -> String {
    format!("USD;{:.2}", text.parse::<f64>().unwrap_or(0.0))
}

/// Elapsed time as shown: seconds are dropped (facts §1.4: `1 Day 4 Hours 23 Minutes`).
pub(crate) fn duration(seconds: i64) -> String {
    let unit = |n: i64, name: &str| match n {
        0 => None,
        1 => Some(format!("1 {name}")),
        n => Some(format!("{n} {name}s")),
    };
    let parts: Vec<String> =
        [unit(seconds / 86_400, "Day"), unit(seconds / 3600 % 24, "Hour"), unit(seconds / 60 % 60, "Minute")]
            .into_iter()
            .flatten()
            .collect();
    if parts.is_empty() { format!("{} Seconds", seconds % 60) } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_captured() {
        let shown = |text: &str| duration(calendar::parse_canonical(text).expect("canonical"));
        assert_eq!(shown("1970-01-02 04:23:17"), "1 Day 4 Hours 23 Minutes");
        assert_eq!(shown("2016-01-01 00:02:17"), "16801 Days 2 Minutes");
        assert_eq!(shown("1970-01-01 08:00:00"), "8 Hours");
    }

    #[test]
    fn amounts_and_numbers_are_shown_as_captured() {
        assert_eq!(grouped("102197"), "102,197");
        assert_eq!(grouped("-1234567.25"), "-1,234,567.25");
        assert_eq!(currency("0"), "$0.00");
        assert_eq!(currency("1234.5"), "$1,234.50");
        assert_eq!(currency_code("699.99"), "USD;699.99");
    }

    #[test]
    fn a_user_sees_and_types_dates_in_their_own_zone_and_format() {
        let profile = Profile {
            zone: "America/Los_Angeles".parse().expect("a zone"),
            date_format: "MM/dd/yyyy".to_owned(),
            time_format: "hh:mm:ss a".to_owned(),
            language: "en".to_owned(),
        };
        let seconds = calendar::parse_canonical("2016-12-14 02:46:44").expect("canonical");
        assert_eq!(profile.date_time(seconds), "12/13/2016 06:46:44 PM");
        assert_eq!(profile.parse_date_time("12/13/2016 06:46:44 PM").as_deref(), Some("2016-12-14 02:46:44"));
        assert_eq!(profile.date("2024-09-10"), "09/10/2024");
    }
}
