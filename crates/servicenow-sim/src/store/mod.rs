//! The instance's data: interned values, rows, and the ordered indexes that keyset queries use.

pub(crate) mod collation;
pub(crate) mod db;
pub(crate) mod key;
pub(crate) mod ranked;
pub(crate) mod symbol;

pub(crate) use db::{Db, RowId};
pub(crate) use symbol::Val;
