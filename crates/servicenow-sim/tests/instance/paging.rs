//! Facts §1.1-§1.3, §1.5 and §1.7: statuses, parameters, headers, pages.

use std::collections::BTreeSet;

use crate::support::{enc, small, with};
use servicenow_sim::{Availability, Simulator};

#[test]
fn a_list_without_rows_is_404_in_v1_and_empty_elsewhere() {
    let sim = small();
    let query = enc("number=nothing");
    assert_eq!(sim.get(&format!("/api/now/v1/table/incident?sysparm_query={query}")).status, 404);
    for version in ["", "/v2"] {
        let reply = sim.get(&format!("/api/now{version}/table/incident?sysparm_query={query}"));
        assert_eq!((reply.status, reply.text().as_str()), (200, "{\"result\":[]}"));
    }
}

#[test]
fn errors_have_the_recorded_texts() {
    let sim = small();
    let reply = sim.get("/api/now/table/foo");
    assert_eq!(reply.status, 400);
    assert_eq!(reply.text(), r#"{"error":{"message":"Invalid table foo","detail":null},"status":"failure"}"#);
    let reply = sim.get("/api/now/nonsense");
    assert_eq!(
        (reply.status, reply.error().0.as_str()),
        (400, "Requested URI does not represent any resource")
    );
    let reply = sim.get("/api/now/table/incident/0123456789abcdef0123456789abcdef");
    assert_eq!(reply.status, 404);
    let (message, detail) = reply.error();
    assert_eq!(message, "No Record found");
    assert_eq!(detail, "Record doesn't exist or ACL restricts the record retrieval");
    assert_eq!(sim.call("TRACE", "/api/now/table/incident", None).status, 405);
}

#[test]
fn accept_and_content_type_are_checked() {
    let mut sim = small();
    sim.headers.push(("Accept".to_owned(), "text/csv".to_owned()));
    assert_eq!(sim.get("/api/now/table/incident?sysparm_limit=1").status, 406);
    sim.headers.clear();
    let reply =
        sim.try_call("POST", "/api/now/table/incident", Some(("text/plain", "hello"))).expect("an answer");
    assert_eq!(reply.status, 415);
    sim.headers.push(("Accept".to_owned(), "application/xml".to_owned()));
    let reply = sim.get("/api/now/table/incident?sysparm_limit=1&sysparm_fields=number");
    assert!(
        reply.text().starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?><response><result><number>INC"),
        "{}",
        reply.text()
    );
}

#[test]
fn head_has_the_headers_and_no_body() {
    let sim = small();
    let reply = sim.call("HEAD", "/api/now/table/incident?sysparm_limit=1", None);
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    assert!(reply.total() > 40);
}

#[test]
fn the_method_can_be_overridden() {
    let mut sim = small();
    let id = sim.id_of("incident", "number=INC0012345");
    sim.headers.push(("X-HTTP-Method-Override".to_owned(), "PATCH".to_owned()));
    let reply = sim.call(
        "POST",
        &format!("/api/now/table/incident/{id}"),
        Some(&serde_json::json!({ "short_description": "over" })),
    );
    assert_eq!(reply.result()["short_description"], "over");
}

#[test]
fn unknown_parameters_are_silently_ignored() {
    let sim = small();
    let all = sim.get("/api/now/table/incident?sysparm_limit=1").total();
    assert_eq!(
        sim.get("/api/now/table/incident?query=number%3DINC0012345&display_value=True&sysparm_limit=1")
            .total(),
        all
    );
}

#[test]
fn field_value_pairs_work_with_labels_too() {
    let sim = small();
    let closed = sim.count("incident", "state=7");
    assert_eq!(sim.get("/api/now/table/incident?state=closed&sysparm_fields=sys_id").total(), closed);
    assert_eq!(
        sim.get("/api/now/table/incident?assigned_to=Gurney+Halleck&state=2&sysparm_fields=number").total(),
        sim.count("incident", "assigned_to.name=Gurney Halleck^state=2")
    );
    let both = sim.get("/api/now/table/incident?sysparm_query=state%3D7&state=1&sysparm_limit=1");
    assert_eq!(both.total(), closed, "sysparm_query wins");
}

#[test]
fn unknown_fields_are_left_out_without_an_error() {
    let sim = small();
    let row = sim
        .get("/api/now/table/incident?sysparm_limit=1&sysparm_fields=number,no_such_field,caller_id.nothing")
        .rows()
        .remove(0);
    assert_eq!(row.as_object().expect("a row").keys().collect::<Vec<_>>(), ["number"]);
}

#[test]
fn counts_and_links_can_be_left_out() {
    let sim = small();
    let reply = sim.get("/api/now/table/incident?sysparm_limit=2&sysparm_no_count=true");
    assert_eq!(reply.header("x-total-count"), None);
    let reply = sim.get("/api/now/table/incident?sysparm_limit=2&sysparm_suppress_pagination_header=true");
    assert_eq!(reply.header("link"), None);
    assert!(reply.header("x-total-count").is_some());
}

#[test]
fn links_lead_through_all_pages() {
    let sim = small();
    let link = |reply: &crate::support::Reply, rel: &str| {
        let header = reply.header("link")?.to_owned();
        let part = header.split(',').find(|p| p.ends_with(&format!("rel=\"{rel}\"")))?.to_owned();
        Some(part.split(['<', '>']).nth(1)?.trim_start_matches(sim.sim.url()).to_owned())
    };
    let mut reply = sim.list("incident", "ORDERBYsys_id", "sysparm_limit=7&sysparm_fields=sys_id");
    assert!(link(&reply, "prev").expect("prev").ends_with("sysparm_offset=-7"), "as captured");
    let mut seen = reply.rows().len();
    while let Some(next) = link(&reply, "next") {
        reply = sim.get(&next);
        seen += reply.rows().len();
    }
    assert_eq!(seen, reply.total());
    sim.sim.set(|s| s.link_previous = false);
    let reply = sim.list("incident", "ORDERBYsys_id", "sysparm_limit=7");
    assert!(link(&reply, "prev").is_none());
}

#[test]
fn a_long_query_needs_the_pagination_header_suppressed() {
    let sim = small();
    let ids = vec!["0123456789abcdef0123456789abcdef"; 70].join(",");
    let query = enc(&format!("sys_idIN{ids}"));
    let reply = sim.get(&format!("/api/now/table/incident?sysparm_query={query}"));
    assert_eq!(reply.status, 400);
    assert_eq!(
        reply.error().0,
        "the requested query is too long to build the response pagination header URLs"
    );
    let reply = sim.get(&format!(
        "/api/now/table/incident?sysparm_query={query}&sysparm_suppress_pagination_header=true"
    ));
    assert_eq!(reply.status, 200);
}

#[test]
fn a_url_above_eight_kib_is_414_in_html() {
    let sim = small();
    let reply = sim.get(&format!("/api/now/table/incident?sysparm_query=number%3D{}", "x".repeat(8200)));
    assert_eq!(reply.status, 414);
    assert!(reply.text().contains("Request-URI Too Large") && reply.text().starts_with("<html>"));
}

#[test]
fn offsets_without_a_unique_sort_repeat_and_lose_rows() {
    let sim = small();
    let pages = |order: &str| {
        let mut fetched = Vec::new();
        for offset in (0..60).step_by(5) {
            let reply = sim.list(
                "incident",
                order,
                &format!("sysparm_limit=5&sysparm_offset={offset}&sysparm_fields=sys_id"),
            );
            fetched.extend(reply.rows().iter().map(|r| r["sys_id"].as_str().expect("an id").to_owned()));
        }
        fetched
    };
    let total = sim.count("incident", "");
    let distinct = |rows: &[String]| rows.iter().collect::<BTreeSet<_>>().len();
    let loose = pages("");
    assert_eq!(loose.len(), total);
    assert!(distinct(&loose) < total, "{} of {total}", distinct(&loose));
    assert_eq!(pages(""), loose, "deterministically");
    assert!(distinct(&pages("ORDERBYactive")) < total);
    assert_eq!(distinct(&pages("ORDERBYactive^ORDERBYsys_id")), total);
    assert_eq!(distinct(&pages("ORDERBYsys_id")), total);
    sim.sim.set(|s| s.stable_order = true);
    assert_eq!(distinct(&pages("")), total);
}

#[test]
fn answers_are_compressed_only_when_asked_for() {
    use std::io::Read as _;
    let mut sim = small();
    let plain = sim.get("/api/now/table/incident?sysparm_limit=5");
    assert_eq!(plain.header("content-encoding"), None);
    sim.headers.push(("Accept-Encoding".to_owned(), "gzip, br".to_owned()));
    let packed = sim.get("/api/now/table/incident?sysparm_limit=5");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(packed.body.as_slice()).read_to_end(&mut text).expect("gzip");
    assert_eq!(text, plain.body);
}

#[test]
fn the_date_header_is_the_virtual_clock() {
    let sim = small();
    sim.sim.clock().set("2031-05-06T07:08:09Z".parse().expect("a date"));
    sim.sim.clock().hold(true);
    assert_eq!(
        sim.get("/api/now/table/incident?sysparm_limit=1").header("date"),
        Some("Tue, 06 May 2031 07:08:09 GMT")
    );
}

#[test]
fn a_view_can_be_read_and_not_written() {
    let sim = small();
    let rows = sim.list("incident_sla", "inc_active=true", "").rows();
    assert!(!rows.is_empty());
    assert!(rows[0].get("inc_number").is_some() && rows[0].get("taskslatable_stage").is_some());
    let id = rows[0]["sys_id"].as_str().expect("an id");
    assert_eq!(sim.patch("incident_sla", id, &serde_json::json!({ "inc_number": "x" })).status, 403);
    assert_eq!(sim.post("incident_sla", &serde_json::json!({})).status, 403);
}

#[test]
fn a_table_hidden_from_web_services_refuses() {
    let sim = small();
    assert_eq!(sim.get("/api/now/table/u_pg_hidden").status, 403);
}

#[test]
fn a_table_may_have_no_update_stamp() {
    let sim = small();
    let row = sim.list("u_pg_static", "", "sysparm_limit=1").rows().remove(0);
    assert!(row.get("sys_updated_on").is_none() && row.get("sys_created_on").is_some());
    assert_eq!(sim.count("u_pg_static", "sys_updated_on>=2000-01-01"), 5, "a condition on it is dropped");
}

#[test]
fn an_instance_may_be_down_or_asleep() {
    let sim = small();
    sim.sim.set(|s| s.availability = Availability::Down);
    assert_eq!(sim.get("/api/now/table/incident").status, 503);
    sim.sim.set(|s| s.availability = Availability::Hibernating);
    let reply = sim.get("/api/now/table/incident");
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("<title> Instance Hibernating page </title>"));
    sim.sim.set(|s| s.availability = Availability::Unreachable);
    assert!(sim.try_call("GET", "/api/now/table/incident", None).is_err());
    sim.sim.set(|s| s.availability = Availability::Up);
    assert_eq!(sim.get("/api/now/table/incident?sysparm_limit=1").status, 200);
}

#[test]
fn https_is_served_under_a_throw_away_authority() {
    use std::sync::Arc;
    let sim = with(Simulator::builder().tls(true));
    let pem = sim.sim.ca_pem().expect("an authority");
    let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
    let der = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(body).expect("base64")
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der.into()).expect("a certificate");
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
    let url = sim.sim.https_url().expect("https");
    let port = url.rsplit(':').next().expect("a port");
    let tcp = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).expect("a connection");
    let connection = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().expect("a name"))
        .expect("TLS");
    let mut stream = rustls::StreamOwned::new(connection, tcp);
    let headers = [("Authorization".to_owned(), sim.authorization.clone())];
    let reply =
        crate::support::exchange(&mut stream, "GET", "/api/now/table/incident?sysparm_limit=1", &headers, "")
            .expect("an answer");
    assert_eq!(reply.status, 200);
}
