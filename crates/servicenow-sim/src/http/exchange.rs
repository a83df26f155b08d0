//! A request as the handlers see it, an answer as they give it, and the error envelope (facts §3).

use bytes::Bytes;
use hyper::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::json;

/// A request, read whole.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The method, after `X-HTTP-Method-Override`.
    pub(crate) method: String,
    /// The path as sent.
    pub(crate) path: String,
    /// The query string as sent.
    pub(crate) raw_query: String,
    /// The decoded query parameters.
    pub(crate) query: Vec<(String, String)>,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
}

impl Request {
    /// Splits a request target into path and parameters.
    pub(crate) fn new(method: &str, target: &str, headers: HeaderMap, body: Bytes) -> Self {
        let (path, raw_query) = target.split_once('?').unwrap_or((target, ""));
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            raw_query: raw_query.to_owned(),
            query: parse_form(raw_query),
            headers,
            body,
        }
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// A query parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The decoded segments of the path.
    pub(crate) fn segments(&self) -> Vec<String> {
        self.path.split('/').filter(|s| !s.is_empty()).map(decode).collect()
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The pairs of an `application/x-www-form-urlencoded` text.
pub(crate) fn parse_form(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        })
        .collect()
}

/// The media type of JSON answers (facts §1.2).
pub(crate) const JSON: &str = "application/json;charset=UTF-8";

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    /// The status.
    pub(crate) status: u16,
    /// The headers of this answer; the front adds those that every answer has.
    pub(crate) headers: Vec<(String, String)>,
    /// The media type, empty for an answer without a body.
    pub(crate) content_type: String,
    /// The body.
    pub(crate) body: Bytes,
}

impl Response {
    /// A JSON answer.
    pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), content_type: JSON.to_owned(), body: body.into() }
    }

    /// An HTML page, as the front end in front of the instance sends.
    pub(crate) fn html(status: u16, title: &str) -> Self {
        let body = format!("<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>");
        Self {
            status,
            headers: Vec::new(),
            content_type: "text/html;charset=UTF-8".to_owned(),
            body: body.into(),
        }
    }

    /// An answer without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), content_type: String::new(), body: Bytes::new() }
    }

    /// The same answer with one more header.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A refusal in the instance's error envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: u16,
    message: String,
    detail: Option<String>,
}

impl ApiError {
    /// An error with a message and perhaps a detail.
    pub(crate) fn new(status: u16, message: impl Into<String>, detail: Option<&str>) -> Self {
        Self { status, message: message.into(), detail: detail.map(str::to_owned) }
    }

    /// 400, the same whether or not the caller could see the table.
    pub(crate) fn invalid_table(name: &str) -> Self {
        Self::new(400, format!("Invalid table {name}"), None)
    }

    /// 400 for a path that is nothing.
    pub(crate) fn no_resource() -> Self {
        Self::new(400, "Requested URI does not represent any resource", None)
    }

    /// 401, also for an expired token.
    pub(crate) fn unauthenticated() -> Self {
        Self::new(401, "User Not Authenticated", Some("Required to provide Auth information"))
    }

    /// 403 of the write ACLs.
    pub(crate) fn forbidden() -> Self {
        Self::new(403, "Operation Failed", Some("ACL Exception due to insufficient rights"))
    }

    /// 403 of the API-level ACLs.
    pub(crate) fn not_authorized() -> Self {
        Self::new(403, "User Not Authorized", Some("Failed API level ACL Validation"))
    }

    /// 403 of the query ACLs.
    pub(crate) fn unreadable_query() -> Self {
        Self::new(
            403,
            "Insufficient rights to query records",
            Some("Field(s) present in the query do not have permission to be read"),
        )
    }

    /// 403 of rules, policies and constraints.
    pub(crate) fn failed(detail: &str) -> Self {
        Self::new(403, "Operation Failed", Some(detail))
    }

    /// 404 of a missing or hidden row.
    pub(crate) fn no_record() -> Self {
        Self::new(404, "No Record found", Some("Record doesn't exist or ACL restricts the record retrieval"))
    }

    /// The envelope.
    pub(crate) fn body(&self) -> String {
        let detail = self.detail.as_deref().map_or_else(|| "null".to_owned(), json::string);
        format!(
            "{{\"error\":{{\"message\":{},\"detail\":{detail}}},\"status\":\"failure\"}}",
            json::string(&self.message)
        )
    }
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Self {
        let response = Self::json(error.status, error.body());
        if error.status == 401 {
            return response
                .with("WWW-Authenticate", "BASIC realm=\"Service-now\"")
                .with("Connection", "close");
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_envelope_is_the_documented_one() {
        let documented: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/captures/doc_error_429.json")).expect("JSON");
        let error = ApiError::new(
            429,
            "Rate limit exceeded",
            Some("Rate limit of 100 requests per hour for Table API exceeded"),
        );
        let ours: serde_json::Value = serde_json::from_str(&error.body()).expect("JSON");
        assert_eq!(ours, documented);
        assert!(ApiError::invalid_table("x").body().contains("\"detail\":null"));
    }

    #[test]
    fn parameters_are_decoded() {
        let pairs = parse_form("sysparm_query=a%3Db%5Ec%3D1+2&empty=&flag");
        assert_eq!(pairs[0], ("sysparm_query".to_owned(), "a=b^c=1 2".to_owned()));
        assert_eq!(pairs[2], ("flag".to_owned(), String::new()));
    }
}
