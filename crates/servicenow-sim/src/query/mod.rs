//! Encoded queries (facts §2): parsed, compiled against the dictionary, and evaluated in memory.

pub(crate) mod compile;
pub(crate) mod date;
pub(crate) mod order;
pub(crate) mod parse;
pub(crate) mod plan;
pub(crate) mod script;

pub(crate) use compile::{Compiled, Session};
pub(crate) use parse::{Condition, Operator, Query};
