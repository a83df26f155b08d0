//! What tables and columns exist: the in-memory form behind `sys_db_object` and `sys_dictionary`.

pub(crate) mod choice;
pub(crate) mod column;
pub(crate) mod definition;
pub(crate) mod key_order;
pub(crate) mod table;
pub(crate) mod types;

pub(crate) use column::{Cascade, Column, Kind, ReadOnly};
pub(crate) use table::{Schema, Table, TableId};
