//! A ServiceNow instance to test against: Table API, roles, faults, and a request log.
//!
//! The simulator answers as the real thing does — exact value shapes, access rules that take rows out after the limit,
//! silent drops, rules that refuse — and goes wrong on demand. It holds its data in memory, listens on loopback only,
//! and shares no code with any client.
//!
//! ```no_run
//! # async fn example() -> Result<(), servicenow_sim::StartError> {
//! use servicenow_sim::{Dataset, Effect, Fault, Simulator};
//!
//! let sim = Simulator::builder().dataset(Dataset::Small).seed(42).start().await?;
//! sim.fault(Fault::new(Effect::Discard).table("incident").times(1));
//! sim.edit().rename_user("gurney.halleck", "G. Halleck").expect("the user exists");
//! println!("{}", sim.url());
//! sim.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Who can log in
//! | user | password | rights |
//! |---|---|---|
//! | `admin` | `admin` | everything |
//! | `fdw.integration` | `fdw-secret` | itil, itil_admin, and read on the metadata tables of a mirror |
//! | `itil.user` | `itil-secret` | itil without metadata: `sys_dictionary` is empty, `sys_choice` stripped |
//! | `ess.user` | `ess-secret` | own incidents and requests only |
//! | `readonly.user` | `readonly-secret` | reads as `fdw.integration`, writes nothing |
//! | `pacific.user` | `pacific-secret` | itil in America/Los_Angeles |
//! | `german.user` | `german-secret` | itil in Europe/Berlin, `dd.MM.yyyy`, German labels |
//!
//! OAuth client `fdw-client` / `fdw-client-secret` (application user `fdw.integration`; redirect URL
//! `http://localhost/oauth/callback`; it signs assertions with [`PRIVATE_KEY`], key id `fdw-key`); API key `fdw-api-key`.
//! A public client (`public_client`) needs no secret, gets no refresh token and has to use PKCE.
//!
//! # Map of the crate
//! `simulator` what tests hold; `control` the same over HTTP under `/sim/…`; `http` listeners, pipeline, gate;
//! `endpoint` paths to handlers; `table_api`, `stats`, `batch`, `ui_meta`, `oauth` the interfaces; `query` encoded
//! queries; `record` writes, with `rules`, `script`, `audit`, `dictionary` acting on them; `acl`, `users`, `auth` who may what;
//! `schema` tables, columns, choices; `store` rows and indexes; `dataset`, `replay` the data; `edit` changes from
//! inside; `fault`, `switch`, `clock`, `request_log` the test bench.
#![forbid(unsafe_code)]

mod acl;
mod audit;
mod auth;
mod batch;
mod calendar;
mod clock;
mod control;
mod dataset;
mod dictionary;
mod display;
mod edit;
mod edit_command;
mod endpoint;
mod fault;
mod http;
mod ident;
mod instance;
mod json;
mod oauth;
mod query;
mod record;
mod replay;
mod request_log;
mod rules;
mod schema;
mod script;
mod simulator;
mod stats;
mod store;
mod switch;
mod table_api;
mod truth;
mod ui_meta;
mod users;
mod view;

/// The private key that `fdw-client` signs assertions with, PEM. It is of use nowhere else.
pub const PRIVATE_KEY: &str = include_str!("../data/jwt/private_key.pem");

pub use acl::{AclRule, Operation};
pub use clock::Clock;
pub use dataset::Dataset;
pub use edit::{Edit, EditError};
pub use edit_command::{EditCommand, How};
pub use fault::{Cut, Effect, Fault, FaultId};
pub use http::tls::{Certificate, TlsError};
pub use http::wire::{Reset, Wire};
pub use query::compile::UnknownField;
pub use record::Refusal;
pub use replay::ReplayStatus;
pub use request_log::{Counter, LoggedRequest};
pub use rules::{BusinessRule, Phase, RuleEffect, RuleFunction, RuleHook};
pub use script::effect::PostCount;
pub use simulator::{Builder, Simulator, StartError};
pub use switch::{Availability, Concurrency, RowQuota, Switches};
pub use truth::Record;
