//! The Batch API: many requests in one call, carried out one after another, each with an answer of its own.
//!
//! Bodies travel in base64 both ways. There is no transaction: what was carried out stays so whatever becomes of
//! the rest, and requests for which time or room did not suffice come back unserviced.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use http::header::{DATE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::transport::Response;
use crate::error::{Error, Result};

/// More requests than any batch has.
const MOST_ITEMS: usize = 10_000;
/// The path of the Batch API.
pub(super) const PATH: &str = "/api/now/v1/batch";

/// The header that says how large an answer may be, and the most that it may say, in bytes.
pub(super) const OUTPUT_HEADER: HeaderName = HeaderName::from_static("x-batchrequest-max-output-size");
/// The most output of all items together, encoded, in bytes (the Batch API's own limit).
pub(super) const OUTPUT_LIMIT: usize = 10 << 20;

/// Headers of an item that are looked at, as many as of an answer: whatever comes behind them is none that matters.
const MOST_HEADERS: usize = 100;

/// What an item takes besides its address and its body, in bytes, a bit more than less.
const OVERHEAD: usize = 260;

/// One request of a batch.
#[derive(Debug)]
pub(super) struct Item<'a> {
    pub(super) method: Method,
    /// Path and query.
    pub(super) url: String,
    pub(super) body: Option<&'a Bytes>,
    /// Whether the answer's headers are of interest.
    pub(super) with_headers: bool,
}

/// How many bytes an item takes in the body of a batch.
pub(super) fn encoded_size(url: usize, body: usize) -> usize {
    url + body.div_ceil(3) * 4 + OVERHEAD
}

#[derive(Serialize)]
struct BatchRequest<'a> {
    batch_request_id: &'a str,
    rest_requests: Vec<RestRequest<'a>>,
}

#[derive(Serialize)]
struct RestRequest<'a> {
    id: String,
    method: &'a str,
    url: &'a str,
    headers: &'a [Header<'a>],
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "in_base64")]
    body: Option<&'a Bytes>,
    exclude_response_headers: bool,
}

#[derive(Serialize)]
struct Header<'a> {
    name: &'a str,
    value: &'a str,
}

/// An item without `Accept` would be answered in XML.
const HEADERS: [Header<'static>; 2] = [
    Header { name: "Accept", value: "application/json" },
    Header { name: "Content-Type", value: "application/json" },
];

fn in_base64<S: Serializer>(body: &Option<&Bytes>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let body = body.map_or(&[][..], |body| body);
    serializer.collect_str(&Base64Display::new(body, &BASE64))
}

/// The body of a batch; the items are known by their positions.
pub(super) fn encode(items: &[Item<'_>]) -> Bytes {
    let rest_requests = items.iter().enumerate().map(|(position, item)| RestRequest {
        id: position.to_string(),
        method: item.method.as_str(),
        url: &item.url,
        headers: &HEADERS,
        body: item.body,
        exclude_response_headers: !item.with_headers,
    });
    let request = BatchRequest { batch_request_id: "1", rest_requests: rest_requests.collect() };
    serde_json::to_vec(&request).expect("text and numbers can be encoded").into()
}

/// What a batch says about one of its items.
#[derive(Debug)]
pub(super) enum Reply {
    /// The answer, as it would be to a call of its own.
    Serviced(Result<Response>),
    /// Time or room did not suffice for it.
    Unserviced,
    /// Nothing, as it should not be.
    Missing,
}

/// The answer to a batch.
#[derive(Debug)]
pub(super) struct Answer {
    /// By position.
    pub(super) replies: Vec<Reply>,
    /// How long the instance says that the items took, all together.
    pub(super) time: Duration,
    /// How much of the output limit the answers took, in bytes.
    pub(super) output: usize,
}

impl Answer {
    /// How many items were serviced.
    pub(super) fn serviced(&self) -> usize {
        self.replies.iter().filter(|reply| matches!(reply, Reply::Serviced(_))).count()
    }

    /// The first item for which there was no time or no room.
    pub(super) fn first_unserviced(&self) -> Option<usize> {
        self.replies.iter().position(|reply| matches!(reply, Reply::Unserviced))
    }
}

#[derive(Deserialize)]
struct BatchAnswer {
    #[serde(deserialize_with = "few")]
    serviced_requests: Vec<Serviced>,
    #[serde(default, deserialize_with = "few")]
    unserviced_requests: Vec<Id>,
}

/// A list no longer than any batch: what an instance makes up takes many times its length in memory.
fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<T>, D::Error> {
    struct Few<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Vec<T>, A::Error> {
            let mut few = Vec::new();
            while let Some(item) = items.next_element()? {
                if few.len() >= MOST_ITEMS {
                    return Err(serde::de::Error::custom("more answers than any batch has requests"));
                }
                few.push(item);
            }
            Ok(few)
        }
    }
    deserializer.deserialize_seq(Few(PhantomData))
}

#[derive(Deserialize)]
struct Serviced {
    id: Id,
    #[serde(default)]
    body: Option<String>,
    status_code: u16,
    #[serde(default)]
    headers: Vec<AnswerHeader>,
    #[serde(default)]
    execution_time: Option<f64>,
}

#[derive(Deserialize)]
struct AnswerHeader {
    name: String,
    #[serde(default)]
    value: Option<String>,
}

/// Identifiers come back as text even if they were numbers; we take either.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(usize),
}

impl Id {
    fn position(&self, items: usize) -> Option<usize> {
        let position = match self {
            Id::Text(text) => text.parse().ok(),
            Id::Number(number) => Some(*number),
        };
        position.filter(|position| *position < items)
    }
}

/// Decodes the answer to a batch of so many items.
pub(super) fn decode(response: &Response, items: usize) -> Result<Answer> {
    let answer: BatchAnswer = serde_json::from_slice(&response.body)
        .map_err(|_| Error::Unreadable("the answer is not that of a batch".to_owned()))?;
    let mut replies: Vec<Reply> = (0..items).map(|_| Reply::Missing).collect();
    for position in answer.unserviced_requests.iter().filter_map(|id| id.position(items)) {
        replies[position] = Reply::Unserviced;
    }
    let (mut time, mut output) = (0.0, 0);
    for serviced in answer.serviced_requests {
        time += serviced.execution_time.unwrap_or(0.0);
        output += serviced.body.as_ref().map_or(0, String::len);
        if let Some(position) = serviced.id.position(items)
            && !matches!(replies[position], Reply::Serviced(_))
        {
            replies[position] = Reply::Serviced(serviced.response(response.headers.get(DATE)));
        }
    }
    let time = Duration::try_from_secs_f64(time / 1000.0).unwrap_or_default();
    Ok(Answer { replies, time, output })
}

impl Serviced {
    /// The answer as it would have come to a call of its own; the instance's clock is that of the batch.
    fn response(self, date: Option<&HeaderValue>) -> Result<Response> {
        let mut headers: HeaderMap = date.map(|date| (DATE, date.clone())).into_iter().collect();
        headers.extend(self.headers.into_iter().take(MOST_HEADERS).filter_map(|header| {
            let name: HeaderName = header.name.parse().ok()?;
            Some((name, HeaderValue::from_str(&header.value?).ok()?))
        }));
        let encoded = self.body.unwrap_or_default();
        let body = BASE64
            .decode(&encoded)
            .map_err(|_| Error::Unreadable("the answer in the batch is not in base64".to_owned()))?;
        StatusCode::from_u16(self.status_code).map_err(|_| {
            Error::Unreadable(format!("the answer in the batch has status {}", self.status_code))
        })?;
        Ok(Response { status: self.status_code, headers, wire_bytes: encoded.len(), body: body.into() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;

    fn answer(body: &Json) -> Response {
        let body = Bytes::from(body.to_string());
        Response { status: 200, headers: HeaderMap::new(), wire_bytes: body.len(), body }
    }

    #[test]
    fn more_answers_than_any_batch_has_are_not_held() {
        let unserviced =
            |count| answer(&json!({ "serviced_requests": [], "unserviced_requests": vec![0; count] }));
        assert!(decode(&unserviced(MOST_ITEMS), 1).is_ok());
        assert!(matches!(decode(&unserviced(MOST_ITEMS + 1), 1), Err(Error::Unreadable(_))));
    }

    /// A map of headers has an end, beyond which it panics.
    #[test]
    fn an_item_with_any_number_of_headers_is_read() {
        let headers: Vec<Json> =
            (0..40_000).map(|n| json!({ "name": format!("x-{n}"), "value": "x" })).collect();
        let body = json!({
            "serviced_requests": [{ "id": "0", "status_code": 200, "body": "", "headers": headers }]
        });
        let answer = decode(&answer(&body), 1).expect("an answer");
        assert_eq!(answer.serviced(), 1);
    }

    /// The vendor's sample, in which the ids are texts, an item came in XML and one was not serviced.
    #[test]
    fn the_documented_answer_is_read() {
        let sample = json!({
            "batch_request_id": "1",
            "serviced_requests": [{
                "id": "1", "body": BASE64.encode("<?xml version=\"1.0\"?>"), "status_code": 200,
                "status_text": "OK", "headers": [{ "name": "Content-Type", "value": "application/xml" }],
                "execution_time": 45
            }, { "id": 0, "body": null, "status_code": 204, "status_text": "", "headers": [] }],
            "unserviced_requests": ["2", "17", "x"],
        });
        let read = decode(&answer(&sample), 4).expect("an answer");
        let Reply::Serviced(Ok(xml)) = &read.replies[1] else { panic!("{:?}", read.replies) };
        assert_eq!((xml.header("content-type"), &xml.body[..5]), (Some("application/xml"), &b"<?xml"[..]));
        assert!(matches!(&read.replies[0], Reply::Serviced(Ok(r)) if r.status == 204 && r.body.is_empty()));
        assert!(matches!(&read.replies[2..], [Reply::Unserviced, Reply::Missing]));
        assert_eq!((read.serviced(), read.first_unserviced()), (2, Some(2)));
        assert_eq!((read.time, read.output), (Duration::from_millis(45), 28));
    }

    #[test]
    fn what_is_no_answer_of_a_batch_is_unreadable() {
        for body in [json!(null), json!({}), json!({ "result": [] }), json!("<html>")] {
            assert!(matches!(decode(&answer(&body), 1), Err(Error::Unreadable(_))), "{body}");
        }
        let broken = json!({ "serviced_requests": [
            { "id": "0", "body": "*", "status_code": 200 }, { "id": "1", "body": "", "status_code": 7 },
        ]});
        let read = decode(&answer(&broken), 2).expect("an answer");
        assert!(read.replies.iter().all(|r| matches!(r, Reply::Serviced(Err(Error::Unreadable(_))))));
    }

    proptest! {
        #[test]
        fn an_instance_reads_what_was_encoded_and_no_more_bytes_than_expected(
            bodies in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..200)), 1..5),
            with_headers: bool,
        ) {
            let bodies: Vec<Option<Bytes>> = bodies.into_iter().map(|body| body.map(Bytes::from)).collect();
            let item = |body| Item { method: Method::PATCH, url: "/a?b=%22c".to_owned(), body, with_headers };
            let items: Vec<Item<'_>> = bodies.iter().map(|body| item(body.as_ref())).collect();
            let encoded = encode(&items);
            let expected: usize =
                items.iter().map(|item| encoded_size(item.url.len(), item.body.map_or(0, Bytes::len))).sum();
            prop_assert!(encoded.len() <= expected + 100, "{} {}", encoded.len(), expected);
            let read: Json = serde_json::from_slice(&encoded).expect("JSON");
            for (position, body) in bodies.iter().enumerate() {
                let item = &read["rest_requests"][position];
                prop_assert_eq!(&item["id"], &json!(position.to_string()));
                prop_assert_eq!(&item["exclude_response_headers"], &json!(!with_headers));
                let sent = item["body"].as_str().map(|body| Bytes::from(BASE64.decode(body).expect("base64")));
                prop_assert_eq!(&sent, body);
            }
        }
    }
}
