//! The simulator held against `servicenow-facts.md`, section by section, over HTTP as a client sees it.
#![allow(missing_docs)]

mod access;
mod auth;
mod captures;
mod control;
mod edits;
mod event_log;
mod faults;
mod metadata;
mod paging;
mod queries;
mod shapes;
mod stats_and_batch;
mod support;
mod writes;
