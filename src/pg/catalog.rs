//! What Postgres's own catalogs say about foreign tables, servers, mappings and relations; and being told
//! when that changes.

use std::cell::RefCell;
use std::ffi::{CStr, CString};

use pgrx::{PgList, PgRelation, pg_guard, pg_sys};

/// Options as they stand in a catalog: names and values, in order.
pub type Options = Vec<(String, String)>;

/// A relation's column, dropped ones included so that positions are attribute numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Attribute number, from 1.
    pub number: i16,
    /// Its name; empty if dropped.
    pub name: String,
    /// Its type.
    pub type_oid: pg_sys::Oid,
    /// The type's modifier, -1 for none.
    pub typmod: i32,
    /// The collation, invalid for none.
    pub collation: pg_sys::Oid,
    /// Whether the column was dropped.
    pub dropped: bool,
    /// Whether its values are computed from other columns.
    pub generated: bool,
    /// `attlen` and `attalign`, which stay after the column is dropped.
    pub storage: (i16, i8),
}

/// The columns of a relation; the caller holds a lock on it.
pub fn attributes(relation: pg_sys::Oid) -> Vec<Attribute> {
    // SAFETY: opening fails with an ERROR if there is no such relation; the guard closes it.
    let relation = unsafe { PgRelation::with_lock(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE) };
    let tupdesc = relation.tuple_desc();
    tupdesc
        .iter()
        .map(|attribute| Attribute {
            number: attribute.attnum,
            name: if attribute.attisdropped { String::new() } else { attribute.name().to_owned() },
            type_oid: attribute.atttypid,
            typmod: attribute.atttypmod,
            collation: attribute.attcollation,
            dropped: attribute.attisdropped,
            generated: attribute.attgenerated != 0,
            storage: (attribute.attlen, attribute.attalign),
        })
        .collect()
}

/// Whether a relation is there, and its kind (`relkind`).
pub fn relation_kind(relation: pg_sys::Oid) -> Option<u8> {
    // SAFETY: a syscache lookup that gives back 0 for "no such relation".
    let kind = unsafe { pg_sys::get_rel_relkind(relation) } as u8;
    (kind != 0).then_some(kind)
}

/// A column's attribute number, by name.
pub fn attribute_number(relation: pg_sys::Oid, name: &str) -> Option<i16> {
    let name = c_string(name);
    // SAFETY: a syscache lookup that gives back 0 for "no such column".
    let number = unsafe { pg_sys::get_attnum(relation, name.as_ptr()) };
    (number != 0).then_some(number)
}

/// Whether a column's type came with Postgres: then nobody but a superuser has a say in its casts.
pub fn has_built_in_type(relation: pg_sys::Oid, column: &str) -> bool {
    let Some(number) = attribute_number(relation, column) else { return false };
    // SAFETY: a syscache lookup that gives back InvalidOid for "no such column".
    let type_oid = unsafe { pg_sys::get_atttype(relation, number) };
    type_oid != pg_sys::InvalidOid && type_oid.to_u32() < pg_sys::FirstNormalObjectId
}

/// The longest identifier, in bytes.
pub const NAME_LENGTH: usize = pg_sys::NAMEDATALEN as usize - 1;

/// A relation by schema and name.
pub fn relation_in(schema: &str, name: &str) -> Option<pg_sys::Oid> {
    let (schema, name) = (c_string(schema), c_string(name));
    // SAFETY: syscache lookups that give back InvalidOid for "no such thing".
    let relation =
        unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::get_namespace_oid(schema.as_ptr(), true)) };
    (relation != pg_sys::InvalidOid).then_some(relation)
}

/// A table's indexes.
pub fn indexes(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: opening fails with an ERROR if there is no such table; the guard closes it after the list, which
    // is the caller's, is read.
    unsafe {
        let table = PgRelation::with_lock(table, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        PgList::<pg_sys::Oid>::from_pg(pg_sys::RelationGetIndexList(table.as_ptr())).iter_oid().collect()
    }
}

/// Whether values of a type run no code that a user has written: it is a base type or an enum, or an array of
/// one.
pub fn is_plain_type(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: syscache lookups.
    unsafe {
        let element = pg_sys::get_element_type(type_oid);
        let innermost = if element == pg_sys::InvalidOid { type_oid } else { element };
        let kind = pg_sys::get_typtype(innermost) as u8;
        matches!(kind, pg_sys::TYPTYPE_BASE | pg_sys::TYPTYPE_ENUM)
    }
}

/// Whether a relation belongs to one session.
pub fn is_temporary(relation: pg_sys::Oid) -> bool {
    // SAFETY: a syscache lookup.
    unsafe { pg_sys::get_rel_persistence(relation) as u8 == pg_sys::RELPERSISTENCE_TEMP }
}

/// Keeps everybody else away from a relation until the end of the transaction.
pub fn lock_exclusively(relation: pg_sys::Oid) {
    // SAFETY: waits for the lock; interrupts and timeouts end the wait with an ERROR.
    unsafe { pg_sys::LockRelationOid(relation, pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE) };
}

/// Takes a lock on a relation until the end of the transaction, if it can be had at once.
pub fn try_lock(relation: pg_sys::Oid, lock: u32) -> bool {
    // SAFETY: takes an OID of anything; the lock goes with the transaction.
    unsafe { pg_sys::ConditionalLockRelationOid(relation, lock as pg_sys::LOCKMODE) }
}

/// Whether there is a database of this OID.
pub fn database_exists(database: pg_sys::Oid) -> bool {
    // SAFETY: a syscache lookup, inside a transaction; gives back NULL if there is none.
    unsafe { !pg_sys::get_database_name(database).is_null() }
}

/// A relation's name, if it is there.
pub fn relation_name(relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: gives back NULL or a palloc'd C string.
    unsafe { text(pg_sys::get_rel_name(relation)) }
}

/// A relation's owner, if it is there.
pub fn relation_owner(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: a syscache lookup; the tuple is released after its fixed part was read.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(relation));
        if tuple.is_null() {
            return None;
        }
        let form: *mut pg_sys::FormData_pg_class = pg_sys::GETSTRUCT(tuple).cast();
        let owner = (*form).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}

/// The number of rows a table's statistics know of; 0 if it is gone, negative if nothing is known.
pub fn row_estimate(table: pg_sys::Oid) -> f32 {
    // SAFETY: as for `relation_owner`.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(table));
        if tuple.is_null() {
            return 0.0;
        }
        let form: *mut pg_sys::FormData_pg_class = pg_sys::GETSTRUCT(tuple).cast();
        let rows = (*form).reltuples;
        pg_sys::ReleaseSysCache(tuple);
        rows
    }
}

/// A column's comment.
pub fn column_comment(relation: pg_sys::Oid, number: i16) -> Option<String> {
    // SAFETY: GetComment gives back NULL or a palloc'd C string.
    unsafe {
        let class = pg_sys::RelationRelationId;
        text(pg_sys::ffi::pg_guard_ffi_boundary(|| GetComment(relation, class, i32::from(number))))
    }
}

/// A relation's schema-qualified, quoted name; `None` if it is gone.
pub fn qualified_name(relation: pg_sys::Oid) -> Option<String> {
    let name = relation_name(relation)?;
    // SAFETY: both give back NULL or a palloc'd C string.
    let schema = unsafe { text(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation))) }?;
    Some(pgrx::spi::quote_qualified_identifier(schema, name))
}

/// As [`qualified_name`], and the name stays what it is until the transaction ends.
pub fn locked_name(relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: waits for the lock, which a relation that is gone has too; interrupts and timeouts end the wait with an
    // ERROR.
    unsafe { pg_sys::LockRelationOid(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE) };
    qualified_name(relation)
}

unsafe extern "C-unwind" {
    /// pg_inherits.c: looks at `pg_class.relhassubclass`, which stays when the last child goes.
    fn has_subclass(relation: pg_sys::Oid) -> bool;
    /// pg_inherits.c: the children, as a list of OIDs.
    fn find_inheritance_children(relation: pg_sys::Oid, lock: pg_sys::LOCKMODE) -> *mut pg_sys::List;
    /// comment.c: an object's comment, or NULL.
    fn GetComment(object: pg_sys::Oid, class: pg_sys::Oid, subobject: i32) -> *mut std::ffi::c_char;
}

/// Whether a relation has inheritance children.
pub fn has_children(relation: pg_sys::Oid) -> bool {
    let no_lock = pg_sys::NoLock as pg_sys::LOCKMODE;
    // SAFETY: a syscache lookup, and a look into the catalog for those that have or had children.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            has_subclass(relation) && !find_inheritance_children(relation, no_lock).is_null()
        })
    }
}

/// A foreign table's server and options; `None` if the relation is not a foreign table of wrapper `wrapper`.
pub fn foreign_table(relation: pg_sys::Oid, wrapper: &CStr) -> Option<(pg_sys::Oid, Options)> {
    if relation_kind(relation)? != pg_sys::RELKIND_FOREIGN_TABLE {
        return None;
    }
    // SAFETY: the relation is a foreign table, so it has a table and a server entry; both structs are
    // palloc'd in the current context and read at once.
    unsafe {
        let table = pg_sys::GetForeignTable(relation);
        let server = pg_sys::GetForeignServer((*table).serverid);
        let ours = pg_sys::get_foreign_data_wrapper_oid(wrapper.as_ptr(), true);
        ((*server).fdwid == ours).then(|| ((*table).serverid, options((*table).options)))
    }
}

/// A foreign server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// The name of its foreign-data wrapper.
    pub wrapper: CString,
    /// The role that owns it.
    pub owner: pg_sys::Oid,
    /// Its options.
    pub options: Options,
}

/// A server's identifier by its name; an ERROR if there is none.
pub fn server_by_name(name: &str) -> pg_sys::Oid {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a live C string; raises an ERROR if there is no such server.
    unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), false) }
}

/// A server by identifier; an ERROR if there is none.
pub fn server(oid: pg_sys::Oid) -> Server {
    // SAFETY: raises an ERROR if there is no such server; else the struct is palloc'd and read at once.
    unsafe {
        let server = pg_sys::GetForeignServer(oid);
        Server {
            name: text((*server).servername).unwrap_or_default(),
            wrapper: CStr::from_ptr((*pg_sys::GetForeignDataWrapper((*server).fdwid)).fdwname).to_owned(),
            owner: (*server).owner,
            options: options((*server).options),
        }
    }
}

/// A user mapping.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Its identifier.
    pub oid: pg_sys::Oid,
    /// The role it is for; none for PUBLIC.
    pub role: Option<pg_sys::Oid>,
    /// The transaction that has made it what it is: another one whenever it was altered.
    pub version: u32,
    /// Its options.
    pub options: Options,
}

/// The user mapping of a user for a server, or PUBLIC's; an ERROR if there is neither.
pub fn user_mapping(user: pg_sys::Oid, server: pg_sys::Oid) -> Mapping {
    // SAFETY: as for `server`.
    unsafe {
        let mapping = pg_sys::GetUserMapping(user, server);
        let (role, version) = about_mapping((*mapping).umid).unwrap_or((None, 0));
        Mapping { oid: (*mapping).umid, role, version, options: options((*mapping).options) }
    }
}

/// A user mapping by identifier, with its role, in whose place [`user_mapping`] finds it.
pub fn mapping(oid: pg_sys::Oid, server: pg_sys::Oid) -> Option<Mapping> {
    let (role, _) = about_mapping(oid)?;
    let mapping = user_mapping(role.unwrap_or(pg_sys::InvalidOid), server);
    (mapping.oid == oid).then_some(mapping)
}

/// A user mapping's role and version.
fn about_mapping(oid: pg_sys::Oid) -> Option<(Option<pg_sys::Oid>, u32)> {
    // SAFETY: a syscache lookup, whose tuple is valid until it is released; its header is that of the stored row.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::USERMAPPINGOID as i32, oid.into());
        if tuple.is_null() {
            return None;
        }
        let role = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_user_mapping>()).umuser;
        let version = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
        pg_sys::ReleaseSysCache(tuple);
        Some(((role != pg_sys::InvalidOid).then_some(role), u32::from(version)))
    }
}

/// The options of a foreign table's column.
pub fn column_options(relation: pg_sys::Oid, number: i16) -> Options {
    // SAFETY: gives back a list of DefElem in the current context, or NIL.
    unsafe { options(pg_sys::GetForeignColumnOptions(relation, number)) }
}

/// Reads a list of DefElem.
///
/// # Safety
/// `list` is NIL or a valid list of DefElem nodes.
unsafe fn options(list: *mut pg_sys::List) -> Options {
    // SAFETY: by contract; defGetString gives back a C string for every kind of value node.
    unsafe {
        PgList::<pg_sys::DefElem>::from_pg(list)
            .iter_ptr()
            .map(|def| {
                let name = text((*def).defname).unwrap_or_default();
                let value = if (*def).arg.is_null() { None } else { text(pg_sys::defGetString(def)) };
                (name, value.unwrap_or_default())
            })
            .collect()
    }
}

/// Copies a C string; `None` for NULL. Names in the catalogs are in the server encoding; what is not UTF-8 is
/// replaced, which only messages can show.
///
/// # Safety
/// `string` is NULL or points to a NUL-terminated string.
pub(super) unsafe fn text(string: *const std::ffi::c_char) -> Option<String> {
    // SAFETY: by contract.
    (!string.is_null()).then(|| unsafe { CStr::from_ptr(string).to_string_lossy().into_owned() })
}

/// A C string for Postgres; text with a NUL inside cannot come from SQL.
pub(super) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).expect("no NUL is left")
}

/// A type's name as SQL writes it, modifier included.
pub fn type_name(type_oid: pg_sys::Oid, typmod: i32) -> String {
    // SAFETY: gives back a palloc'd C string, "???" for an unknown type.
    unsafe { text(pg_sys::format_type_with_typemod(type_oid, typmod)) }.unwrap_or_default()
}

/// A collation's qualified and quoted name, if it is not its type's default one.
pub fn collation_clause(type_oid: pg_sys::Oid, collation: pg_sys::Oid) -> String {
    // SAFETY: syscache lookups; get_collation_name gives back NULL or a palloc'd C string.
    unsafe {
        if collation == pg_sys::InvalidOid || collation == pg_sys::get_typcollation(type_oid) {
            return String::new();
        }
        match text(pg_sys::get_collation_name(collation)) {
            Some(_) => format!(" COLLATE {}", collation_name(collation)),
            None => String::new(),
        }
    }
}

/// Whether text is equal under a collation only if it is the same.
pub fn is_deterministic(collation: pg_sys::Oid) -> bool {
    // SAFETY: a syscache lookup, which raises an ERROR for an unknown collation.
    collation == pg_sys::InvalidOid || unsafe { pg_sys::get_collation_isdeterministic(collation) }
}

fn collation_name(collation: pg_sys::Oid) -> String {
    // SAFETY: generate_collation_name raises an ERROR for an unknown collation, else palloc'd text.
    unsafe { text(pg_sys::generate_collation_name(collation)) }.unwrap_or_default()
}

/// Parses a time such as `10s`, `500ms` or `7d` the way Postgres's own settings do; milliseconds.
pub fn parse_milliseconds(value: &str) -> Result<i32, String> {
    let value = c_string(value);
    let mut result = 0;
    let mut hint: *const std::ffi::c_char = std::ptr::null();
    // SAFETY: all pointers are to live locals; the hint is a static string of Postgres.
    unsafe {
        match pg_sys::parse_int(value.as_ptr(), &mut result, pg_sys::GUC_UNIT_MS as i32, &mut hint) {
            true => Ok(result),
            false => Err(text(hint).unwrap_or_default()),
        }
    }
}

/// What has changed since somebody last asked.
#[derive(Debug, Default)]
pub struct Changes {
    /// Every relation may have changed.
    pub all: bool,
    /// These relations have changed.
    pub relations: Vec<pg_sys::Oid>,
    /// A server, mapping or wrapper may have changed.
    pub servers: bool,
    /// That one has was told; else it is only that messages were lost.
    pub servers_for_sure: bool,
    /// A role has changed.
    pub roles: bool,
}

thread_local! {
    static CHANGES: RefCell<Changes> = RefCell::new(Changes { all: true, servers: true, ..Changes::default() });
}

/// Relations remembered as changed before it is simpler to say "all".
const MANY: usize = 256;

/// What has changed in the catalogs since the last call, as far as invalidation messages have been read.
pub fn take_changes() -> Changes {
    CHANGES.with(|changes| std::mem::take(&mut *changes.borrow_mut()))
}

/// Reads the invalidation messages other processes have sent.
pub fn accept_changes() {
    // SAFETY: allowed outside and inside transactions.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}

/// Begins to listen; called once per process, when the library is loaded.
pub fn listen_for_changes() {
    // SAFETY: registers functions that live as long as the library, which is never unloaded.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(on_relation), pg_sys::Datum::from(0));
        for cache in [
            pg_sys::SysCacheIdentifier::FOREIGNSERVEROID,
            pg_sys::SysCacheIdentifier::USERMAPPINGOID,
            pg_sys::SysCacheIdentifier::FOREIGNDATAWRAPPEROID,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(on_server), pg_sys::Datum::from(0));
        }
        let roles = pg_sys::SysCacheIdentifier::AUTHOID as i32;
        pg_sys::CacheRegisterSyscacheCallback(roles, Some(on_role), pg_sys::Datum::from(0));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_relation(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    CHANGES.with(|changes| {
        let mut changes = changes.borrow_mut();
        if relation == pg_sys::InvalidOid || changes.relations.len() >= MANY {
            changes.all = true;
            changes.relations.clear();
        } else if !changes.all {
            changes.relations.push(relation);
        }
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_server(_argument: pg_sys::Datum, _cache: i32, hash: u32) {
    CHANGES.with(|changes| {
        let mut changes = changes.borrow_mut();
        changes.servers = true;
        // 0 stands for everything there is: this process was too far behind with messages.
        changes.servers_for_sure |= hash != 0;
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_role(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    CHANGES.with(|changes| changes.borrow_mut().roles = true);
}

/// Tells every process that a relation's definition has changed, when this transaction commits.
pub fn announce_change(relation: pg_sys::Oid) {
    // SAFETY: raises an ERROR if there is no such relation.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
}

/// While it lives, what is created belongs to an extension and what belongs to it can be dropped, as in the extension's
/// own scripts. ALTER EXTENSION would lock out every other transaction that makes or drops a member.
#[must_use]
pub struct AsExtension {
    /// Another extension's script may be what makes a foreign table.
    before: (bool, pg_sys::Oid),
}

impl AsExtension {
    /// Begins; an ERROR if there is no such extension.
    pub fn begin(extension: &CStr) -> Self {
        let share = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        // SAFETY: sets variables of this process, which are set back when this value is dropped, by an ERROR too.
        unsafe {
            let oid = pg_sys::get_extension_oid(extension.as_ptr(), false);
            // It must not be dropped meanwhile.
            pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, oid, 0, share);
            let before = (pg_sys::creating_extension, pg_sys::CurrentExtensionObject);
            pg_sys::creating_extension = true;
            pg_sys::CurrentExtensionObject = oid;
            Self { before }
        }
    }
}

impl Drop for AsExtension {
    fn drop(&mut self) {
        // SAFETY: sets variables of this process to what they were.
        unsafe { (pg_sys::creating_extension, pg_sys::CurrentExtensionObject) = self.before };
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use super::AsExtension;

    #[pg_test]
    fn an_extension_whose_script_is_running_goes_on_afterwards() {
        let current = || {
            // SAFETY: reads variables of this process.
            unsafe { (pg_sys::creating_extension, pg_sys::CurrentExtensionObject) }
        };
        let outside = current();
        let outer = AsExtension::begin(c"plpgsql");
        let of_outer = current();
        drop(AsExtension::begin(c"servicenow_fdw"));
        assert_eq!(current(), of_outer);
        let failed = crate::pg::xact::subtransaction(|| {
            let _inner = AsExtension::begin(c"servicenow_fdw");
            Spi::run("SELECT 1 / 0")
        });
        assert!(failed.is_err());
        assert_eq!(current(), of_outer);
        drop(outer);
        assert_eq!(current(), outside);
    }
}
