//! ServiceNow's REST interface, and how a mirror of its tables is kept. No database is needed here.
//!
//! - [`value`]: names, identifiers, the wire form of every type
//! - [`query`]: encoded queries as a syntax tree
//! - [`page`]: rows of an answer, decoded into a compact batch
//! - [`client`]: requests, logins, retries, limits, statistics, the Table API, many writes at once
//! - [`capture`]: Business Rules that tell of changes, and what they tell
//! - [`dictionary`]: tables, fields and choices, for administrators and for users who may not read them
//! - [`push`]: what is noted of a write before it is sent, and how it is undone
//! - [`sync`]: what a mirror reads when, and when it may believe that it has read everything
//! - [`error`]: one error type that tells an instance's answers apart
#![forbid(unsafe_code)]

pub mod capture;
pub mod client;
pub mod dictionary;
pub mod error;
pub mod page;
pub mod push;
pub mod query;
pub mod sync;
pub mod value;

pub use error::{Error, Result};
