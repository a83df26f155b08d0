//! What an answer means before its body is decoded: status, `error` object, and what the headers tell.

use std::time::Duration;

use super::quota::Told;
use super::transport::Response;
use crate::error::{Error, Refusal, Result, Words};
use crate::page::decode_words;

/// The longest wait that is believed: whatever asks for more has its clock wrong.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// Tells apart what an answer's status and `error` object mean; `Ok` if it may hold a result.
/// The texts are those of the vendor's documentation and of captured answers.
pub(super) fn interpret(response: &Response) -> Result<()> {
    if response.is_success() {
        return Ok(());
    }
    let status = response.status;
    let spoken = decode_words(&response.body);
    let words = spoken.clone().unwrap_or_default();
    if words.message.starts_with("Transaction cancelled") {
        return Err(Error::CutShort(words));
    }
    Err(match status {
        202 => Error::Discarded,
        300..=399 => Error::Unreadable("the answer is a redirect, as to a login page".to_owned()),
        400 if words.message.starts_with("Invalid table") => Error::NoTable(words),
        400 if words.message.contains("too long to build the response pagination header") => Error::TooLong,
        401 => Error::Unauthorized(words),
        400 | 403 | 409 | 422 | 500 if let Some(refusal) = known_refusal(&words) => {
            Error::Refused { refusal, words }
        }
        // Refused after all, by something that does not say what it is.
        403 if words.message.contains("Operation Failed") => {
            Error::Refused { refusal: Refusal::Aborted, words }
        }
        403 => Error::Refused { refusal: Refusal::Acl, words },
        404 if spoken.is_some() => Error::NoRecord(words),
        409 => Error::Refused { refusal: Refusal::Unique, words },
        414 => Error::TooLong,
        429 => Error::RateLimited { retry_after: retry_after(response), words },
        // Of proxies, too: nobody knows what became of the request.
        408 | 500..=599 => Error::Unavailable { status, retry_after: retry_after(response) },
        _ => Error::Rejected { status, words },
    })
}

/// The refusal that the instance's words tell of, whatever the status: which one a violated key has is not established.
fn known_refusal(words: &Words) -> Option<Refusal> {
    let detail = words.detail.as_deref().unwrap_or_default();
    let says = |text: &str| words.message.contains(text) || detail.contains(text);
    // The name of a rule may hold any word that is looked for below.
    if says("aborted by") {
        Some(Refusal::Aborted)
    } else if says("Insufficient rights to query records") {
        Some(Refusal::QueryAcl)
    } else if says("Data Policy Exception") {
        Some(Refusal::Mandatory)
    } else if says("Unique Key violation") || says("Duplicate entry") {
        Some(Refusal::Unique)
    } else if says("ACL Exception") || says("ACL Validation") || says("insufficient rights") {
        Some(Refusal::Acl)
    } else {
        None
    }
}

/// How long the instance asks to wait: `Retry-After` (seconds or a date), else `X-RateLimit-Reset` (a moment),
/// both measured against the instance's own clock.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let now = served_at(response);
    let until = |moment: i64| Some(u64::try_from(moment.saturating_sub(now?)).unwrap_or(0));
    let seconds = match response.header("retry-after") {
        Some(text) => match text.trim().parse() {
            Ok(seconds) => Some(seconds),
            Err(_) => {
                let moment = httpdate::parse_http_date(text).ok()?;
                until(moment.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs() as i64)
            }
        },
        None => until(response.header("x-ratelimit-reset")?.trim().parse().ok()?),
    };
    seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// What the instance says is left of the calls it allows, if it does.
pub(super) fn quota(response: &Response) -> Option<Told> {
    let number = |name| response.header(name)?.trim().parse::<i64>().ok();
    let count = |name| u32::try_from(number(name)?).ok();
    let left = count("x-ratelimit-remaining")?;
    let limit = count("x-ratelimit-limit").unwrap_or(left).max(left);
    let reset_in = number("x-ratelimit-reset")?.saturating_sub(served_at(response)?);
    let reset_in = Duration::from_secs(u64::try_from(reset_in).ok()?).min(LONGEST_WAIT);
    Some(Told { limit, left, reset_in })
}

/// How long a call stood in the instance's queue, from `Server-Timing: sem_wait;dur=N, …` in milliseconds; none
/// if the answer does not say.
pub(super) fn queued(response: &Response) -> Duration {
    let metrics = response.header("server-timing").into_iter().flat_map(|text| text.split(','));
    let waits = metrics.filter_map(|metric| {
        let (name, parameters) = metric.split_once(';')?;
        let duration = parameters.split(';').find_map(|p| p.trim().strip_prefix("dur="))?;
        (name.trim() == "sem_wait").then(|| duration.parse::<f64>().ok())?
    });
    waits.map(|ms| Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()).sum()
}

/// The instance's clock when it answered, from the `Date` header.
pub(super) fn served_at(response: &Response) -> Option<i64> {
    let date = httpdate::parse_http_date(response.header("date")?).ok()?;
    date.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Response {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        Response {
            status,
            headers: headers.collect(),
            body: Bytes::from_static(body.as_bytes()),
            wire_bytes: body.len(),
        }
    }

    #[test]
    fn every_documented_failure_is_told_apart() {
        let error = |status, body| interpret(&answer(status, &[], body)).unwrap_err();
        let refusal = |body| match error(403, body) {
            Error::Refused { refusal, .. } => refusal,
            other => panic!("{other:?}"),
        };
        assert!(matches!(
            error(400, r#"{"error":{"message":"Invalid table foo","detail":null},"status":"failure"}"#),
            Error::NoTable(_)
        ));
        assert!(matches!(
            error(
                400,
                r#"{"error":{"message":"the requested query is too long to build the response pagination header URLs"}}"#
            ),
            Error::TooLong
        ));
        assert!(matches!(
            error(
                401,
                r#"{"error":{"message":"User Not Authenticated","detail":"Required to provide Auth information"}}"#
            ),
            Error::Unauthorized(_)
        ));
        assert!(matches!(
            error(
                404,
                r#"{"error":{"message":"No Record found","detail":"Record doesn't exist or ACL restricts the record retrieval"}}"#
            ),
            Error::NoRecord(_)
        ));
        assert!(matches!(error(414, "<html>"), Error::TooLong));
        assert!(matches!(error(408, ""), Error::Unavailable { status: 408, .. }));
        assert!(matches!(error(202, ""), Error::Discarded));
        assert!(matches!(error(302, ""), Error::Unreadable(_)));
        assert!(matches!(error(503, "<html>"), Error::Unavailable { status: 503, .. }));
        assert!(matches!(
            error(500, r#"{"error":{"message":"Transaction cancelled: maximum execution time exceeded"}}"#),
            Error::CutShort(_)
        ));
        assert_eq!(
            refusal(
                r#"{"error":{"message":"Operation Failed","detail":"ACL Exception due to insufficient rights"}}"#
            ),
            Refusal::Acl
        );
        assert_eq!(
            refusal(
                r#"{"error":{"message":"Operation Failed","detail":"Data Policy Exception: The following fields are mandatory: Resolution code"}}"#
            ),
            Refusal::Mandatory
        );
        assert_eq!(
            refusal(
                r#"{"error":{"message":"Operation Failed","detail":"Operation against file 'incident' was aborted by Business Rule 'no^1'. Business Rule Stack:no"}}"#
            ),
            Refusal::Aborted
        );
        assert_eq!(
            refusal(
                r#"{"error":{"message":"Insufficient rights to query records","detail":"Field(s) present in the query do not have permission to be read"}}"#
            ),
            Refusal::QueryAcl
        );
        assert_eq!(
            refusal(
                r#"{"error":{"message":"Operation Failed","detail":"Unique Key violation detected by database (Duplicate entry 'X' for key 'name')"}}"#
            ),
            Refusal::Unique
        );
    }

    #[test]
    fn a_refusal_is_known_by_its_words_and_else_by_its_status() {
        let told = |status, message: &str, detail: &str| {
            let body = serde_json::json!({ "error": { "message": message, "detail": detail } }).to_string();
            match interpret(&answer(status, &[], body.leak())) {
                Err(Error::Refused { refusal, .. }) => Ok(refusal),
                Err(other) => Err(other),
                Ok(()) => panic!("{status}"),
            }
        };
        let unique = "Unique Key violation detected by database (Duplicate entry 'X' for key 'name')";
        for status in [400, 403, 409, 500] {
            assert_eq!(told(status, "Operation Failed", unique).ok(), Some(Refusal::Unique), "{status}");
        }
        let rule = "Operation against file 'incident' was aborted by Business Rule 'Duplicate entry in ORACLE ACL Exception^1'.";
        for status in [403, 500] {
            assert_eq!(told(status, "Operation Failed", rule).ok(), Some(Refusal::Aborted), "{status}");
        }
        let acl = told(403, "User Not Authorized", "Failed API level ACL Validation");
        assert_eq!(acl.ok(), Some(Refusal::Acl));
        assert_eq!(told(403, "Operation Failed", "MIRACLES do not happen").ok(), Some(Refusal::Aborted));
        assert_eq!(told(403, "Forbidden", "something new").ok(), Some(Refusal::Acl));
        assert_eq!(told(409, "Conflict", "something new").ok(), Some(Refusal::Unique));
        assert!(matches!(
            told(422, "Unprocessable", "something new"),
            Err(Error::Rejected { status: 422, .. })
        ));
        assert!(matches!(told(500, "Operation Failed", "something new"), Err(Error::Unavailable { .. })));
    }

    #[test]
    fn the_wait_asked_for_is_measured_by_the_instances_own_clock() {
        let date = ("date", "Thu, 03 Nov 2022 20:32:32 GMT");
        let wait = |header| match interpret(&answer(429, &[date, header], "")) {
            Err(Error::RateLimited { retry_after, .. }) => retry_after.map(|wait| wait.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(("retry-after", "17")), Some(17));
        assert_eq!(wait(("retry-after", "Thu, 03 Nov 2022 20:33:02 GMT")), Some(30));
        assert_eq!(wait(("x-ratelimit-reset", "1667507562")), Some(10));
        assert_eq!(wait(("x-ratelimit-reset", "-9223372036854775808")), Some(0));
        assert_eq!(wait(("retry-after", "18446744073709551615")), Some(86_400));
        assert_eq!(wait(("x-other", "1")), None);
    }

    #[test]
    fn the_time_in_the_instances_queue_is_read_from_its_answer() {
        let waited = |text| queued(&answer(200, &[("server-timing", text)], "")).as_millis();
        assert_eq!(waited("sem_wait;dur=17, sesh_wait;dur=4"), 17);
        assert_eq!(waited("db;dur=3.5,sem_wait;desc=\"queue\";dur=2.5"), 2);
        for text in
            ["", "sem_wait", "sem_wait;dur=", "sem_wait;dur=NaN", "sem_wait;dur=-1", "sem_wait;dur=1e300"]
        {
            assert_eq!(waited(text), 0, "{text}");
        }
    }
}
