//! The `javascript:` values that the server evaluates in the caller's session (facts §2.2, §2.3).

use chrono::{DateTime, Datelike, Days, Duration, Months, NaiveDate, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;

use super::Session;
use crate::calendar;

/// The value of an expression, or `None` when the simulator does not know the function.
pub(crate) fn evaluate(script: &str, session: &Session) -> Option<String> {
    let script = script.trim().trim_end_matches(';').trim();
    let call = script.strip_prefix("gs.")?;
    let (name, rest) = call.split_once('(')?;
    let arguments: Vec<&str> = rest
        .rsplit_once(')')?
        .0
        .split(',')
        .map(|a| a.trim().trim_matches(|c| c == '\'' || c == '"'))
        .filter(|a| !a.is_empty())
        .collect();
    let number = || arguments.first().and_then(|a| a.parse::<i64>().ok()).unwrap_or(0);
    let today = session.now.with_timezone(&session.zone).date_naive();
    let start = |date: NaiveDate| Some(utc_text(date.and_hms_opt(0, 0, 0)?, session.zone));
    let end = |date: NaiveDate| Some(utc_text(date.and_hms_opt(23, 59, 59)?, session.zone));
    let month = |back: u32| today.with_day(1)?.checked_sub_months(Months::new(back));
    let next_month = |first: NaiveDate| first.checked_add_months(Months::new(1))?.pred_opt();
    let week = |back: u64| {
        today.checked_sub_days(Days::new(u64::from(today.weekday().num_days_from_monday()) + 7 * back))
    };
    let quarter = || NaiveDate::from_ymd_opt(today.year(), today.month0() / 3 * 3 + 1, 1);
    match name {
        "getUserID" => Some(session.user_id.clone()),
        "getUserName" => Some(session.user_name.clone()),
        "now" => Some(today.format("%Y-%m-%d").to_string()),
        "nowDateTime" => Some(calendar::format_utc(session.now)),
        "dateGenerate" => {
            let date = NaiveDate::parse_from_str(arguments.first()?, "%Y-%m-%d").ok()?;
            match arguments.get(1).copied().unwrap_or("00:00:00") {
                "start" => start(date),
                "end" => end(date),
                time => Some(utc_text(date.and_time(time.parse().ok()?), session.zone)),
            }
        }
        "beginningOfToday" | "beginningOfCurrentDay" => start(today),
        "endOfToday" => end(today),
        "beginningOfYesterday" => start(today.pred_opt()?),
        "endOfYesterday" => end(today.pred_opt()?),
        "beginningOfTomorrow" => start(today.succ_opt()?),
        "endOfTomorrow" => end(today.succ_opt()?),
        "beginningOfThisWeek" => start(week(0)?),
        "endOfThisWeek" => end(week(0)?.checked_add_days(Days::new(6))?),
        "beginningOfLastWeek" => start(week(1)?),
        "endOfLastWeek" => end(week(1)?.checked_add_days(Days::new(6))?),
        "beginningOfThisMonth" => start(month(0)?),
        "endOfThisMonth" => end(next_month(month(0)?)?),
        "beginningOfLastMonth" => start(month(1)?),
        "endOfLastMonth" => end(next_month(month(1)?)?),
        "beginningOfThisQuarter" => start(quarter()?),
        "beginningOfThisYear" => start(NaiveDate::from_ymd_opt(today.year(), 1, 1)?),
        "endOfThisYear" => end(NaiveDate::from_ymd_opt(today.year(), 12, 31)?),
        "daysAgo" => Some(calendar::format_utc(session.now - Duration::days(number()))),
        "daysAgoStart" | "beginningOfDaysAgo" => start(today - Duration::days(number())),
        "daysAgoEnd" => end(today - Duration::days(number())),
        "hoursAgo" | "hoursAgoStart" | "hoursAgoEnd" => {
            Some(calendar::format_utc(session.now - Duration::hours(number())))
        }
        "minutesAgo" | "minutesAgoStart" | "minutesAgoEnd" => {
            Some(calendar::format_utc(session.now - Duration::minutes(number())))
        }
        "monthsAgo" => {
            let months = u32::try_from(number()).ok()?;
            Some(calendar::format_utc(session.now.checked_sub_months(Months::new(months))?))
        }
        _ => None,
    }
}

/// A local date-time of a zone as the instance's UTC text.
pub(crate) fn utc_text(local: NaiveDateTime, zone: Tz) -> String {
    calendar::format_utc(to_utc(local, zone))
}

/// A local date-time of a zone in UTC; a time that the zone skips is taken an hour later.
pub(crate) fn to_utc(local: NaiveDateTime, zone: Tz) -> DateTime<Utc> {
    zone.from_local_datetime(&local)
        .earliest()
        .or_else(|| zone.from_local_datetime(&(local + Duration::hours(1))).earliest())
        .map_or_else(|| local.and_utc(), |d| d.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(zone: &str) -> Session {
        Session {
            now: DateTime::parse_from_rfc3339("2026-03-11T02:30:00Z").expect("a date").with_timezone(&Utc),
            zone: zone.parse().expect("a zone"),
            user_id: "abc".to_owned(),
            user_name: "admin".to_owned(),
        }
    }

    #[test]
    fn today_begins_in_the_callers_zone() {
        let at = |zone: &str| evaluate("gs.beginningOfToday()", &session(zone)).expect("known");
        assert_eq!(at("UTC"), "2026-03-11 00:00:00");
        assert_eq!(at("America/Los_Angeles"), "2026-03-10 07:00:00");
    }

    #[test]
    fn date_generate_reads_its_arguments_in_the_session_zone() {
        let at = |s: &str| evaluate(s, &session("Europe/Berlin")).expect("known");
        assert_eq!(at("gs.dateGenerate('2026-01-01','12:00:00')"), "2026-01-01 11:00:00");
        assert_eq!(at("gs.dateGenerate('2026-01-01','end')"), "2026-01-01 22:59:59");
        assert_eq!(at("gs.getUserID()"), "abc");
        assert_eq!(evaluate("alert(1)", &session("UTC")), None);
    }
}
