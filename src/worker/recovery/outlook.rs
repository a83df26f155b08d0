//! What became of the transactions whose writes a file tells of.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::time::SystemTime;

use servicenow::push::codec::Failure;
use servicenow::push::intent::{Intent, Note};

use super::notes_of;
use crate::catalog::{self, Outlook};
use crate::pg;
use crate::push::place::place;

/// See above.
pub(super) struct Outlooks {
    /// By number and timeline.
    of: HashMap<(u64, u32), Outlook>,
    /// The file is a copy: what became of transactions here is not what became of them in the original.
    pub(super) is_copy: bool,
}

impl Outlooks {
    /// Of a file that nobody uses any more; `None` if one of its transactions is not over.
    ///
    /// A crash may have come after what was written before the worker began. Then a number of a transaction may be
    /// somebody else's by now, unless it was made to last, which that of a write to be undone is.
    pub(super) fn of(file: &File, began: SystemTime) -> Result<Option<Self>, Failure> {
        let here = place(file)?;
        let is_old = !file.metadata()?.modified().is_ok_and(|at| at > began);
        let (mut numbers, mut is_copy) = (HashSet::new(), true);
        for note in notes_of(file)? {
            match note? {
                Note::Begun(there) => is_copy &= there != here,
                Note::Intended(intents) => {
                    let lasting = intents.iter().filter(|intent| intent.undo.is_some() || !is_old);
                    numbers.extend(lasting.map(number));
                }
                Note::Answered(_) | Note::Renamed(_) | Note::Refused(_) => {}
            }
        }
        let mut of = HashMap::new();
        for number in numbers.into_iter().filter(|_| !is_copy) {
            match pg::xact::transaction(|| catalog::outlook(number.0, number.1)) {
                Ok(Outlook::Open) => return Ok(None),
                Ok(outlook) => of.insert(number, outlook),
                Err(_) => of.insert(number, Outlook::Unknown),
            };
        }
        Ok(Some(Self { of, is_copy }))
    }

    /// Of the transaction of a write.
    pub(super) fn of_write(&self, write: &Intent) -> Outlook {
        self.of.get(&number(write)).copied().unwrap_or(Outlook::Unknown)
    }
}

fn number(write: &Intent) -> (u64, u32) {
    (write.xid, write.timeline)
}
