//! What a try that brought nothing says of the credentials that were sent. Decisions only.
//!
//! Only what is a refusal counts towards the tries of an account; nothing else is repeated without a rest.

use serde::Deserialize;

use crate::error::Error;
use crate::page::{Spoken, decode_words};

/// What was said of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They are wrong, or may be: instances count that, and lock accounts.
    Refused,
    /// They were not looked at: something else is not as it should be, and will most likely be so for a while.
    TurnedAway,
    /// Nobody knows: they were sent, and no answer came, or one that says nothing of them.
    Unheard,
    /// They were not sent or not taken, or they were good enough for an answer.
    Nothing,
}

/// What OAuth (RFC 6749, 5.2) calls refused credentials; the last one is ServiceNow's, for everything.
const REFUSALS: [&str; 4] = ["invalid_grant", "invalid_client", "access_denied", "server_error"];

/// What a token endpoint says with an answer that is no token; none if that is no matter of the login.
///
/// What does not say what it is: 401 is a refusal, and so is 400, because one too many would lock the account. 403 is what
/// stands before an instance says, of addresses for example.
pub(super) fn of_answer(status: u16, body: &[u8]) -> Option<Verdict> {
    #[derive(Default, Deserialize)]
    struct Answer {
        #[serde(default)]
        error: Spoken,
    }
    let Answer { error: Spoken(code) } = serde_json::from_slice(body).unwrap_or_default();
    let code = code.as_deref();
    let is_refusal = code.is_some_and(|code| REFUSALS.contains(&code))
        || decode_words(body).is_some_and(|words| words.message == "User Not Authenticated");
    match status {
        401 => Some(Verdict::Refused),
        400 | 403 if is_refusal => Some(Verdict::Refused),
        400 if code.is_none() => Some(Verdict::Refused),
        400 | 403 => Some(Verdict::TurnedAway),
        _ => None,
    }
}

/// What an error says that a call has ended with which had the credentials with it, or was to bring a token for them.
pub(super) fn of_error(error: &Error) -> Verdict {
    match error {
        Error::Login | Error::Unauthorized(_) => Verdict::Refused,
        Error::Broken { .. }
        | Error::TimedOut { .. }
        | Error::Unavailable { .. }
        | Error::Unreadable(_)
        | Error::TooLarge { .. } => Verdict::Unheard,
        _ => Verdict::Nothing,
    }
}

/// What an error says that a token endpoint has answered with, which is no refusal of a login.
pub(super) fn of_trouble(error: &Error) -> Verdict {
    match error {
        // Too many calls are told apart before anybody looks at what is in them.
        Error::RateLimited { .. } | Error::Discarded => Verdict::Nothing,
        _ => Verdict::Unheard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_speaks_of_the_credentials_or_may_do_so_is_a_refusal() {
        let oauth = |code: &str| format!(r#"{{"error":"{code}","error_description":"why"}}"#);
        let spoken = r#"{"error":{"message":"User Not Authenticated"},"status":"failure"}"#;
        for (status, body, verdict) in [
            (401, String::new(), Some(Verdict::Refused)),
            (401, oauth("invalid_request"), Some(Verdict::Refused)),
            (
                401,
                r#"{"error_description":"access_denied","error":"server_error"}"#.to_owned(),
                Some(Verdict::Refused),
            ),
            (400, oauth("invalid_grant"), Some(Verdict::Refused)),
            (400, oauth("invalid_client"), Some(Verdict::Refused)),
            (403, oauth("access_denied"), Some(Verdict::Refused)),
            (403, spoken.to_owned(), Some(Verdict::Refused)),
            (400, String::new(), Some(Verdict::Refused)),
            (400, "<html>Bad request</html>".to_owned(), Some(Verdict::Refused)),
            (400, oauth("invalid_request"), Some(Verdict::TurnedAway)),
            (400, oauth("unsupported_grant_type"), Some(Verdict::TurnedAway)),
            (400, oauth("unauthorized_client"), Some(Verdict::TurnedAway)),
            (400, oauth("invalid_scope"), Some(Verdict::TurnedAway)),
            (403, oauth("temporarily_unavailable"), Some(Verdict::TurnedAway)),
            (403, String::new(), Some(Verdict::TurnedAway)),
            (403, "<html>Your address is not allowed</html>".to_owned(), Some(Verdict::TurnedAway)),
            (404, oauth("invalid_grant"), None),
            (429, String::new(), None),
            (500, oauth("server_error"), None),
            (503, String::new(), None),
        ] {
            assert_eq!(of_answer(status, body.as_bytes()), verdict, "{status} {body}");
        }
    }
}
