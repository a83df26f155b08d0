//! The date operators: `RELATIVE..`, `MORETHAN`/`LESSTHAN` and `DATEPART` (facts §2.2).

use chrono::{DateTime, Datelike, Duration, Months, Timelike, Utc};
use chrono_tz::Tz;

/// Steps a point in time by `count` units back or ahead.
pub(crate) fn step(at: DateTime<Utc>, unit: &str, ahead: bool, count: i64) -> Option<DateTime<Utc>> {
    let months = match unit {
        "month" => Some(1),
        "quarter" => Some(3),
        "year" => Some(12),
        _ => None,
    };
    if let Some(months) = months {
        let months = Months::new(u32::try_from(count * months).ok()?);
        return if ahead { at.checked_add_months(months) } else { at.checked_sub_months(months) };
    }
    let span = span(unit, count)?;
    Some(if ahead { at + span } else { at - span })
}

/// The length of `count` units.
pub(crate) fn span(unit: &str, count: i64) -> Option<Duration> {
    match unit {
        "second" => Duration::try_seconds(count),
        "minute" => Duration::try_minutes(count),
        "hour" => Duration::try_hours(count),
        "day" | "dayofweek" => Duration::try_days(count),
        "week" => Duration::try_weeks(count),
        "month" => Duration::try_days(count * 30),
        "quarter" => Duration::try_days(count * 91),
        "year" => Duration::try_days(count * 365),
        _ => None,
    }
}

/// A parsed `gs.datePart('part','value','op')`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DatePart {
    part: String,
    value: i64,
    operator: String,
}

impl DatePart {
    /// Reads the value of a `DATEPART` condition, `label@javascript:gs.datePart(…)`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let call = text.split_once("gs.datePart(")?.1.rsplit_once(')')?.0;
        let mut arguments =
            call.split(',').map(|a| a.trim().trim_matches(|c| c == '\'' || c == '"').to_lowercase());
        let (part, value) = (arguments.next()?, arguments.next()?);
        let operator = arguments.next().unwrap_or_else(|| "ee".to_owned());
        let names: &[&str] = match part.as_str() {
            "dayofweek" => &["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
            "month" => &[
                "january",
                "february",
                "march",
                "april",
                "may",
                "june",
                "july",
                "august",
                "september",
                "october",
                "november",
                "december",
            ],
            _ => &[],
        };
        let first = if part == "month" { 1 } else { 0 };
        let value = match names.iter().position(|n| *n == value) {
            Some(at) => at as i64 + first,
            None => value.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?,
        };
        Some(Self { part, value, operator })
    }

    /// True when a date-time has the part.
    pub(crate) fn matches(&self, at: DateTime<Utc>, zone: Tz) -> bool {
        let at = at.with_timezone(&zone);
        let part = match self.part.as_str() {
            "dayofweek" => i64::from(at.weekday().num_days_from_monday()),
            "month" => i64::from(at.month()),
            "quarter" => i64::from(at.month0() / 3 + 1),
            "year" => i64::from(at.year()),
            "week" => i64::from(at.iso_week().week()),
            "hour" => i64::from(at.hour()),
            _ => return false,
        };
        match self.operator.as_str() {
            "gt" => part > self.value,
            "lt" => part < self.value,
            "ge" => part >= self.value,
            "le" => part <= self.value,
            _ => part == self.value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weekday_is_found_in_the_zone_of_the_session() {
        let part =
            DatePart::parse("Tuesday@javascript:gs.datePart('dayofweek','tuesday','EE')").expect("a part");
        let at = DateTime::parse_from_rfc3339("2026-03-11T02:30:00Z").expect("a date").with_timezone(&Utc);
        assert!(!part.matches(at, Tz::UTC));
        assert!(part.matches(at, "America/Los_Angeles".parse().expect("a zone")));
    }
}
