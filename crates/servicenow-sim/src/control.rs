//! `/sim/…`: everything the library can do, over HTTP, for tests in other languages. No login, not in the request log.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::edit_command::{self, EditCommand};
use crate::fault::{Fault, FaultId};
use crate::http::{Request, Response};
use crate::instance::Instance;
use crate::switch::Switches;
use crate::{replay, truth};

/// Handles a request to `/sim/…`; `None` for any other path.
pub(crate) async fn handle(instance: &Arc<Instance>, request: &Request) -> Option<Response> {
    let segments = request.segments();
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let ["sim", rest @ ..] = parts.as_slice() else { return None };
    instance.settle();
    Some(match answer(instance, request, rest) {
        Ok(value) => Response::json(200, value.to_string()),
        Err(Trouble::NotFound) => Response::json(404, json!({ "error": "not found" }).to_string()),
        Err(Trouble::Bad(why)) => Response::json(400, json!({ "error": why }).to_string()),
    })
}

enum Trouble {
    NotFound,
    Bad(String),
}

fn bad(error: impl std::fmt::Display) -> Trouble {
    Trouble::Bad(error.to_string())
}

#[derive(Deserialize)]
struct ReplayCall {
    #[serde(default)]
    rate: Option<f64>,
    #[serde(default)]
    count: Option<usize>,
    #[serde(default)]
    stop: bool,
}

#[derive(Deserialize)]
struct ClockCall {
    #[serde(default)]
    advance_ms: i64,
    #[serde(default)]
    set: Option<DateTime<Utc>>,
    #[serde(default)]
    hold: Option<bool>,
}

fn body<T: serde::de::DeserializeOwned>(request: &Request) -> Result<T, Trouble> {
    let bytes: &[u8] = if request.body.is_empty() { b"{}" } else { &request.body };
    serde_json::from_slice(bytes).map_err(bad)
}

fn answer(instance: &Arc<Instance>, request: &Request, parts: &[&str]) -> Result<Value, Trouble> {
    match (request.method.as_str(), parts) {
        ("GET", ["health"]) => {
            let db = instance.db.read();
            let incidents = db.schema.find("incident").map_or(0, |t| db.count(t));
            Ok(
                json!({ "status": "ok", "url": instance.base_url(), "incidents": incidents, "now": instance.clock.now() }),
            )
        }
        ("GET", ["requests"]) => {
            Ok(json!({ "requests": instance.log.requests(), "counters": instance.log.counters() }))
        }
        ("GET", ["counters"]) => Ok(json!(instance.log.counters())),
        ("DELETE", ["requests"]) => {
            instance.log.clear();
            Ok(json!({}))
        }
        ("POST", ["fault"]) => {
            let fault: Fault = body(request)?;
            let id = instance.faults.add(fault);
            Ok(json!({ "id": id }))
        }
        ("GET", ["fault", id]) => {
            let id = FaultId(id.parse().map_err(bad)?);
            Ok(json!({ "id": id, "struck": instance.faults.struck(id) }))
        }
        ("DELETE", ["fault"]) => {
            instance.faults.clear();
            Ok(json!({}))
        }
        ("DELETE", ["fault", id]) => {
            let id = FaultId(id.parse().map_err(bad)?);
            if instance.faults.remove(id) { Ok(json!({})) } else { Err(Trouble::NotFound) }
        }
        ("POST", ["edit"]) => {
            let command: EditCommand = body(request)?;
            edit_command::execute(instance, command).map(|result| json!({ "result": result })).map_err(bad)
        }
        ("GET", ["record", table, sys_id]) => {
            truth::record(instance, table, sys_id).map(|r| json!(r)).ok_or(Trouble::NotFound)
        }
        ("GET", ["truth", table]) => {
            let user = request.parameter("user").unwrap_or("admin");
            truth::all(instance, table, user).map(|rows| json!({ "records": rows })).ok_or(Trouble::NotFound)
        }
        ("GET", ["replay"]) => Ok(json!(instance.replay.status())),
        ("POST", ["replay"]) => {
            let call: ReplayCall = body(request)?;
            if call.stop {
                replay::stop(instance);
            } else {
                let count = call.count.unwrap_or(usize::MAX);
                match call.rate {
                    Some(rate) if rate > 0.0 => replay::start(instance, rate, count),
                    _ => {
                        replay::play(instance, count);
                    }
                }
            }
            Ok(json!(instance.replay.status()))
        }
        ("GET", ["clock"]) => Ok(json!({ "now": instance.clock.now() })),
        ("POST", ["clock"]) => {
            let call: ClockCall = body(request)?;
            if let Some(hold) = call.hold {
                instance.clock.hold(hold);
            }
            if let Some(to) = call.set {
                instance.clock.set(to);
            }
            if call.advance_ms != 0 {
                instance.clock.step(TimeDelta::milliseconds(call.advance_ms));
            }
            instance.settle();
            Ok(json!({ "now": instance.clock.now() }))
        }
        ("GET", ["set"]) => Ok(json!(&*instance.switches())),
        ("POST", ["set"]) => {
            let changes: Value = body(request)?;
            let mut merged = json!(&*instance.switches());
            for (key, value) in changes.as_object().into_iter().flatten() {
                if merged.get(key).is_none() {
                    return Err(Trouble::Bad(format!("no switch \"{key}\"")));
                }
                merged[key] = value.clone();
            }
            let switches: Switches = serde_json::from_value(merged).map_err(bad)?;
            instance.change_switches(|s| *s = switches);
            Ok(json!(&*instance.switches()))
        }
        _ => Err(Trouble::NotFound),
    }
}
