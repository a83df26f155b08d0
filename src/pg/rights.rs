//! Whether a query may read a relation at all, before the executor says so: planning for somebody who may not must
//! not let anything of theirs see a value, not even the planner's statistics.

use pgrx::pg_sys;

/// What a query wants of a relation.
pub struct Wanted {
    relation: pg_sys::Oid,
    user: pg_sys::Oid,
    rights: pg_sys::AclMode,
    columns: *mut pg_sys::Bitmapset,
}

impl Wanted {
    /// What an entry of a query's range table asks for.
    ///
    /// # Safety
    /// `query` is valid and `entry` a relation of its range table.
    #[cfg(feature = "pg15")]
    pub unsafe fn of(_query: *mut pg_sys::Query, entry: *mut pg_sys::RangeTblEntry) -> Self {
        // SAFETY: by contract.
        unsafe {
            Self {
                relation: (*entry).relid,
                user: (*entry).checkAsUser,
                rights: (*entry).requiredPerms,
                columns: (*entry).selectedCols,
            }
        }
    }

    /// What an entry of a query's range table asks for.
    ///
    /// # Safety
    /// `query` is valid and `entry` a relation of its range table.
    #[cfg(not(feature = "pg15"))]
    pub unsafe fn of(query: *mut pg_sys::Query, entry: *mut pg_sys::RangeTblEntry) -> Self {
        let nothing = Self {
            relation: pg_sys::InvalidOid,
            user: pg_sys::InvalidOid,
            rights: 0,
            columns: std::ptr::null_mut(),
        };
        // SAFETY: by contract; an entry without permission info asks for nothing.
        unsafe {
            if (*entry).perminfoindex == 0 {
                return nothing;
            }
            let info = pg_sys::getRTEPermissionInfo((*query).rteperminfos, entry);
            Self {
                relation: (*entry).relid,
                user: (*info).checkAsUser,
                rights: (*info).requiredPerms,
                columns: (*info).selectedCols,
            }
        }
    }

    /// Whether the user may have it. The executor decides (`ExecCheckOneRelPerms`), and tells other extensions
    /// of its decision; this is the same question asked without a word.
    pub fn is_allowed(&self) -> bool {
        if self.rights == 0 {
            return true;
        }
        let all = pg_sys::AclMaskHow::ACLMASK_ALL;
        let any = pg_sys::AclMaskHow::ACLMASK_ANY;
        let select = pg_sys::AclMode::from(pg_sys::ACL_SELECT);
        let ok = pg_sys::AclResult::ACLCHECK_OK;
        // SAFETY: looks into the system catalogs, inside a transaction; the set belongs to the query.
        unsafe {
            let user = if self.user == pg_sys::InvalidOid { pg_sys::GetUserId() } else { self.user };
            let missing = self.rights & !pg_sys::pg_class_aclmask(self.relation, user, self.rights, all);
            if missing == 0 {
                return true;
            }
            if missing != select {
                return false; // rights to change some columns: rare, and refusing costs no more than a plan
            }
            let mut member = pg_sys::bms_next_member(self.columns, -1);
            if member < 0 {
                return pg_sys::pg_attribute_aclcheck_all(self.relation, user, select, any) == ok;
            }
            while member >= 0 {
                let number = (member + pg_sys::FirstLowInvalidHeapAttributeNumber) as i16;
                let checked = match number {
                    0 => pg_sys::pg_attribute_aclcheck_all(self.relation, user, select, all),
                    _ => pg_sys::pg_attribute_aclcheck(self.relation, number, user, select),
                };
                if checked != ok {
                    return false;
                }
                member = pg_sys::bms_next_member(self.columns, member);
            }
            true
        }
    }
}

/// Whether the user of a query may read what it reads of a base relation, or of the table it is a child of.
///
/// # Safety
/// `root` and `rel` are the planner's.
pub unsafe fn may_read(root: *mut pg_sys::PlannerInfo, rel: *mut pg_sys::RelOptInfo) -> bool {
    // SAFETY: by contract; the arrays have an element for each entry of the range table.
    unsafe {
        let entry_of = |index: usize| *(*root).simple_rte_array.add(index);
        let mut index = (*rel).relid as usize;
        while !(*root).append_rel_array.is_null() && !(*(*root).append_rel_array.add(index)).is_null() {
            let parent = (*(*(*root).append_rel_array.add(index))).parent_relid as usize;
            // An arm of a UNION ALL is checked by itself.
            if (*entry_of(parent)).rtekind != pg_sys::RTEKind::RTE_RELATION {
                break;
            }
            index = parent;
        }
        Wanted::of((*root).parse, entry_of(index)).is_allowed()
    }
}
