//! The Batch API (facts §5): requests in a request, one after another, no transaction.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::endpoint::{self, Endpoint};
use crate::fault::Effect;
use crate::http::{ApiError, Request, Response, pipeline, xml};
use crate::instance::Instance;
use crate::request_log::{self, LoggedRequest};
use crate::table_api::write;
use crate::users::Actor;

/// The largest input of one item (`glide.rest.batch.max.inputSize`).
const MAX_INPUT: usize = 5 * 1024 * 1024;
/// The largest output of all items together.
const MAX_OUTPUT: usize = 10 * 1024 * 1024;

/// Handles a batch: 200 even when items fail; what does not fit comes back unserviced.
pub(crate) fn run(instance: &Instance, actor: &Actor, request: &Request) -> Result<Response, ApiError> {
    let switches = instance.switches();
    if !switches.batch_api {
        return Err(ApiError::no_resource());
    }
    let body = write::body_of(request)?;
    let id = text(body.get("batch_request_id"));
    let Some(items) = body.get("rest_requests").and_then(Value::as_array) else {
        return Err(ApiError::new(400, "Exception while reading request", Some("rest_requests is missing")));
    };
    let most = request
        .header("x-batchrequest-max-output-size")
        .and_then(|v| v.parse::<usize>().ok())
        .unwrap_or(MAX_OUTPUT);
    let mut seen = std::collections::HashSet::new();
    if !items.iter().all(|item| seen.insert(text(item.get("id")))) {
        return Err(ApiError::new(
            400,
            "Exception while reading request",
            Some("ids of rest_requests must be unique"),
        ));
    }
    let (mut serviced, mut unserviced, mut size, mut spent) = (Vec::new(), Vec::new(), 0, 0);
    for item in items {
        let item_id = text(item.get("id"));
        let input = text(item.get("body"));
        if size >= most || input.len() > MAX_INPUT || spent >= switches.batch_quota_ms {
            unserviced.push(Value::from(item_id));
            continue;
        }
        let began = Instant::now();
        let answer = one(instance, actor, item, &input);
        spent += switches.batch_item_ms;
        let Some(response) = answer else { continue };
        let encoded = STANDARD.encode(&response.body);
        if size + encoded.len() > most {
            unserviced.push(Value::from(item_id));
            size = most;
            continue;
        }
        size += encoded.len();
        let headers: Vec<Value> =
            if item.get("exclude_response_headers").and_then(Value::as_bool) == Some(true) {
                Vec::new()
            } else {
                response.headers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
            };
        serviced.push(json!({
            "id": item_id,
            "body": encoded,
            "status_code": response.status,
            "status_text": reason(response.status),
            "headers": headers,
            "execution_time": began.elapsed().as_millis() as u64 + switches.batch_item_ms,
        }));
    }
    let answer = json!({
        "batch_request_id": id,
        "serviced_requests": serviced,
        "unserviced_requests": unserviced,
    });
    Ok(Response::json(200, answer.to_string()).with(SPENT, spent.to_string()))
}

/// Tells the pipeline, not the client, how long the items took, in ms.
pub(crate) const SPENT: &str = "x-sim-spent";

/// The time that the items of a batch took, in ms.
pub(crate) fn duration(response: &Response) -> u64 {
    let spent = response.headers.iter().find(|(n, _)| n == SPENT).and_then(|(_, v)| v.parse().ok());
    spent.unwrap_or(0)
}

/// Ids come back as strings even if numbers were sent (facts §5).
fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn reason(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("")
}

/// The answer to an item; none where a fault has taken it away.
fn one(instance: &Instance, actor: &Actor, item: &Value, body: &str) -> Option<Response> {
    let began = Instant::now();
    let mut headers = HeaderMap::new();
    for header in item.get("headers").and_then(Value::as_array).into_iter().flatten() {
        let name = HeaderName::from_bytes(text(header.get("name")).as_bytes());
        let value = HeaderValue::from_str(&text(header.get("value")));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let body = STANDARD.decode(body).map(Bytes::from).unwrap_or_default();
    let request = Request::new(&text(item.get("method")), &text(item.get("url")), headers, body);
    let endpoint = Endpoint::of(&request);
    let effects = instance.faults.strike(
        instance.seed,
        &request.method,
        endpoint.table(),
        &pipeline::target(&request),
        true,
    );
    // An item has no connection: where one would break, the batch says nothing about the item.
    if effects.iter().any(|e| matches!(e, Effect::ResetBefore | Effect::Hang)) {
        return None;
    }
    let faulty = effects.iter().find_map(|e| pipeline::instead(instance, e));
    let mut response = match (faulty, &endpoint) {
        (Some(faulty), _) => faulty,
        (None, Endpoint::Batch | Endpoint::Token | Endpoint::SchemaPage(_)) => ApiError::no_resource().into(),
        (None, endpoint) => endpoint::dispatch(instance, actor, endpoint, &request),
    };
    response = effects.iter().fold(response, pipeline::spoil);
    // An item without Accept is answered in XML, as in the documented sample.
    let wants_xml = request.header("accept").is_none() || pipeline::wants_xml(&request);
    if wants_xml && !response.body.is_empty() {
        response.body = xml::from_json(&response.body).into();
        response.content_type = "application/xml; charset=UTF-8".to_owned();
    }
    if !response.content_type.is_empty() {
        let content_type = response.content_type.clone();
        response = response.with("Content-Type", content_type);
    }
    let length = response.body.len().to_string();
    response = response
        .with("Content-Length", length)
        .with("Pragma", "no-store,no-cache")
        .with("Expires", "0")
        .with("Cache-control", "no-cache,no-store,must-revalidate,max-age=-1");
    instance.log.push(
        LoggedRequest {
            seq: 0,
            at: instance.clock.now(),
            method: request.method.clone(),
            path: request.path.clone(),
            query: request_log::blank_query(&request.query),
            endpoint: endpoint.name().to_owned(),
            table: endpoint.table().map(str::to_owned),
            user: Some(actor.user_name.clone()),
            status: response.status,
            bytes: response.body.len(),
            duration_ms: began.elapsed().as_secs_f64() * 1000.0,
            sem_wait_ms: 0,
            body: pipeline::logged_body(&request, &endpoint),
            in_batch: true,
            faults: effects.iter().map(pipeline::name_of).collect(),
        },
        instance.switches().log_capacity,
    );
    let is_left_out = effects.iter().any(|e| matches!(e, Effect::ResetAfter | Effect::HangAfter));
    (!is_left_out).then_some(response)
}
