//! The client against a simulated instance, over HTTP: logins, of one process and of several, answers, retries, load, budget,
//! statistics, records, batches, reads that go together, dictionary, TLS, HTTP.

mod aggregate;
mod answers;
mod batch;
mod batch_faults;
mod budget;
mod dictionary;
mod hostile;
mod keys;
mod load;
mod login;
mod lost;
mod proxy;
mod records;
mod redirect;
mod retry;
mod shared_login;
mod stats;
mod tls;
mod together;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use servicenow::Error;
use servicenow::client::auth::vault::Vault;
use servicenow::client::auth::{Credentials, Secret};
use servicenow::client::retry::{Patience, Urgency};
use servicenow::client::table_api::{List, Page};
use servicenow::client::transport::{HttpTransport, TransportOptions};
use servicenow::client::{Client, Instance};
use servicenow::page::{Column, Layout};
use servicenow::query::Query;
use servicenow::value::{Kind, Show, SysId, TableName};
use servicenow_sim::{LoggedRequest, Simulator};

/// A client over HTTP.
type HttpClient = Client<HttpTransport>;

/// An instance with a bit of everything.
async fn instance() -> Simulator {
    Simulator::builder().seed(42).start().await.expect("the simulator starts")
}

/// A client of an address under some login, set up as asked.
fn set_up(
    url: &str,
    credentials: Credentials,
    change: impl FnOnce(&mut Instance, &mut TransportOptions),
) -> servicenow::Result<HttpClient> {
    let mut instance = Instance {
        url: url.parse().expect("an address"),
        token_url: None,
        credentials,
        vault: Vault::default(),
        max_concurrency: 8,
        max_calls_per_hour: None,
        patience: Patience { attempts: 3, longest_wait: Duration::from_secs(3), urgency: Urgency::Statement },
    };
    let mut options = TransportOptions {
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(5),
        ..TransportOptions::default()
    };
    change(&mut instance, &mut options);
    Client::new(instance, HttpTransport::new(&options)?)
}

/// A client that tries so often.
fn client_at(url: &str, credentials: Credentials, attempts: u32) -> HttpClient {
    set_up(url, credentials, |instance, _| instance.patience.attempts = attempts).expect("a client")
}

/// Name and password of one of the instance's users, sent with every call.
fn login(user: &str) -> Credentials {
    let password = match user {
        "admin" => "admin".to_owned(),
        "fdw.integration" => "fdw-secret".to_owned(),
        other => format!("{}-secret", other.split('.').next().unwrap_or_default()),
    };
    Credentials::Basic { username: user.to_owned(), password: Secret::new(password).into() }
}

/// A client of one of the instance's users.
fn basic(sim: &Simulator, user: &str) -> HttpClient {
    client_at(sim.url(), login(user), 3)
}

/// The client of most tests.
fn client(sim: &Simulator) -> HttpClient {
    basic(sim, "fdw.integration")
}

fn table(name: &str) -> TableName {
    TableName::new(name).expect("a valid name")
}

/// A few columns of an incident, stored values as text.
fn some_fields() -> Arc<Layout> {
    Arc::new(Layout::of_text(&["number", "short_description", "state", "caller_id", "description"]))
}

/// A stored value and a label of some fields.
fn both_sides(fields: &[&str]) -> Arc<Layout> {
    let column = |field: &&str, show| Column { field: (*field).to_owned(), show, kind: Kind::Text };
    let columns = fields.iter().flat_map(|field| [column(field, Show::Value), column(field, Show::Label)]);
    Arc::new(Layout::new(columns.collect()))
}

/// One page of a table, in the order of `sys_id`, counted.
async fn page(client: &HttpClient, name: &str, query: &str, limit: u32) -> Result<Page, Error> {
    let query = Query::parse(query).expect("a valid query").order_by("sys_id");
    let (table, layout) = (table(name), some_fields());
    client.list(List { table: &table, query: &query, layout: &layout, limit, offset: 0, count: true }).await
}

/// The requests so far that asked for tokens.
fn logins(sim: &Simulator) -> usize {
    sim.requests().iter().filter(|request| request.endpoint == "oauth_token").count()
}

/// The Table API requests so far with a method.
fn calls(sim: &Simulator, method: &str) -> Vec<LoggedRequest> {
    sim.requests().into_iter().filter(|r| r.endpoint == "table" && r.method == method).collect()
}

/// The incident everybody knows.
fn known(sim: &Simulator) -> SysId {
    SysId::new(sim.edit().find("incident", "number=INC0012345").expect("a query").remove(0))
}
