//! The boundary to Postgres: every `unsafe` of the extension lives here and in `entry.rs`, behind functions
//! that are safe to call. This is the bottom layer: it uses pgrx and nothing else of ours.
//!
//! # Safety rules of this boundary
//! - **Thread**: everything here runs on the process's main thread; pgrx panics if another one calls in. The
//!   exceptions are [`io::Bell`], which is a file descriptor, and what `io` says about its own thread.
//! - **Memory**: what Postgres allocates lives in a memory context. Pointers handed out by Postgres are used
//!   within the call that got them, unless the comment at the `unsafe` block names the context that outlives it.
//! - **Errors**: an ERROR of Postgres unwinds through Rust as a panic and becomes an ERROR again at the next
//!   `#[pg_guard]`. Values with a `Drop` are therefore dropped; nothing here calls C code that could
//!   `longjmp` over them, because pgrx wraps every call.

pub mod catalog;
pub mod expand;
pub mod generated;
pub mod io;
mod rights;
pub mod routine;
mod sample;
pub mod scan;
pub mod session;
pub mod spi;
pub mod start;
pub mod statistics;
pub mod system;
pub mod table;
pub mod tuple;
pub mod worker;
pub mod xact;
