//! Who the session acts as.

use std::ffi::{CStr, c_int, c_void};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::{PgSqlErrorCode, pg_sys};

/// The role the current statement runs as.
pub fn current_user() -> pg_sys::Oid {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetUserId() }
}

/// Whether the current role is a superuser.
pub fn is_superuser() -> bool {
    // SAFETY: a syscache lookup.
    unsafe { pg_sys::superuser() }
}

/// Whether a role is a superuser.
pub fn is_superuser_role(role: pg_sys::Oid) -> bool {
    // SAFETY: a syscache lookup; a role that is gone is none.
    unsafe { pg_sys::superuser_arg(role) }
}

/// Whether a role has the privileges of another one, as superusers do.
pub fn has_privileges_of(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: syscache lookups.
    unsafe { pg_sys::has_privs_of_role(member, role) }
}

/// A role by name.
pub fn role(name: &str) -> Option<pg_sys::Oid> {
    let name = super::catalog::c_string(name);
    // SAFETY: `missing_ok`, so InvalidOid for "no such role".
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// A role's name; a number for one that is gone.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: `noerr`: NULL for a role that is gone, else a palloc'd string.
    let name = unsafe { super::catalog::text(pg_sys::GetUserNameFromId(role, true)) };
    name.unwrap_or_else(|| role.to_u32().to_string())
}

/// Whether there is such a role.
pub fn is_role(role: pg_sys::Oid) -> bool {
    // SAFETY: `noerr`: NULL for a role that is gone.
    unsafe { !pg_sys::GetUserNameFromId(role, true).is_null() }
}

/// Acts as the bootstrap superuser until dropped: for the extension's own tables, which nobody else may touch.
/// Names mean what they mean in `pg_catalog` meanwhile, whatever `search_path` the caller has set: an operator
/// of theirs would run with these rights.
#[must_use]
pub struct AsOwner {
    user: pg_sys::Oid,
    context: i32,
    settings: i32,
}

impl AsOwner {
    /// Begins, for queries that look up rows by keys: the planner is not to read a whole table for them, which it
    /// would as long as the table has no statistics.
    pub fn by_key() -> Self {
        let this = Self::begin();
        // SAFETY: within the nest level that `begin` has made.
        unsafe { set_locally(c"enable_seqscan", c"off") };
        this
    }

    /// Begins.
    pub fn begin() -> Self {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: sets variables, and a setting for a nest level of its own; the abort of a (sub)transaction
        // restores all of it too. The setting and its value are valid.
        unsafe {
            let settings = pg_sys::NewGUCNestLevel();
            set_locally(c"search_path", c"pg_catalog, pg_temp");
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            pg_sys::SetUserIdAndSecContext(
                pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID),
                context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32,
            );
            Self { user, context, settings }
        }
    }
}

/// Sets a setting until the end of the nest level.
///
/// # Safety
/// There is a nest level of the caller's own; name and value are valid.
unsafe fn set_locally(name: &CStr, value: &CStr) {
    // SAFETY: by contract.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        // SAFETY: sets everything to what it was.
        unsafe {
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
            pg_sys::AtEOXact_GUC(false, self.settings);
        }
    }
}

/// Whether the current role may read files of the server.
pub fn may_read_server_files() -> bool {
    // SAFETY: syscache lookups.
    unsafe {
        pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::Oid::from(pg_sys::ROLE_PG_READ_SERVER_FILES))
    }
}

/// Whether the current role owns a foreign server, as superusers do.
pub fn owns_server(server: pg_sys::Oid) -> bool {
    role_owns_server(current_user(), server)
}

/// As [`owns_server`], of any role.
pub fn role_owns_server(role: pg_sys::Oid, server: pg_sys::Oid) -> bool {
    // SAFETY: syscache lookups.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_foreign_server_ownercheck(server, role);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::ForeignServerRelationId, server, role);
    }
}

/// Whether the current role owns a relation, as superusers do.
pub fn owns_relation(relation: pg_sys::Oid) -> bool {
    // SAFETY: syscache lookups; raises an ERROR if there is no such relation.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_class_ownercheck(relation, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, pg_sys::GetUserId());
    }
}

/// Whether the current role may use a foreign server.
pub fn may_use_server(role: pg_sys::Oid, server: pg_sys::Oid) -> bool {
    let usage = pg_sys::ACL_USAGE as pg_sys::AclMode;
    // SAFETY: syscache lookups.
    unsafe {
        #[cfg(feature = "pg15")]
        let answer = pg_sys::pg_foreign_server_aclcheck(server, role, usage);
        #[cfg(not(feature = "pg15"))]
        let answer = pg_sys::object_aclcheck(pg_sys::ForeignServerRelationId, server, role, usage);
        answer == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether the role may read a column of the relation at least.
pub fn may_select_some_of(relation: pg_sys::Oid) -> bool {
    let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
    // SAFETY: syscache lookups.
    unsafe {
        let user = pg_sys::GetUserId();
        pg_sys::pg_class_aclcheck(relation, user, select) == pg_sys::AclResult::ACLCHECK_OK
            || pg_sys::pg_attribute_aclcheck_all(relation, user, select, pg_sys::AclMaskHow::ACLMASK_ANY)
                == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// An ERROR on a standby.
pub fn refuse_during_recovery(command: &CStr) {
    // SAFETY: the text is copied into the message.
    unsafe { pg_sys::PreventCommandDuringRecovery(command.as_ptr()) };
}

/// Has every kept plan made anew at its next use.
pub fn forget_plans() {
    // SAFETY: marks plans in this process; those being executed go on.
    unsafe { pg_sys::ResetPlanCache() };
}

/// Whether text in this database is UTF-8.
pub fn database_is_utf8() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

/// Has Postgres refuse settings that begin with `prefix` and a dot and are not defined.
pub fn reserve_settings(prefix: &'static CStr) {
    // SAFETY: the prefix is a constant; placeholders that nobody defined go away with a WARNING.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}

/// A setting as SHOW prints it.
pub fn setting(name: &'static CStr) -> String {
    // SAFETY: gives back NULL for an unknown setting (`missing_ok`), else a palloc'd string.
    unsafe {
        super::catalog::text(pg_sys::GetConfigOptionByName(name.as_ptr(), std::ptr::null_mut(), true))
            .unwrap_or_default()
    }
}

/// Defines a setting of which only the default is supported so far: SET refuses the other words with 0A000.
pub fn define_choice_of_one<T: pgrx::guc::GucEnum>(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<T>,
) {
    let flags = GucFlags::default();
    // SAFETY: the hook is of the right kind and lives as long as the library.
    unsafe {
        GucRegistry::define_enum_guc_with_hooks(
            name,
            short,
            long,
            setting,
            GucContext::Userset,
            flags,
            Some(check_choice_of_one),
            None,
            None,
        );
    }
}

/// The words of a setting are numbered in their order.
unsafe extern "C-unwind" fn check_choice_of_one(
    value: *mut c_int,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: Postgres passes a valid pointer, reads the two texts before the next check, and changes neither.
    unsafe {
        if *value == 0 {
            return true;
        }
        pg_sys::GUC_check_errcode(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED as c_int);
        pg_sys::GUC_check_errmsg_string =
            c"reading live from ServiceNow is not supported".as_ptr().cast_mut();
        pg_sys::GUC_check_errhint_string =
            c"Use \"cached\"; servicenow_fdw.max_staleness bounds how old what is read may be."
                .as_ptr()
                .cast_mut();
        false
    }
}
