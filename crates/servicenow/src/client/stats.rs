//! What calls cost, per endpoint: counters and a histogram of latencies, both made to be added up.
//!
//! An endpoint is a method and the path as far as it names no record: `GET table/incident`. Each process drains
//! its own counters ([`super::Client::take_stats`]) and adds them to those of the others wherever they are kept;
//! for that they can be serialized.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};
use url::Url;

use super::transport::Response;
use crate::error::Result;

/// Buckets per doubling of the latency. With eight, the middle of a bucket is at most 4.5 % off.
const PER_DOUBLING: f64 = 8.0;

/// Counters by endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stats(BTreeMap<String, Counters>);

/// What was counted at one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Requests sent, those without an answer and those that were interrupted included.
    pub calls: u64,
    /// Requests that failed: status other than 200, 201, 204, an answer that cannot be used, or none.
    pub errors: u64,
    /// Requests that repeated a failed one.
    pub retries: u64,
    /// Requests that were turned away because there were too many: status 429, and 202 for a discarded request.
    pub rate_limited: u64,
    /// Bytes of the answers' bodies, as they came.
    pub bytes_in: u64,
    /// How long requests took, those that failed included and those that were interrupted not.
    pub latency: Latencies,
}

/// A histogram of latencies: bucket `n` holds those from 2^(n/8) µs to 2^((n+1)/8) µs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latencies {
    sum_us: u64,
    min_us: u64,
    max_us: u64,
    /// Bucket and count, for buckets that are not empty.
    #[serde(with = "pairs")]
    buckets: BTreeMap<u16, u64>,
}

impl Stats {
    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Stats) {
        for (endpoint, counters) in &other.0 {
            self.0.entry(endpoint.clone()).or_default().merge(counters);
        }
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The endpoints and their counters, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Counters)> {
        self.0.iter().map(|(endpoint, counters)| (endpoint.as_str(), counters))
    }

    /// The counters of one endpoint, if anything was counted there.
    pub fn get(&self, endpoint: &str) -> Option<&Counters> {
        self.0.get(endpoint)
    }

    /// All requests, for a budget that is kept elsewhere.
    pub fn calls(&self) -> u64 {
        self.0.values().fold(0, |sum, counters| sum.saturating_add(counters.calls))
    }
}

impl IntoIterator for Stats {
    type Item = (String, Counters);
    type IntoIter = std::collections::btree_map::IntoIter<String, Counters>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Counters {
    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Counters) {
        for (ours, theirs) in [
            (&mut self.calls, other.calls),
            (&mut self.errors, other.errors),
            (&mut self.retries, other.retries),
            (&mut self.rate_limited, other.rate_limited),
            (&mut self.bytes_in, other.bytes_in),
        ] {
            *ours = ours.saturating_add(theirs);
        }
        self.latency.merge(&other.latency);
    }
}

impl Latencies {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.merge(&Self { sum_us: us, min_us: us, max_us: us, buckets: BTreeMap::from([(bucket(us), 1)]) });
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Latencies) {
        if other.buckets.is_empty() {
            return;
        }
        self.min_us = if self.buckets.is_empty() { other.min_us } else { self.min_us.min(other.min_us) };
        self.max_us = self.max_us.max(other.max_us);
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        for (bucket, count) in &other.buckets {
            let ours = self.buckets.entry(*bucket).or_default();
            *ours = ours.saturating_add(*count);
        }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The shortest, if there is one.
    pub fn min(&self) -> Option<Duration> {
        (!self.buckets.is_empty()).then(|| Duration::from_micros(self.min_us))
    }

    /// The longest, if there is one.
    pub fn max(&self) -> Option<Duration> {
        (!self.buckets.is_empty()).then(|| Duration::from_micros(self.max_us))
    }

    /// The mean, if there is one.
    pub fn mean(&self) -> Option<Duration> {
        self.sum_us.checked_div(self.count()).map(Duration::from_micros)
    }

    /// The latency that a part of all, from 0 to 1, does not exceed, to within 5 %.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * part.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut passed = 0u64;
        let (bucket, _) = self.buckets.iter().find(|(_, count)| {
            passed = passed.saturating_add(**count);
            passed >= rank
        })?;
        let middle = ((f64::from(*bucket) + 0.5) / PER_DOUBLING).exp2();
        let within = middle.max(self.min_us as f64).min(self.max_us as f64);
        Some(Duration::from_secs_f64(within / 1e6))
    }
}

fn bucket(us: u64) -> u16 {
    ((us.max(1) as f64).log2() * PER_DOUBLING) as u16
}

/// A map with numbers as keys, as pairs: in JSON keys would be text.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<u16, u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u16, u64>, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

/// What a client has counted since it was last asked.
#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Stats>);

impl Recorder {
    /// A request is about to be sent.
    pub(super) fn sending(&self, endpoint: &str) {
        self.change(endpoint, |counters| counters.calls += 1);
    }

    /// A request came to an end after so long.
    pub(super) fn ended(&self, endpoint: &str, latency: Duration, outcome: &Result<Response>) {
        self.change(endpoint, |counters| {
            counters.latency.record(latency);
            match outcome {
                Ok(response) => {
                    counters.bytes_in += response.wire_bytes as u64;
                    counters.errors += u64::from(!response.is_success());
                    counters.rate_limited += u64::from(matches!(response.status, 202 | 429));
                }
                Err(_) => counters.errors += 1,
            }
        });
    }

    /// A successful answer could not be used after all.
    pub(super) fn unusable(&self, endpoint: &str) {
        self.change(endpoint, |counters| counters.errors += 1);
    }

    /// The next request repeats a failed one.
    pub(super) fn repeating(&self, endpoint: &str) {
        self.change(endpoint, |counters| counters.retries += 1);
    }

    /// Hands over what was counted, and begins anew.
    pub(super) fn take(&self) -> Stats {
        std::mem::take(&mut *self.lock())
    }

    fn change(&self, endpoint: &str, change: impl FnOnce(&mut Counters)) {
        let mut stats = self.lock();
        match stats.0.get_mut(endpoint) {
            Some(counters) => change(counters),
            None => change(stats.0.entry(endpoint.to_owned()).or_default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// The endpoint that a request goes to: never an identifier, a query or a version.
pub(super) fn endpoint(method: &Method, url: &Url) -> String {
    let mut segments = url.path_segments().into_iter().flatten().filter(|segment| !segment.is_empty());
    let mut path = Vec::new();
    let mut rest = segments.clone();
    if (rest.next(), rest.next()) == (Some("api"), Some("now")) {
        segments = rest;
    }
    for segment in segments {
        let full = match path.first() {
            Some(&"table" | &"stats") => 2,
            _ => 3,
        };
        if path.len() == full || !is_name(segment) {
            break;
        }
        if !path.is_empty() || !is_version(segment) {
            path.push(segment);
        }
    }
    format!("{method} {}", path.join("/"))
}

fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a part of a path may stand in an endpoint's name.
fn is_name(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let is_id = segment.len() >= 32 && segment.bytes().all(|b| b.is_ascii_hexdigit());
    segment.len() <= 80 && segment.bytes().all(plain) && !is_id
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;

    fn named(method: &str, path: &str) -> String {
        let url = Url::parse("https://acme.service-now.com").expect("an address").join(path).expect("a path");
        endpoint(&method.parse().expect("a method"), &url)
    }

    #[test]
    fn endpoints_name_no_record_and_no_query() {
        let id = "0123456789abcdef0123456789abcdef";
        for (method, path, name) in [
            ("GET", "/api/now/table/incident?sysparm_query=number=INC1", "GET table/incident".to_owned()),
            ("PATCH", &format!("/api/now/table/incident/{id}"), "PATCH table/incident".to_owned()),
            ("DELETE", "/api/now/v2/table/sys_domain/global", "DELETE table/sys_domain".to_owned()),
            ("GET", "/api/now/stats/incident?sysparm_count=true", "GET stats/incident".to_owned()),
            ("POST", "/api/now/v1/batch", "POST batch".to_owned()),
            ("GET", "/api/now/ui/meta/incident", "GET ui/meta/incident".to_owned()),
            ("GET", "/api/now/doc/table/schema", "GET doc/table/schema".to_owned()),
            ("GET", &format!("/api/now/attachment/{id}/file"), "GET attachment".to_owned()),
            ("POST", "/oauth_token.do", "POST oauth_token.do".to_owned()),
            ("GET", "/", "GET ".to_owned()),
        ] {
            assert_eq!(named(method, path), name);
        }
    }

    #[test]
    fn what_became_of_requests_is_counted() {
        let recorder = Recorder::default();
        let answer = |status| {
            Ok(Response {
                status,
                headers: HeaderMap::new(),
                body: Bytes::from_static(b"0123456789"),
                wire_bytes: 10,
            })
        };
        for outcome in [
            answer(200),
            answer(429),
            answer(202),
            answer(503),
            Err(Error::TimedOut { host: "h".to_owned() }),
        ] {
            recorder.sending("GET x");
            recorder.ended("GET x", Duration::from_millis(10), &outcome);
        }
        recorder.sending("GET x"); // interrupted
        recorder.unusable("GET x");
        recorder.repeating("GET x");
        let stats = recorder.take();
        let counters = stats.get("GET x").expect("it was counted");
        assert_eq!(
            (counters.calls, counters.errors, counters.retries, counters.rate_limited, counters.bytes_in),
            (6, 5, 1, 2, 40)
        );
        assert_eq!(counters.latency.count(), 5);
        assert!(recorder.take().is_empty());
    }

    #[test]
    fn counters_that_were_kept_by_an_older_version_can_be_read() {
        let counters: Counters = serde_json::from_str(r#"{"calls":3}"#).expect("what is missing is zero");
        assert_eq!((counters.calls, counters.latency.count(), counters.latency.mean()), (3, 0, None));
        assert_eq!((counters.latency.min(), counters.latency.quantile(0.95)), (None, None));
    }

    fn latencies(of: &[u64]) -> Latencies {
        let mut latencies = Latencies::default();
        of.iter().for_each(|us| latencies.record(Duration::from_micros(*us)));
        latencies
    }

    fn times() -> impl Strategy<Value = Vec<u64>> {
        // From a microsecond to half an hour, as likely as not in any order of magnitude.
        prop::collection::vec((0.0f64..31.0).prop_map(|log| log.exp2() as u64), 1..200)
    }

    proptest! {
        #[test]
        fn quantiles_are_right_to_within_5_percent(mut times in times(), part in 0.0f64..=1.0) {
            let latencies = latencies(&times);
            times.sort_unstable();
            let rank = ((times.len() as f64 * part).ceil() as usize).max(1);
            let exact = times[rank - 1] as f64;
            let found = latencies.quantile(part).expect("there is one").as_secs_f64() * 1e6;
            prop_assert!((found - exact).abs() <= (exact * 0.05).max(1.0), "{found} for {exact}");
            prop_assert_eq!(latencies.min(), times.first().map(|us| Duration::from_micros(*us)));
            prop_assert_eq!(latencies.max(), times.last().map(|us| Duration::from_micros(*us)));
            let mean = times.iter().sum::<u64>() / times.len() as u64;
            prop_assert_eq!(latencies.mean(), Some(Duration::from_micros(mean)));
        }

        #[test]
        fn adding_up_is_as_counting_together(a in times(), b in times()) {
            let mut merged = latencies(&a);
            merged.merge(&latencies(&b));
            prop_assert_eq!(merged, latencies(&[a, b].concat()));
        }

        #[test]
        fn what_is_kept_is_read_again_and_is_small(times in times(), counts in prop::array::uniform5(any::<u64>())) {
            let [calls, errors, retries, rate_limited, bytes_in] = counts;
            let latency = latencies(&times);
            let counters = Counters { calls, errors, retries, rate_limited, bytes_in, latency };
            let stats = Stats(BTreeMap::from([("GET table/incident".to_owned(), counters)]));
            let text = serde_json::to_string(&stats).expect("it can be written");
            prop_assert_eq!(serde_json::from_str::<Stats>(&text).expect("it can be read"), stats);
            prop_assert!(text.len() < 300 + 9 * times.len(), "{}", text);
        }
    }
}
