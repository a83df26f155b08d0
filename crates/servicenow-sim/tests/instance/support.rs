//! A small HTTP client of its own, so that no client library hides what the simulator sends.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use servicenow_sim::{Builder, Simulator};

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn result(&self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text());
        self.json()["result"].clone()
    }

    pub fn rows(&self) -> Vec<Value> {
        self.result().as_array().expect("a list").clone()
    }

    pub fn total(&self) -> usize {
        self.header("x-total-count").expect("X-Total-Count").parse().expect("a number")
    }

    /// The error's message and detail.
    pub fn error(&self) -> (String, Value) {
        let json = self.json();
        assert_eq!(json["status"], "failure");
        (json["error"]["message"].as_str().expect("a message").to_owned(), json["error"]["detail"].clone())
    }
}

/// A running instance and somebody who calls it.
pub struct Caller {
    pub sim: Simulator,
    pub authorization: String,
    pub headers: Vec<(String, String)>,
}

pub fn small() -> Caller {
    with(Simulator::builder())
}

pub fn with(builder: Builder) -> Caller {
    let sim = builder.start_blocking().expect("the simulator starts");
    Caller { sim, authorization: basic("admin", "admin"), headers: Vec::new() }
}

pub fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A text as a query parameter's value.
pub fn enc(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl Caller {
    /// The same instance, called by another user of the documentation.
    pub fn log_in(&mut self, user: &str) -> &mut Self {
        let password = match user {
            "admin" => "admin".to_owned(),
            "fdw.integration" => "fdw-secret".to_owned(),
            other => format!("{}-secret", other.split('.').next().expect("a name")),
        };
        self.authorization = basic(user, &password);
        self
    }

    pub fn try_call(&self, method: &str, target: &str, body: Option<(&str, &str)>) -> std::io::Result<Reply> {
        let mut headers = self.headers.clone();
        if !self.authorization.is_empty() {
            headers.push(("Authorization".to_owned(), self.authorization.clone()));
        }
        if !headers.iter().any(|(n, _)| n == "Accept") {
            headers.push(("Accept".to_owned(), "application/json".to_owned()));
        }
        if let Some((content_type, _)) = body {
            headers.push(("Content-Type".to_owned(), content_type.to_owned()));
        }
        let address = self.sim.url().trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        exchange(&mut stream, method, target, &headers, body.map_or("", |(_, b)| b))
    }

    pub fn call(&self, method: &str, target: &str, body: Option<&Value>) -> Reply {
        let text = body.map(Value::to_string);
        self.try_call(method, target, text.as_deref().map(|b| ("application/json", b))).expect("an answer")
    }

    pub fn get(&self, target: &str) -> Reply {
        self.call("GET", target, None)
    }

    /// A list by encoded query and further parameters.
    pub fn list(&self, table: &str, query: &str, more: &str) -> Reply {
        self.get(&format!("/api/now/table/{table}?sysparm_query={}&{more}", enc(query)))
    }

    /// The ids of all rows of a query, in order.
    pub fn ids(&self, table: &str, query: &str) -> Vec<String> {
        let reply = self.list(table, query, "sysparm_fields=sys_id");
        reply.rows().iter().map(|r| r["sys_id"].as_str().expect("an id").to_owned()).collect()
    }

    pub fn count(&self, table: &str, query: &str) -> usize {
        self.list(table, query, "sysparm_fields=sys_id&sysparm_limit=1").total()
    }

    pub fn post(&self, table: &str, body: &Value) -> Reply {
        self.call("POST", &format!("/api/now/table/{table}"), Some(body))
    }

    pub fn patch(&self, table: &str, id: &str, body: &Value) -> Reply {
        self.call("PATCH", &format!("/api/now/table/{table}/{id}"), Some(body))
    }

    pub fn delete(&self, table: &str, id: &str) -> Reply {
        self.call("DELETE", &format!("/api/now/table/{table}/{id}"), None)
    }

    /// The id of the only row of a query.
    pub fn id_of(&self, table: &str, query: &str) -> String {
        let ids = self.ids(table, query);
        assert_eq!(ids.len(), 1, "{query}");
        ids[0].clone()
    }
}

pub fn exchange<S: Read + Write>(
    stream: &mut S,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &str,
) -> std::io::Result<Reply> {
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: somewhere.else\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // A TLS peer may close without saying goodbye.
        Err(e) if e.kind() == ErrorKind::UnexpectedEof && !bytes.is_empty() => {}
        Err(e) => return Err(e),
    }
    parse(&bytes).ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let rest = &bytes[end + 4..];
    let chunked = headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("transfer-encoding") && v == "chunked");
    let body = if chunked { dechunk(rest)? } else { rest.to_vec() };
    Some(Reply { status, headers, body })
}

fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}
