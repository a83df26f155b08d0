//! Facts §3, §11, §12: what goes wrong.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use servicenow_sim::{Concurrency, Cut, Effect, Fault, RowQuota};

use crate::support::{Caller, small};

fn one(sim: &Caller) -> crate::support::Reply {
    sim.get("/api/now/table/incident?sysparm_limit=5")
}

fn strike(sim: &Caller, effect: Effect) {
    sim.sim.clear_faults();
    sim.sim.fault(Fault::new(effect).times(1));
}

#[test]
fn a_request_can_be_discarded_with_202() {
    let sim = small();
    strike(&sim, Effect::Discard);
    let reply = one(&sim);
    assert_eq!((reply.status, reply.body.len()), (202, 0));
    assert_eq!(one(&sim).status, 200, "used up");
    assert_eq!(sim.sim.requests()[0].faults, ["discard"]);
}

#[test]
fn a_rate_limit_has_its_headers_and_the_queue_has_none() {
    let sim = small();
    strike(&sim, Effect::RateLimited { headers: true, retry_after: Some(7), json: true });
    let reply = one(&sim);
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("7")));
    for name in ["X-RateLimit-Limit", "X-RateLimit-Reset", "X-RateLimit-Rule"] {
        assert!(reply.header(name).is_some(), "{name}");
    }
    assert_eq!(reply.error().0, "Rate limit exceeded");
    strike(&sim, Effect::RateLimited { headers: false, retry_after: None, json: false });
    let reply = one(&sim);
    assert_eq!((reply.status, reply.body.len(), reply.header("retry-after")), (429, 0, None));
}

#[test]
fn statuses_bodies_and_pages_go_wrong_as_recorded() {
    let sim = small();
    strike(&sim, Effect::Status { status: 503, html: true });
    assert!(one(&sim).text().starts_with("<html>"));
    strike(&sim, Effect::Status { status: 500, html: false });
    assert_eq!(one(&sim).error().0, "Internal Server Error");
    strike(&sim, Effect::NullBody);
    assert_eq!(one(&sim).text(), "null");
    strike(&sim, Effect::EmptyBody);
    let reply = one(&sim);
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    strike(&sim, Effect::Hibernating);
    assert!(one(&sim).text().contains("Instance Hibernating page"));
    strike(&sim, Effect::LoginPage);
    let reply = one(&sim);
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("Log in"));
    strike(&sim, Effect::Cancelled);
    assert_eq!(one(&sim).error().0, "Transaction cancelled: maximum execution time exceeded");
}

#[test]
fn a_cancelled_transaction_is_a_200_with_part_of_the_result() {
    let sim = small();
    strike(&sim, Effect::Cut { rows: 2, cut: Cut::Error });
    let reply = one(&sim);
    let body = reply.json();
    assert_eq!((reply.status, body["result"].as_array().map(Vec::len)), (200, Some(2)));
    assert_eq!(body["error"]["message"], "Transaction cancelled: maximum execution time exceeded");
    assert_eq!(body["status"], "failure");
    strike(&sim, Effect::Cut { rows: 2, cut: Cut::DanglingComma });
    assert!(one(&sim).text().ends_with(",]}"));
    strike(&sim, Effect::Cut { rows: 2, cut: Cut::Broken });
    assert!(serde_json::from_slice::<Value>(&one(&sim).body).is_err());
}

#[test]
fn pages_above_the_quota_are_cut_and_smaller_ones_are_whole() {
    let sim = small();
    sim.sim.set(|s| s.row_quota = Some(RowQuota { rows: 10, cut: Cut::Error }));
    let big = sim.get("/api/now/table/incident?sysparm_limit=20").json();
    assert_eq!(big["result"].as_array().map(Vec::len), Some(10));
    assert!(big.get("error").is_some());
    assert!(sim.get("/api/now/table/incident?sysparm_limit=10").json().get("error").is_none());
}

#[test]
fn a_reset_comes_before_or_after_the_write() {
    let sim = small();
    let body = json!({ "short_description": "reset" }).to_string();
    let post = || sim.try_call("POST", "/api/now/table/incident", Some(("application/json", &body)));
    strike(&sim, Effect::ResetBefore);
    assert!(post().is_err());
    assert_eq!(sim.count("incident", "short_description=reset"), 0);
    strike(&sim, Effect::ResetAfter);
    assert!(post().is_err());
    assert_eq!(sim.count("incident", "short_description=reset"), 1);
    let logged = sim.sim.requests();
    assert_eq!(logged.iter().filter(|r| r.status == 0).count(), 2);
}

#[test]
fn a_hanging_request_never_answers_and_may_have_been_carried_out() {
    let sim = small();
    strike(&sim, Effect::HangAfter);
    let address = sim.sim.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let body = json!({ "short_description": "hung" }).to_string();
    let request = format!(
        "POST /api/now/table/incident HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        sim.authorization,
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("written");
    assert!(stream.read(&mut [0; 10]).is_err(), "no answer");
    assert_eq!(sim.count("incident", "short_description=hung"), 1);
}

#[test]
fn a_body_can_drip_or_break_off() {
    let sim = small();
    strike(&sim, Effect::Drip { bytes: 4000, interval_ms: 20 });
    let began = Instant::now();
    assert_eq!(one(&sim).rows().len(), 5);
    assert!(began.elapsed() > Duration::from_millis(60));
    strike(&sim, Effect::Truncate { bytes: 1000 });
    assert!(sim.try_call("GET", "/api/now/table/incident?sysparm_limit=5", None).is_err());
}

#[test]
fn tokens_can_expire_mid_way() {
    let mut sim = small();
    let form = "grant_type=client_credentials&client_id=fdw-client&client_secret=fdw-client-secret";
    let reply = sim
        .try_call("POST", "/oauth_token.do", Some(("application/x-www-form-urlencoded", form)))
        .expect("a token");
    sim.authorization = format!("Bearer {}", reply.json()["access_token"].as_str().expect("a token"));
    assert_eq!(one(&sim).status, 200);
    sim.sim.fault(Fault::new(Effect::ExpireTokens).table("incident").times(1));
    assert_eq!(one(&sim).status, 401);
    assert_eq!(one(&sim).status, 401);
}

#[test]
fn latency_is_added() {
    let sim = small();
    sim.sim.set(|s| s.latency_ms = 80);
    let began = Instant::now();
    one(&sim);
    assert!(began.elapsed() >= Duration::from_millis(80));
    assert!(sim.sim.requests()[0].duration_ms >= 80.0);
}

#[test]
fn rate_limit_rules_count_per_hour_and_the_users_own_rule_wins() {
    let mut sim = small();
    sim.sim.clock().set("2030-01-01T10:30:00Z".parse().expect("a date"));
    let user = sim.id_of("sys_user", "user_name=itil.user");
    sim.sim
        .edit()
        .insert("sys_rate_limit_rules", &[("name", "all"), ("limit", "1"), ("user", "")])
        .expect("a rule");
    sim.sim
        .edit()
        .insert("sys_rate_limit_rules", &[("name", "one"), ("limit", "3"), ("user", &user)])
        .expect("a rule");
    sim.log_in("itil.user");
    for _ in 0..3 {
        assert_eq!(one(&sim).status, 200);
    }
    let reply = one(&sim);
    assert_eq!(reply.status, 429);
    assert_eq!(reply.error().1, "Rate limit of 3 requests per hour for Table API exceeded");
    let wait: u64 = reply.header("retry-after").expect("a wait").parse().expect("seconds");
    assert!(wait <= 1800);
    sim.sim.clock().advance(Duration::from_secs(wait));
    assert_eq!(one(&sim).status, 200);
}

#[test]
fn the_semaphore_queues_and_says_so_and_refuses_when_the_queue_is_full() {
    let sim = small();
    sim.sim.set(|s| {
        s.concurrency = Some(Concurrency { limit: 1, queue: 1 });
        s.latency_ms = 250;
    });
    let replies: Vec<crate::support::Reply> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..3)
            .map(|n| {
                let sim = &sim;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(40 * n));
                    one(sim)
                })
            })
            .collect();
        calls.into_iter().map(|c| c.join().expect("a reply")).collect()
    });
    assert_eq!(replies.iter().map(|r| r.status).collect::<Vec<_>>(), [200, 200, 429]);
    let timing = replies[1].header("server-timing").expect("timing");
    let waited: u64 =
        timing.trim_start_matches("sem_wait;dur=").split(',').next().expect("a number").parse().expect("ms");
    assert!(waited > 50, "{timing}");
    let logged = sim.sim.requests();
    assert!(logged.iter().any(|r| r.sem_wait_ms == waited && r.duration_ms >= waited as f64), "{logged:?}");
}

#[test]
fn calls_on_one_session_are_serialised_and_too_many_are_discarded() {
    let mut sim = small();
    sim.sim.set(|s| {
        s.session_waiters = 2;
        s.latency_ms = 100;
    });
    sim.headers.push(("Cookie".to_owned(), "JSESSIONID=ABC; other=1".to_owned()));
    let began = Instant::now();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..5)
            .map(|n| {
                let sim = &sim;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(10 * n));
                    one(sim).status
                })
            })
            .collect();
        calls.into_iter().map(|c| c.join().expect("a reply")).collect()
    });
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 3, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|s| **s == 202).count(), 2);
    assert!(began.elapsed() >= Duration::from_millis(300), "one after another");
    assert!(one(&sim).header("set-cookie").is_none(), "a call with a cookie gets none");
}

#[test]
fn a_request_is_carried_out_although_its_caller_gave_up() {
    let sim = small();
    sim.sim.set(|s| s.latency_ms = 150);
    let address = sim.sim.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).expect("a connection");
    let body = json!({ "short_description": "orphan" }).to_string();
    let request = format!(
        "POST /api/now/table/incident HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        sim.authorization,
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("written");
    std::thread::sleep(Duration::from_millis(30));
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(5);
    while sim.sim.requests().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let rows = sim.sim.truth("incident", "admin").expect("truth");
    assert!(rows.iter().any(|r| r["short_description"] == "orphan"));
}
