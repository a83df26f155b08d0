//! Writes that outlive their transaction: ServiceNow cannot roll one back, so it is noted before it is sent.
//!
//! - [`intent`]: what a backend notes of a write, and which writes are open after a number of notes
//! - [`codec`]: the file the notes are appended to
//! - [`decision`]: what has to be done to a record for it to be as before a transaction
//! - [`undo`]: does so for everything a rolled-back transaction has written
//!
//! A backend appends [`Note::Intended`](intent::Note) and makes it durable, sends the writes, and appends what came of
//! them, which need not be durable: a write without an answer may or may not have been carried out, and undoing finds
//! out. A commit removes the notes. Whatever of them is left belongs to a transaction that was rolled back or crashed.
//!
//! ServiceNow has no compare-and-set: between looking at a record and writing to it there is a moment in which a change
//! by somebody else would be lost. [`undo`] keeps it short and cannot close it.

pub mod codec;
pub mod decision;
pub mod intent;
pub mod undo;
