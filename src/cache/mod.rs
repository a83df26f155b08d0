//! Cache tables: the local copies behind foreign tables.

pub mod apply;
pub mod ddl;
pub mod type_map;

/// Cache column that holds a row's `sys_updated_on`, whatever columns the foreign table has.
pub const UPDATED_ON: &str = "_sn_updated_on";
/// Cache column that holds a row's `sys_mod_count`.
pub const MOD_COUNT: &str = "_sn_mod_count";
