//! Who the session acts as.

use pgrx::pg_sys;

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

/// A role by name.
pub fn role(name: &str) -> Option<pg_sys::Oid> {
    let name = super::catalog::c_string(name);
    // SAFETY: `missing_ok`, so InvalidOid for "no such role".
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Acts as the bootstrap superuser until dropped: for the extension's own tables, which nobody else may
/// touch. Nothing a user has written may run meanwhile; `search_path` must not matter to what runs.
#[must_use]
pub struct AsOwner {
    user: pg_sys::Oid,
    context: i32,
}

impl AsOwner {
    /// Begins.
    pub fn begin() -> Self {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: reads and sets two variables; the abort of a (sub)transaction restores them too.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            pg_sys::SetUserIdAndSecContext(
                pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID),
                context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32,
            );
        }
        Self { user, context }
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        // SAFETY: sets two variables to what they were.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
    }
}

/// Whether the role may read the relation.
pub fn may_select(relation: pg_sys::Oid) -> bool {
    // SAFETY: syscache lookups.
    unsafe {
        pg_sys::pg_class_aclcheck(relation, pg_sys::GetUserId(), pg_sys::ACL_SELECT as pg_sys::AclMode)
            == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether text in this database is UTF-8.
pub fn database_is_utf8() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}
