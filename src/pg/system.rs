//! The system columns of the cache's rows. They are the foreign table's too: what else could tell its rows apart, or
//! say who wrote them?

use pgrx::pg_sys;

/// Attribute number of `ctid`.
pub const CTID: i16 = pg_sys::SelfItemPointerAttributeNumber as i16;
/// Attribute number of `xmin`.
pub const XMIN: i16 = pg_sys::MinTransactionIdAttributeNumber as i16;
/// Attribute number of `cmin`; `cmax` is the same field of a row.
pub const CMIN: i16 = pg_sys::MinCommandIdAttributeNumber as i16;
/// Attribute number of `xmax`.
pub const XMAX: i16 = pg_sys::MaxTransactionIdAttributeNumber as i16;
const CMAX: i16 = pg_sys::MaxCommandIdAttributeNumber as i16;

/// All of them but `tableoid`, which is the foreign table's own; [`SystemColumns::from_values`] takes them in this order.
pub const ALL: [i16; 4] = [CTID, XMIN, CMIN, XMAX];

/// Those that a scan has to fetch for somebody who reads these attributes. A `ctid` alone needs no tuple around it.
pub fn needed(attributes: &[i16]) -> &'static [i16] {
    if attributes.iter().any(|n| [XMIN, CMIN, XMAX, CMAX].contains(n)) {
        &ALL
    } else if attributes.contains(&CTID) {
        &ALL[..1]
    } else {
        &[]
    }
}

/// The system columns of a row, but for `tableoid`.
#[derive(Clone, Copy, Debug)]
pub struct SystemColumns {
    ctid: pg_sys::ItemPointerData,
    xmin: pg_sys::TransactionId,
    command: pg_sys::CommandId,
    xmax: pg_sys::TransactionId,
}

impl SystemColumns {
    /// Those of a row that is not stored anywhere.
    pub const NOWHERE: Self = Self {
        ctid: pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData { bi_hi: u16::MAX, bi_lo: u16::MAX },
            ip_posid: 0,
        },
        xmin: pg_sys::InvalidTransactionId,
        command: 0,
        xmax: pg_sys::InvalidTransactionId,
    };

    /// Those of a row of the cache.
    ///
    /// # Safety
    /// The slot holds a tuple of a table.
    pub unsafe fn of(slot: *mut pg_sys::TupleTableSlot) -> Self {
        let mut is_null = false;
        // SAFETY: by contract; such a tuple has all of them.
        unsafe {
            let mut get = |number: i16| pg_sys::slot_getsysattr(slot, i32::from(number), &mut is_null);
            let [xmin, command, xmax] = [XMIN, CMIN, XMAX].map(&mut get);
            Self::new((*slot).tts_tid, xmin, command, xmax)
        }
    }

    /// From values in the order of [`ALL`].
    ///
    /// # Safety
    /// The values are of these columns.
    pub unsafe fn from_values([ctid, xmin, command, xmax]: [pg_sys::Datum; 4]) -> Self {
        // SAFETY: by contract.
        unsafe { Self::new(*ctid.cast_mut_ptr(), xmin, command, xmax) }
    }

    fn new(
        ctid: pg_sys::ItemPointerData,
        xmin: pg_sys::Datum,
        command: pg_sys::Datum,
        xmax: pg_sys::Datum,
    ) -> Self {
        let xid = |datum: pg_sys::Datum| pg_sys::TransactionId::from(datum.value() as u32);
        Self { ctid, xmin: xid(xmin), command: command.value() as pg_sys::CommandId, xmax: xid(xmax) }
    }

    /// Gives the row in a slot these system columns. Values by reference are copied.
    ///
    /// # Safety
    /// The slot holds a virtual tuple.
    pub unsafe fn put(&self, slot: *mut pg_sys::TupleTableSlot) {
        // SAFETY: by contract. The tuple is made where the slot lives, which may free it.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo((*slot).tts_mcxt);
            let tuple =
                pg_sys::heap_form_tuple((*slot).tts_tupleDescriptor, (*slot).tts_values, (*slot).tts_isnull);
            pg_sys::MemoryContextSwitchTo(before);
            (*tuple).t_self = self.ctid;
            (*tuple).t_tableOid = (*slot).tts_tableOid;
            // What is made is a datum, and becomes a row of a table.
            let header = (*tuple).t_data;
            (*header).t_infomask &= !((pg_sys::HEAP_XMAX_COMMITTED | pg_sys::HEAP_XMAX_INVALID) as u16);
            (*header).t_ctid = self.ctid;
            let fields = &mut (*header).t_choice.t_heap;
            fields.t_xmin = self.xmin;
            fields.t_xmax = self.xmax;
            fields.t_field3.t_cid = self.command;
            pg_sys::ExecForceStoreHeapTuple(tuple, slot, true);
            // Not every kind of slot has taken it from the tuple.
            (*slot).tts_tid = self.ctid;
        }
    }
}
