//! What a rolled-back transaction has written to a simulated instance is undone over HTTP, whatever happens in between.

mod doubt;
#[path = "../interrupt/mod.rs"]
mod interrupt;
mod interrupted;
mod model;
mod undone;

use std::sync::Arc;
use std::time::Duration;

use servicenow::Result;
use servicenow::client::auth::vault::Vault;
use servicenow::client::auth::{Credentials, Secret};
use servicenow::client::retry::{Effect, Patience, Urgency};
use servicenow::client::table_api::Identity;
use servicenow::client::transport::{HttpTransport, TransportOptions};
use servicenow::client::{Client, Instance};
use servicenow::page::{Layout, Rows, Version};
use servicenow::push::codec::{HEADER, decode, encode};
use servicenow::push::decision::{Calls, Why};
use servicenow::push::intent::{Fields, Images, Intent, Note, Op, OpenWrite, open_writes};
use servicenow::push::undo::{Others, Outcome, Report, undo};
use servicenow::value::{SysId, TableName};
use servicenow_sim::{Record, Simulator};

/// Fields that an instance keeps by itself; what is made again has others.
const STAMPS: [&str; 5] =
    ["sys_created_by", "sys_created_on", "sys_updated_by", "sys_updated_on", "sys_mod_count"];
/// Fields that read nothing.
const JOURNALS: [&str; 3] = ["comments", "work_notes", "comments_and_work_notes"];

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It is carried out, and the backend ends before it has noted that.
    AnswerLost,
    /// The backend ends before it sends anything.
    NeverSent,
}

/// An instance, and a backend whose transaction is going to be rolled back.
struct Backend {
    sim: Simulator,
    transport: HttpTransport,
    client: Client<HttpTransport>,
    file: Vec<u8>,
    made: u128,
}

impl Backend {
    async fn new() -> Backend {
        let sim = Simulator::builder().seed(42).start().await.expect("the simulator starts");
        let options = TransportOptions {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            ..TransportOptions::default()
        };
        let transport = HttpTransport::new(&options).expect("a transport");
        let client = client(&sim, &transport);
        Backend { sim, transport, client, file: HEADER.to_vec(), made: 0 }
    }

    /// The next backend of the same instance.
    fn next(self) -> Backend {
        Backend { client: client(&self.sim, &self.transport), file: HEADER.to_vec(), ..self }
    }

    /// A record that was there before the transaction, changed twice since it was made.
    fn existing(&self) -> SysId {
        let edit = self.sim.edit().as_user("fdw.integration");
        let fields = [("short_description", "first"), ("description", "first"), ("close_notes", "first")];
        let id = edit.insert("incident", &fields).expect("a record");
        for text in ["on hold", "first"] {
            edit.update("incident", &id, &[("description", text)]).expect("it is there");
        }
        SysId::new(id)
    }

    fn note(&mut self, note: &Note) {
        encode(note, &mut self.file);
    }

    fn intend(&mut self, table: &str, id: &SysId, op: Op, images: Images) {
        let intent = Intent {
            server: 1,
            foreign_table: 2,
            role: 3,
            table: table_name(table),
            sys_id: id.clone(),
            op,
            xid: 7,
            timeline: 1,
            undo: Some(images),
        };
        self.note(&Note::Intended(vec![intent]));
    }

    /// Takes note of an answer, if it comes.
    fn settle(&mut self, id: &SysId, fate: Fate, answer: Result<Version>) {
        match answer {
            _ if fate == Fate::AnswerLost => {}
            Ok(version) => self.note(&Note::Answered(vec![(id.clone(), version)])),
            Err(e) if e.leaves_outcome_unknown() => {}
            Err(_) => self.note(&Note::Refused(vec![id.clone()])),
        }
    }

    /// The record as a backend's cache has it: version, and values of fields.
    async fn image(&self, table: &str, id: &SysId, fields: &[&str]) -> (Version, Fields) {
        let rows = self.client.get(&table_name(table), id, &layout(fields)).await.expect("it is there");
        let values = fields.iter().map(|field| ((*field).to_owned(), rows.get(0, field).to_owned()));
        (rows.version(0), values.collect())
    }

    async fn insert(&mut self, table: &str, fields: &[(&str, &str)], fate: Fate) -> SysId {
        self.made += 1;
        let id = SysId::from_random(self.made.to_be_bytes());
        let images = Images { after: owned(fields), ..Images::default() };
        self.intend(table, &id, Op::Insert { is_fresh: true, is_findable: true }, images);
        if fate != Fate::NeverSent {
            let (table, fresh) = (table_name(table), Identity::Fresh(id.clone()));
            let answer = self.client.insert(&table, &fresh, &body(fields), &layout(&[])).await;
            self.settle(&id, fate, answer.map(|rows| version(&rows)));
        }
        id
    }

    async fn update(&mut self, table: &str, id: &SysId, fields: &[(&str, &str)], fate: Fate) {
        self.update_after(table, id, fields, fate, |_| {}).await;
    }

    /// As [`Backend::update`], with something happening between the reading of the image and the write.
    async fn update_after(
        &mut self,
        table: &str,
        id: &SysId,
        fields: &[(&str, &str)],
        fate: Fate,
        happens: impl FnOnce(&Simulator),
    ) {
        let names: Vec<_> =
            fields.iter().map(|(field, _)| *field).filter(|f| !JOURNALS.contains(f)).collect();
        let (version_before, before) = self.image(table, id, &names).await;
        let images = Images { version: version_before, before, after: owned(fields) };
        self.intend(table, id, Op::Update, images);
        happens(&self.sim);
        if fate != Fate::NeverSent {
            let (table, layout) = (table_name(table), layout(&[]));
            let answer = self.client.update(&table, id, &body(fields), &layout, Effect::Once).await;
            self.settle(id, fate, answer.map(|rows| version(&rows)));
        }
    }

    async fn delete(&mut self, table: &str, id: &SysId, fate: Fate) {
        let record = self.record_in(table, id).expect("it is there");
        let fields: Vec<_> = record.keys().map(String::as_str).filter(|f| !JOURNALS.contains(f)).collect();
        let (version, before) = self.image(table, id, &fields).await;
        self.intend(table, id, Op::Delete, Images { version, before, after: Fields::new() });
        if fate != Fate::NeverSent {
            let answer = self.client.delete(&table_name(table), id).await;
            self.settle(id, fate, answer.map(|()| Version::default()));
        }
    }

    /// The writes that the file leaves open.
    fn open(&self) -> Vec<OpenWrite> {
        let decoded = decode(&self.file).expect("a file of ours");
        assert!(!decoded.torn);
        open_writes(decoded.notes)
    }

    async fn undo(&self) -> Result<Vec<Report>> {
        undo(&self.client, &self.open(), Calls::AreOver, &|_, _, _| Others::Nothing).await
    }

    /// As [`Backend::undo`], at a time when calls without an answer may still arrive.
    async fn undo_early(&self) -> Vec<Outcome> {
        let writes = self.open();
        let reports = undo(&self.client, &writes, Calls::MayArrive, &|_, _, _| Others::Nothing).await;
        reports.expect("the instance is there").into_iter().map(|report| report.outcome).collect()
    }

    /// What became of the only record.
    async fn outcome(&self) -> Outcome {
        let mut reports = self.undo().await.expect("the instance is there");
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports.remove(0).outcome
    }

    fn record_in(&self, table: &str, id: &SysId) -> Option<Record> {
        self.sim.record(table, id.as_str())
    }

    fn record(&self, id: &SysId) -> Option<Record> {
        self.record_in("incident", id)
    }

    /// Somebody else changes a record.
    fn somebody_changes(&self, id: &SysId, fields: &[(&str, &str)]) {
        self.sim.edit().update("incident", id.as_str(), fields).expect("it is there");
    }

    /// How many writes the instance was asked for so far.
    fn writes(&self) -> usize {
        self.sim.requests().iter().filter(|r| r.method != "GET").count()
    }
}

/// A record without what the instance keeps by itself.
fn content(record: Option<Record>) -> Option<Record> {
    record.map(|mut record| {
        record.retain(|field, _| !STAMPS.contains(&field.as_str()));
        record
    })
}

/// Makes sure that a record has the content it had before.
#[track_caller]
fn assert_as_before(now: Option<Record>, before: &Option<Record>, what: &str) {
    let (now, before) = (content(now), content(before.clone()));
    assert_eq!(now.is_some(), before.is_some(), "{what}");
    let differing: Vec<_> = before
        .into_iter()
        .flatten()
        .filter_map(|(field, was)| {
            let is = now.as_ref()?.get(&field)?;
            (*is != was).then(|| format!("{field} was {was:?} and is {is:?}"))
        })
        .collect();
    assert!(differing.is_empty(), "{what}: {differing:?}");
}

fn partly(fields: &[&str]) -> Outcome {
    Outcome::Left { why: Why::Partly(fields.iter().map(|field| (*field).to_owned()).collect()) }
}

fn version(rows: &Rows) -> Version {
    rows.version(0)
}

fn layout(fields: &[&str]) -> Arc<Layout> {
    Arc::new(Layout::of_text(fields))
}

fn table_name(name: &str) -> TableName {
    TableName::new(name).expect("a valid name")
}

fn owned(fields: &[(&str, &str)]) -> Fields {
    fields.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect()
}

fn body(fields: &[(&str, &str)]) -> serde_json::Map<String, serde_json::Value> {
    fields.iter().map(|(field, value)| ((*field).to_owned(), (*value).into())).collect()
}

/// A client that tries once: who undoes tries again by beginning anew.
fn client(sim: &Simulator, transport: &HttpTransport) -> Client<HttpTransport> {
    let password = Secret::new("fdw-secret").into();
    let instance = Instance {
        url: sim.url().parse().expect("an address"),
        token_url: None,
        credentials: Credentials::Basic { username: "fdw.integration".to_owned(), password },
        vault: Vault::default(),
        max_concurrency: 4,
        max_calls_per_hour: None,
        patience: Patience {
            attempts: 1,
            longest_wait: Duration::from_secs(3),
            urgency: Urgency::Background,
        },
    };
    Client::new(instance, transport.clone()).expect("a client")
}
