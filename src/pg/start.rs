//! A query whose execution is about to start: what it reads, and with which snapshot.

use pgrx::{PgList, pg_sys};

/// The start of a query's execution, as the executor's hook sees it.
pub struct Start(*mut pg_sys::QueryDesc);

impl Start {
    /// # Safety
    /// `query` is what `ExecutorStart` was called with, and outlives the result.
    pub unsafe fn new(query: *mut pg_sys::QueryDesc) -> Self {
        Self(query)
    }

    /// The relations that are, or were before the planner expanded them, foreign tables or views and whose rows
    /// the query reads: not those it only inserts into.
    pub fn reads(&self) -> impl Iterator<Item = pg_sys::Oid> {
        // SAFETY: the plan is complete and outlives this value.
        let (statement, entries) = unsafe {
            let statement = (*self.0).plannedstmt;
            (statement, PgList::<pg_sys::RangeTblEntry>::from_pg((*statement).rtable))
        };
        (1..=entries.len()).filter_map(move |index| {
            let entry = entries.get_ptr(index - 1)?;
            // SAFETY: an entry of the plan's range table.
            unsafe {
                let kind = (*entry).relkind as u8;
                let relation = (*entry).relid;
                let may_be = relation != pg_sys::InvalidOid
                    && (kind == pg_sys::RELKIND_FOREIGN_TABLE || kind == pg_sys::RELKIND_VIEW);
                (may_be && !is_filled_only(statement, index as i32, entry)).then_some(relation)
            }
        })
    }

    /// Checks the user's privileges, as the executor does a little later.
    pub fn check_privileges(&self) {
        // SAFETY: the plan's own lists.
        unsafe {
            let statement = (*self.0).plannedstmt;
            #[cfg(feature = "pg15")]
            pg_sys::ExecCheckRTPerms((*statement).rtable, true);
            #[cfg(not(feature = "pg15"))]
            pg_sys::ExecCheckPermissions((*statement).rtable, (*statement).permInfos, true);
        }
    }

    /// Whether the query's snapshot was made for it alone, so that a newer one can take its place: a statement
    /// under READ COMMITTED, and not one inside a function that sees what its caller sees.
    pub fn can_see_newer(&self) -> bool {
        if super::xact::keeps_its_snapshot() {
            return false;
        }
        // SAFETY: the query's own snapshot, which it has registered.
        unsafe {
            let snapshot = (*self.0).snapshot;
            !snapshot.is_null()
                && (*snapshot).snapshot_type == pg_sys::SnapshotType::SNAPSHOT_MVCC
                && ((*snapshot).regd_count == 1 || (*snapshot).regd_count == 2 && is_kept_by_portal(snapshot))
        }
    }

    /// Has the query see what is committed by now, if [`Self::can_see_newer`].
    pub fn see_newer(&self) {
        if !self.can_see_newer() {
            return;
        }
        // SAFETY: nothing has been read with the old snapshot. The query holds the only reference to it beside
        // its portal and the stack of active snapshots, where the new one takes its place if it was pushed for this query.
        unsafe {
            let old = (*self.0).snapshot;
            let is_active = pg_sys::ActiveSnapshotSet() && pg_sys::GetActiveSnapshot() == old;
            let latest = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            if is_active && (*old).active_count == 1 {
                pg_sys::PopActiveSnapshot();
                pg_sys::PushActiveSnapshot(latest);
            }
            (*self.0).snapshot = latest;
            pg_sys::UnregisterSnapshot(old);
        }
    }
}

/// Whether a portal keeps a snapshot: EXECUTE runs with the one that the client's portal keeps for the result, so that
/// nothing in it is vacuumed away. Such a portal has no name, but for clients that give it one.
///
/// # Safety
/// Inside a transaction.
unsafe fn is_kept_by_portal(snapshot: pg_sys::Snapshot) -> bool {
    let keeps = |name: &str| {
        let name = super::catalog::c_string(name);
        // SAFETY: looks a name up; a portal that is there is valid.
        unsafe {
            let portal = pg_sys::GetPortalByName(name.as_ptr());
            !portal.is_null() && (*portal).holdSnapshot == snapshot
        }
    };
    let names = || {
        super::spi::select("SELECT name FROM pg_catalog.pg_cursors", &[], |rows| {
            rows.filter_map(|row| row.get::<String>(1).ok().flatten()).collect::<Vec<_>>()
        })
    };
    keeps("") || names().iter().any(|name| keeps(name))
}

/// Whether the entry is a target that the query only adds rows to.
///
/// # Safety
/// `statement` is a plan and `entry` the one number `index` of its range table.
unsafe fn is_filled_only(
    statement: *mut pg_sys::PlannedStmt,
    index: i32,
    entry: *mut pg_sys::RangeTblEntry,
) -> bool {
    let reading = pg_sys::AclMode::from(pg_sys::ACL_UPDATE | pg_sys::ACL_DELETE);
    // SAFETY: by contract.
    unsafe {
        pg_sys::list_member_int((*statement).resultRelations, index)
            && required_privileges(statement, entry) & reading == 0
    }
}

/// # Safety
/// As for [`is_filled_only`].
#[cfg(feature = "pg15")]
unsafe fn required_privileges(
    _statement: *mut pg_sys::PlannedStmt,
    entry: *mut pg_sys::RangeTblEntry,
) -> pg_sys::AclMode {
    // SAFETY: by contract.
    unsafe { (*entry).requiredPerms }
}

/// # Safety
/// As for [`is_filled_only`].
#[cfg(not(feature = "pg15"))]
unsafe fn required_privileges(
    statement: *mut pg_sys::PlannedStmt,
    entry: *mut pg_sys::RangeTblEntry,
) -> pg_sys::AclMode {
    // SAFETY: by contract; entries without permission info have index 0.
    unsafe {
        if (*entry).perminfoindex == 0 {
            return 0;
        }
        (*pg_sys::getRTEPermissionInfo((*statement).permInfos, entry)).requiredPerms
    }
}
