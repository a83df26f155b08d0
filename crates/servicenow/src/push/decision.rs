//! What has to be done to a record for it to be as before the transaction that is undone.
//!
//! A transaction may have written to a record several times ([`Chain`]). What it has made of the record is undone in one
//! step: made records are deleted, changed ones get back the first before image of every field, deleted ones are made
//! again. No state in between can then be left over by a crash, and starting over needs no memory of its own:
//!
//! - If the record is as before already, nothing is done. So it is if the writes never happened, if an earlier attempt
//!   has undone them, or if somebody else has.
//! - If it is exactly as the transaction left it (`landed`), it is undone.
//! - In every other case somebody else may have changed it, and it is left as it is. Doubt counts as that.
//!
//! "As left" is told by the version of the last answer; `sys_mod_count` has to be known, for the clock of
//! `sys_updated_on` ticks in seconds. A write whose outcome is unknown has happened if the record shows what it would:
//!
//! - a record of a fresh `sys_id` that has never been changed (that there is none says nothing where an instance may have
//!   made it under another one), or
//! - one change more than before it, every value that was sent, and one of them at least is new, or
//! - no record where one was to be deleted. That somebody else has deleted it in the same moment cannot be told.
//!
//! It has not if the record is in the version before it; but as long as its call may be alive it still can, and the record has
//! to be looked at again ([`Calls`]). A write whose outcome is unknown is nearly always the last one
//! to its record; where it is not, nothing is sure. An update whose answer is more than one change away from the version
//! before it has overwritten a change that its before image does not know of: what was there is not known then either.
//!
//! What shows may be another transaction's write that is like it: whoever retries what has failed sends the same. Where that
//! is known ([`is_presumed`], [`Others`](super::undo::Others)) it is not undone.
//!
//! What leaves no trace in a record's version is not seen: changes made without stamping it, changes that a deletion with
//! an older before image has taken along, and a record that somebody has replaced by another one of the same `sys_id` and
//! the same number of changes.

use std::collections::HashMap;
use std::fmt;

use super::intent::{Fields, Images, Op, OpenWrite};
use crate::error::Words;
use crate::page::Version;
use crate::value::{SysId, TableName};

/// Fields that the instance keeps by itself. They do not come back with a record that is made again.
const KEPT_BY_INSTANCE: [&str; 6] =
    ["sys_id", "sys_created_by", "sys_created_on", "sys_updated_by", "sys_updated_on", "sys_mod_count"];
/// Those of them that a record is made again with nevertheless: an instance may take them over. The others say that
/// the record has just changed, and whoever follows changes has to see that it did.
const MAKER: [&str; 2] = ["sys_created_by", "sys_created_on"];

/// What one transaction has written to one record, in the order of writing.
#[derive(Clone, Debug)]
pub struct Chain<'a> {
    writes: Vec<&'a OpenWrite>,
    /// Among all writes of the transaction, the one that made or deleted the record, or else the last one.
    pivot: usize,
}

/// A record as the instance shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its version.
    pub version: Version,
    /// Its values; fields that may not be seen are missing.
    pub fields: Fields,
}

/// What is to be done to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is as before the transaction, or as good as that.
    Nothing,
    /// Give it these values.
    Restore(Fields),
    /// Delete it.
    Remove,
    /// Make it again.
    Create {
        /// Its class, which may be a child of the table that was written to.
        table: TableName,
        /// Its values, without its `sys_id`.
        fields: Fields,
        /// Who made it and when, which the instance may take over or not.
        maker: Fields,
    },
    /// Leave it as it is.
    Leave(Why),
    /// Look at it again when calls without an answer are over.
    Wait,
}

/// Whether the instance may still carry out writes that got no answer: it does not notice that a caller has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// It may.
    MayArrive,
    /// It has done so by now, or never will.
    AreOver,
}

/// A decision about a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is to be done.
    pub action: Action,
    /// What of the transaction stays although it is done.
    pub stays: Option<Why>,
}

/// Why a record is not as before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Somebody else has changed it.
    Changed,
    /// It is gone, or may not be seen any more.
    Gone,
    /// What became of a write is not known, and the record does not show it.
    Unclear,
    /// What became of the attempt to make it is not known: the instance may have made it under another key.
    MaybeMade,
    /// Nothing is known of the record before the transaction.
    NoImage,
    /// It is, but for these fields: a journal keeps its entries, and an instance may not take a value back.
    Partly(Vec<String>),
    /// It has been made again without the fields that only its class has.
    OtherClass(TableName),
    /// It has been made again, but under another key, which the instance has chosen.
    OtherKey(SysId),
    /// The instance refuses it, in its own words.
    Refused(Words),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Changed => f.write_str("somebody else has changed the record"),
            Why::Gone => f.write_str("the record is gone or may not be seen"),
            Why::Unclear => f.write_str("it is not known whether the record is as the transaction left it"),
            Why::MaybeMade => f.write_str("it is not known whether the record was made, and under which key"),
            Why::OtherKey(id) => write!(f, "the record was made again under the key \"{}\"", id.as_str()),
            Why::NoImage => f.write_str("the former values of the record are not known"),
            Why::Partly(fields) => {
                let names: Vec<_> = fields.iter().map(|field| format!("\"{field}\"")).collect();
                write!(f, "these fields could not be restored: {}", names.join(", "))
            }
            Why::OtherClass(class) => {
                write!(f, "the record was made again without the fields that only table \"{class}\" has")
            }
            Why::Refused(words) => words.fmt(f),
        }
    }
}

/// The records that a transaction has written to, in the order of undoing: the last one first. What was made is
/// deleted after what was made later and may refer to it, and the other way round.
pub fn chains(writes: &[OpenWrite]) -> Vec<Chain<'_>> {
    let mut of: HashMap<(&TableName, &SysId), Chain<'_>> = HashMap::new();
    for (at, write) in writes.iter().enumerate() {
        let key = (&write.intent.table, &write.intent.sys_id);
        let chain = of.entry(key).or_insert_with(|| Chain { writes: Vec::new(), pivot: at });
        if write.intent.op != Op::Update || chain.only_updates() {
            chain.pivot = at;
        }
        chain.writes.push(write);
    }
    let mut chains: Vec<_> = of.into_values().collect();
    chains.sort_unstable_by_key(|chain| std::cmp::Reverse(chain.pivot));
    chains
}

impl Chain<'_> {
    /// The table the writes went to.
    pub fn table(&self) -> &TableName {
        &self.writes[0].intent.table
    }

    /// The record.
    pub fn sys_id(&self) -> &SysId {
        &self.writes[0].intent.sys_id
    }

    /// Whether it is a single write.
    pub fn is_single(&self) -> bool {
        self.writes.len() == 1
    }

    /// Whether the record was neither made nor deleted.
    pub fn only_updates(&self) -> bool {
        self.writes.iter().all(|write| write.intent.op == Op::Update)
    }

    /// The fields that a decision has to see.
    pub fn fields(&self) -> Vec<&str> {
        let images = self.writes.iter().filter_map(|write| write.intent.undo.as_ref());
        let mut fields: Vec<&str> =
            images.flat_map(|images| images.before.keys()).map(String::as_str).collect();
        fields.sort_unstable();
        fields.dedup();
        fields
    }

    /// The writes with their images, if every one has some.
    fn steps(&self) -> Option<Vec<Step<'_>>> {
        let steps = self.writes.iter().map(|write| {
            let images = write.intent.undo.as_ref()?;
            Some(Step { op: write.intent.op, images, answered: write.answered })
        });
        steps.collect()
    }
}

/// A write as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Step<'a> {
    op: Op,
    images: &'a Images,
    answered: Option<Version>,
}

impl Step<'_> {
    /// Whether it may have made a record that is not found.
    fn may_be_elsewhere(&self) -> bool {
        matches!(self.op, Op::Insert { is_findable: false, .. }) && self.answered.is_none()
    }
}

/// Decides what is to be done to a record that shows itself like this; `None` if there is none.
pub fn decide(chain: &Chain<'_>, now: Option<&Seen>, calls: Calls) -> Decision {
    let Some(steps) = chain.steps() else {
        return Decision { action: Action::Leave(Why::NoImage), stays: None };
    };
    let was_there = !matches!(steps[0].op, Op::Insert { .. });
    let landed = landed(&steps, now);
    let is_in_doubt = steps.iter().any(|step| step.answered.is_none());
    let has_all_happened = landed.as_ref().is_ok_and(|landed| landed.len() == steps.len());
    if calls == Calls::MayArrive && is_in_doubt && !has_all_happened {
        return Decision { action: Action::Wait, stays: None };
    }
    // Where it is not known what has happened, it is as before only if it is so in every respect.
    let counted = landed.as_ref().map_or(&steps[..], |landed| landed);
    let before = was_there.then(|| before(counted));
    let stays = if was_there { stays(chain, counted, now) } else { None };
    let action = match (&before, now) {
        (None, None) if steps.iter().any(Step::may_be_elsewhere) => Action::Leave(Why::MaybeMade),
        (None, None) => Action::Nothing,
        (Some(before), Some(seen)) if differing(before, seen).next().is_none() => Action::Nothing,
        _ => match (landed, before, now) {
            (Err(why), ..) => Action::Leave(why),
            (Ok(_), None, _) => Action::Remove,
            (Ok(_), Some(before), Some(seen)) => Action::Restore(
                differing(&before, seen).map(|(field, v)| (field.clone(), v.clone())).collect(),
            ),
            (Ok(landed), Some(before), None) => create(chain, landed, before),
        },
    };
    Decision { action, stays }
}

/// Whether a decision about a record takes a write without an answer for carried out because the record shows what it would.
/// So it does when somebody else has written the same. A record of a fresh key can only come from its own write.
pub fn is_presumed(chain: &Chain<'_>, now: Option<&Seen>) -> bool {
    let Some(steps) = chain.steps() else { return false };
    let is_open = |step: &Step<'_>| step.answered.is_none() && !matches!(step.op, Op::Insert { .. });
    steps.last().is_some_and(is_open) && landed(&steps, now).is_ok_and(|landed| landed.len() == steps.len())
}

/// Of these values, those the record does not have.
pub(super) fn differing<'f>(
    fields: &'f Fields,
    seen: &Seen,
) -> impl Iterator<Item = (&'f String, &'f String)> {
    fields.iter().filter(|(field, value)| seen.fields.get(*field) != Some(value))
}

/// The writes that have been carried out, if the record is as they left it.
fn landed<'s, 'a>(steps: &'s [Step<'a>], now: Option<&Seen>) -> Result<&'s [Step<'a>], Why> {
    let (at, unknown) = walk(steps)?;
    let is_as_answered = match (at, now) {
        (None, None) => true,
        (Some(at), Some(seen)) => at == seen.version && at.mod_count.is_some(),
        _ => false,
    };
    if is_as_answered {
        return Ok(&steps[..steps.len() - usize::from(unknown.is_some())]);
    }
    let has_happened = unknown.is_some_and(|step| match (step.op, at, now) {
        (Op::Insert { is_fresh, .. }, None, Some(seen)) => is_fresh && seen.version.mod_count == Some(0),
        (Op::Update, Some(at), Some(seen)) => {
            changes_between(at, seen.version) == Some(1) && shows(step.images, seen)
        }
        (Op::Delete, Some(_), None) => true,
        _ => false,
    });
    match (at, now) {
        _ if has_happened => Ok(steps),
        (Some(_), None) => Err(Why::Gone),
        _ if unknown.is_some() => Err(Why::Unclear),
        (Some(at), Some(seen)) if changes_between(at, seen.version).is_none() => Err(Why::Unclear),
        _ => Err(Why::Changed),
    }
}

/// The version in which the answered writes left the record, none if it was not there; and the last write if it has no
/// answer. Fails if somebody else's change came between them, or it cannot be told.
fn walk<'a>(steps: &[Step<'a>]) -> Result<(Option<Version>, Option<Step<'a>>), Why> {
    let mut at = match steps[0].op {
        Op::Insert { .. } => None,
        Op::Update | Op::Delete => Some(steps[0].images.version),
    };
    // After a savepoint was rolled back, an image may be of a version before that.
    let mut ours: Vec<Version> = at.into_iter().collect();
    for (n, &step) in steps.iter().enumerate() {
        if !matches!(step.op, Op::Insert { .. }) && !ours.contains(&step.images.version) {
            return Err(Why::Changed);
        }
        let Some(version) = step.answered else {
            return if n + 1 == steps.len() { Ok((at, Some(step))) } else { Err(Why::Unclear) };
        };
        at = match (step.op, at) {
            (Op::Insert { .. }, None) => Some(version),
            (Op::Delete, Some(_)) => None,
            (Op::Update, Some(at)) => match changes_between(at, version) {
                Some(0) => Some(version),
                Some(1) if changes_anything(step.images) => Some(version),
                Some(_) => return Err(Why::Changed),
                None => return Err(Why::Unclear),
            },
            _ => return Err(Why::Changed),
        };
        ours.extend(at);
    }
    Ok((at, None))
}

/// How often a record was changed between two of its versions.
fn changes_between(from: Version, to: Version) -> Option<i64> {
    to.mod_count?.checked_sub(from.mod_count?)
}

/// Whether an update sends anything but what was there before.
fn changes_anything(images: &Images) -> bool {
    images.after.iter().any(|(field, new)| images.before.get(field) != Some(new))
}

/// Whether a record has all values that an update sent, and one of them at least is new. Journals show nothing.
fn shows(images: &Images, seen: &Seen) -> bool {
    let mut sent =
        images.before.iter().filter_map(|(field, old)| Some((field, old, images.after.get(field)?)));
    let is_new = sent.clone().any(|(_, old, new)| old != new);
    is_new && sent.all(|(field, _, new)| seen.fields.get(field) == Some(new))
}

/// The values before the writes: of every field the first before image.
fn before(steps: &[Step<'_>]) -> Fields {
    let mut fields = Fields::new();
    for step in steps.iter().rev() {
        let kept = |field: &str| step.op == Op::Delete && KEPT_BY_INSTANCE.contains(&field);
        let image = step.images.before.iter().filter(|(field, _)| !kept(field));
        fields.extend(image.map(|(field, value)| (field.clone(), value.clone())));
    }
    fields
}

fn create(chain: &Chain<'_>, landed: &[Step<'_>], fields: Fields) -> Action {
    let image = landed.iter().find(|step| step.op == Op::Delete).map(|step| &step.images.before);
    let maker = MAKER.iter().filter_map(|&field| Some((field.to_owned(), image?.get(field)?.clone())));
    Action::Create { table: class_of(chain, &fields), maker: maker.collect(), fields }
}

/// The table a record is of, which may be a child of the one that was written to.
fn class_of(chain: &Chain<'_>, before: &Fields) -> TableName {
    let class = before.get("sys_class_name").and_then(|class| TableName::new(class.as_str()).ok());
    class.unwrap_or_else(|| chain.table().clone())
}

/// What stays of writes whatever is done: the other fields of a record's class, and entries of journals.
fn stays(chain: &Chain<'_>, steps: &[Step<'_>], now: Option<&Seen>) -> Option<Why> {
    let was_deleted = |step: &Step<'_>| step.op == Op::Delete && (step.answered.is_some() || now.is_none());
    let class = class_of(chain, &before(steps));
    if steps.iter().any(was_deleted) && class != *chain.table() {
        return Some(Why::OtherClass(class));
    }
    let restorable = chain.fields();
    let sent = steps.iter().flat_map(|step| step.images.after.keys());
    let mut appended: Vec<String> =
        sent.filter(|field| !restorable.contains(&field.as_str())).cloned().collect();
    appended.sort_unstable();
    appended.dedup();
    (!appended.is_empty()).then_some(Why::Partly(appended))
}

#[cfg(test)]
mod tests;
