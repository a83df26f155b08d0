//! What has to be known and noted before records are written.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

use pgrx::PgSqlErrorCode as Sql;
use pgrx::pg_sys::panic::ErrorReport;
use servicenow::client::keys::Keys;
use servicenow::client::write::Fate;
use servicenow::dictionary::{FieldDef, FieldType, field_type};
use servicenow::page::{Layout, Version};
use servicenow::push::intent::{Fields, Images, Op};
use servicenow::value::SysId;

use super::{Item, Pusher, Task, intent};
use crate::error::{error, raise};
use crate::pg;

impl Pusher {
    /// Notes what is about to be sent, after a look at the records where the table's options want one. Gives back a file that
    /// is to be synced meanwhile.
    pub(super) fn note(&mut self, items: &[(usize, Item)]) -> Option<File> {
        pg::xact::forbid_prepare();
        let mut before = self.look(items);
        let is_findable = self.connection.keys(&self.mirror.table) == Keys::Taken;
        let intents = items.iter().map(|(_, item)| {
            let undo = self.mirror.compensate.then(|| {
                let (version, before) = before.remove(&item.id).unwrap_or_default();
                let lasting = item.task.sent().iter().filter(|sent| !sent.appends);
                Images {
                    version,
                    before,
                    after: lasting.map(|s| (s.field.clone(), s.value.clone())).collect(),
                }
            });
            let op = match item.task.op() {
                Op::Insert { is_fresh, .. } => Op::Insert { is_fresh, is_findable },
                op => op,
            };
            intent::Entry { op, id: &item.id, undo }
        });
        intent::note(&self.mirror, self.role(), intents)
    }

    /// Notes what came of it. What nothing is noted of may still be carried out.
    pub(super) fn note_fates(&self, items: &[(usize, Item)], fates: &[Fate]) {
        let (mut renamed, mut answered, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for ((_, item), fate) in items.iter().zip(fates) {
            match fate {
                Fate::Done(rows) if rows.is_empty() => answered.push((item.id.clone(), Version::default())),
                Fate::Done(rows) => {
                    let made = SysId::new(rows.id(0));
                    answered.push((made.clone(), rows.version(0)));
                    if made != item.id {
                        renamed.push((item.id.clone(), made));
                    }
                }
                Fate::Failed(e) if e.leaves_outcome_unknown() => {}
                Fate::Failed(_) | Fate::NotSent if self.mirror.compensate => refused.push(item.id.clone()),
                // The record is looked at nevertheless: it may have been refused because it is gone.
                Fate::Failed(_) | Fate::NotSent => answered.push((item.id.clone(), Version::default())),
            }
        }
        intent::settled(renamed, answered, refused);
    }

    /// Looks at the records that are about to be changed or deleted: whether they are as the cache has them, and what there
    /// is to be restored if the transaction is rolled back.
    fn look(&mut self, items: &[(usize, Item)]) -> HashMap<SysId, (Version, Fields)> {
        let there = items.iter().map(|(_, item)| item).filter(|i| !matches!(i.task, Task::Insert { .. }));
        let ids: Vec<SysId> = there.clone().map(|item| item.id.clone()).collect();
        if ids.is_empty() || !(self.mirror.compensate || self.mirror.optimistic_lock) {
            return HashMap::new();
        }
        let fields: Vec<String> = match self.mirror.compensate {
            true => self.fields_to_restore(items),
            false => Vec::new(),
        };
        let names: Vec<&str> = fields.iter().map(String::as_str).collect();
        let (table, layout) = (self.mirror.table.clone(), Arc::new(Layout::of_text(&names)));
        let what = format!("read records of table \"{table}\"");
        let rows = self
            .connection
            .call(&what, false, |client| async move { client.look(&table, &ids, &layout).await });
        let place: HashMap<&str, usize> = rows.ids().zip(0..).collect();
        let mut before = HashMap::new();
        for item in there {
            let Some(row) = place.get(item.id.as_str()).copied() else { continue };
            let version = rows.version(row);
            if self.mirror.optimistic_lock && item.cached.is_some_and(|cached| cached != version) {
                raise(self.changed_meanwhile(item));
            }
            let is_lost = |field: &str| {
                matches!(item.task, Task::Delete)
                    || item.task.sent().iter().any(|sent| sent.field == field && !sent.appends)
            };
            let shown =
                fields.iter().enumerate().filter(|(column, f)| is_lost(f) && rows.is_shown(row, *column));
            let values = shown.map(|(column, field)| (field.clone(), rows.text(row, column).to_owned()));
            before.insert(item.id.clone(), (version, values.collect()));
        }
        before
    }

    /// The fields of which the values before are kept: those that are sent, and all there are of a record that is deleted.
    fn fields_to_restore(&mut self, items: &[(usize, Item)]) -> Vec<String> {
        let sent = items.iter().flat_map(|(_, item)| item.task.sent());
        let mut fields: BTreeSet<String> = sent.filter(|s| !s.appends).map(|s| s.field.clone()).collect();
        if items.iter().any(|(_, item)| matches!(item.task, Task::Delete)) {
            let def = self.def();
            let keeps_a_value = |field: &&FieldDef| {
                !field.computed
                    && !matches!(field_type(&field.internal_type), FieldType::Journal | FieldType::Omitted)
            };
            fields.extend(def.fields.iter().filter(keeps_a_value).map(|field| field.name.clone()));
        }
        fields.remove("sys_id");
        fields.into_iter().collect()
    }

    /// The ERROR for a record that somebody has changed in ServiceNow since the cache was brought up to date.
    fn changed_meanwhile(&self, item: &Item) -> ErrorReport {
        error(
            Sql::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "could not serialize access due to concurrent change in ServiceNow",
        )
        .set_detail(format!(
            "Record \"{}\" of table \"{}\" on server \"{}\" is not the version that the cache has.",
            item.id.as_str(),
            self.mirror.table,
            self.connection.server()
        ))
        .set_hint("Try the transaction again when the change has arrived; servicenow.sync() fetches it.")
    }
}
