//! Date-times in the instance's own form, `yyyy-MM-dd HH:mm:ss`, always UTC (facts §2.3), without any allocation.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// Parses exactly `yyyy-MM-dd HH:mm:ss`, giving seconds since 1970.
pub(crate) fn parse_canonical(text: &str) -> Option<i64> {
    let b = text.as_bytes();
    if b.len() != 19 || b[4] != b'-' || b[7] != b'-' || b[10] != b' ' || b[13] != b':' || b[16] != b':' {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<i64> {
        let mut n = 0i64;
        for &c in &b[from..to] {
            if !c.is_ascii_digit() {
                return None;
            }
            n = n * 10 + i64::from(c - b'0');
        }
        Some(n)
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if hour > 23 || minute > 59 || second > 59 || !(1..=12).contains(&month) || day < 1 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    (civil_from_days(days) == (year, month, day))
        .then_some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Writes seconds since 1970 as `yyyy-MM-dd HH:mm:ss`.
pub(crate) fn write_canonical(seconds: i64, out: &mut [u8; 19]) -> &str {
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    let mut put = |at: usize, width: usize, mut n: i64| {
        for i in (at..at + width).rev() {
            out[i] = b'0' + (n % 10) as u8;
            n /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, rest / 3600);
    put(14, 2, rest / 60 % 60);
    put(17, 2, rest % 60);
    (out[4], out[7], out[10], out[13], out[16]) = (b'-', b'-', b' ', b':', b':');
    std::str::from_utf8(out).expect("only ASCII was written")
}

/// The instance's text of a point in time.
pub(crate) fn format_utc(at: DateTime<Utc>) -> String {
    let mut buffer = [0u8; 19];
    write_canonical(at.timestamp(), &mut buffer).to_owned()
}

/// Parses a date-time or a date alone (midnight), as queries accept both (facts §2.3).
pub(crate) fn parse_loose(text: &str) -> Option<i64> {
    parse_canonical(text).or_else(|| {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
        (text.len() == 10).then(|| date.and_hms_opt(0, 0, 0)).flatten().map(|d| d.and_utc().timestamp())
    })
}

/// The naive date-time of seconds since 1970.
pub(crate) fn naive(seconds: i64) -> NaiveDateTime {
    DateTime::<Utc>::from_timestamp(seconds, 0).unwrap_or_default().naive_utc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_of_a_real_date_is_canonical() {
        assert_eq!(parse_canonical("1970-01-02 04:23:17"), Some(102_197));
        for wrong in [
            "2023-02-29 00:00:00",
            "2016-1-01 00:00:00",
            "2016-01-01T00:00:00",
            "2016-01-01 24:00:00",
            "2016-01-01",
        ] {
            assert_eq!(parse_canonical(wrong), None, "{wrong}");
        }
        assert_eq!(parse_loose("1970-01-02"), Some(86_400));
    }

    proptest::proptest! {
        #[test]
        fn every_second_of_the_packed_range_survives(seconds in 0i64..2_147_483_648) {
            let mut buffer = [0u8; 19];
            let text = write_canonical(seconds, &mut buffer).to_owned();
            proptest::prop_assert_eq!(parse_canonical(&text), Some(seconds));
            proptest::prop_assert_eq!(naive(seconds).format("%Y-%m-%d %H:%M:%S").to_string(), text);
        }
    }
}
