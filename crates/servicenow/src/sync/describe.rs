//! What a mirror has to know of its table before it reads it.

use std::collections::HashMap;

use super::Stop;
use super::mirror::{Mirror, Spec};
use super::store::{Step, Store};
use crate::client::transport::Transport;
use crate::dictionary::{self, FieldDef, TableDef};
use crate::error::{Error, Words};
use crate::value::TableName;

/// What a mirror has to know of its table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    /// Changes can be found by `sys_updated_on`. Without it a query on it would match every record, because the
    /// instance drops conditions on fields it does not know.
    pub(super) has_updated_on: bool,
    /// Records that came just now can be told from the others.
    pub(super) has_created_on: bool,
}

/// What a poll of a table can go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trace {
    /// When a record was changed.
    Changes,
    /// When it was added: records of journals and audits are never changed.
    Arrivals,
}

impl Trace {
    /// The field that says it.
    pub(super) fn field(self) -> &'static str {
        match self {
            Trace::Changes => "sys_updated_on",
            Trace::Arrivals => "sys_created_on",
        }
    }
}

impl Traits {
    /// Makes sure that the table has every field that columns and conditions name, as far as the table itself
    /// tells: of a dot-walk the first. Fields of columns that were there once may be gone.
    pub(super) fn of(def: &TableDef, spec: &Spec) -> Result<Self, Error> {
        for path in spec.paths() {
            let field = path.split('.').next().unwrap_or(path);
            if !spec.may_lack(field) {
                field_of(def, field)?;
            }
        }
        let has = |field| def.field(field).is_some();
        Ok(Self { has_updated_on: has("sys_updated_on"), has_created_on: has("sys_created_on") })
    }

    /// What a poll goes by; `None` if nothing tells what is new.
    pub(super) fn trace(self) -> Option<Trace> {
        match (self.has_updated_on, self.has_created_on) {
            (true, _) => Some(Trace::Changes),
            (false, true) => Some(Trace::Arrivals),
            (false, false) => None,
        }
    }
}

fn field_of<'d>(def: &'d TableDef, field: &str) -> Result<&'d FieldDef, Error> {
    def.field(field).ok_or_else(|| Error::NoField { table: def.name.to_string(), field: field.to_owned() })
}

impl<T: Transport, S: Store> Mirror<T, S> {
    /// Reads the table's description and makes sure that every field asked for exists: the instance would
    /// leave an unknown one out of its answers, and drop a condition on it, without a word.
    pub(super) async fn describe(&self) -> Result<Traits, Stop> {
        let mut described = dictionary::fetch(&self.client, std::slice::from_ref(&self.spec.table)).await?;
        let def = described.pop().map(|(_, def)| def).unwrap_or(Err(Error::NoTable(Words::default())))?;
        let traits = Traits::of(&def, &self.spec)?;
        let lost = self.check_dot_walks(&def).await?;
        self.apply(Step::Described { def: Box::new(def), lost }).await?;
        Ok(traits)
    }

    /// Follows every dot-walk through the dictionary, a step at a time. Gives back those that were there once and lead
    /// nowhere any more.
    async fn check_dot_walks(&self, def: &TableDef) -> Result<Vec<String>, Stop> {
        let is_gone = |path: &&str| {
            let field = path.split('.').next().unwrap_or(path);
            def.field(field).is_none() && self.spec.may_lack(field)
        };
        let walks = self.spec.paths().filter(|path| path.contains('.') && !is_gone(path));
        let mut walks: Vec<(&str, TableDef, Vec<&str>)> =
            walks.map(|path| (path, def.clone(), path.split('.').rev().collect())).collect();
        let mut known: HashMap<TableName, TableDef> = HashMap::new();
        let mut lost = Vec::new();
        while !walks.is_empty() {
            let mut next = Vec::new();
            for (path, def, mut steps) in walks {
                match step(&def, &mut steps) {
                    Ok(None) => {}
                    Ok(Some(table)) => next.push((path, table, steps)),
                    Err(_) if self.spec.may_lack_walk(path) => lost.push(path.to_owned()),
                    Err(e) => return Err(e.into()),
                }
            }
            let unknown: Vec<TableName> =
                next.iter().map(|(_, table, _)| table.clone()).filter(|t| !known.contains_key(t)).collect();
            for (table, def) in dictionary::fetch(&self.client, &unknown).await? {
                known.insert(table, def?);
            }
            let step = |(path, table, steps)| Some((path, known.get(&table)?.clone(), steps));
            walks = next.into_iter().filter_map(step).collect();
        }
        lost.sort();
        lost.dedup();
        Ok(lost)
    }
}

/// Takes the next step of a dot-walk, the last of these; gives back the table it leads to, or nothing at its end.
fn step(def: &TableDef, steps: &mut Vec<&str>) -> Result<Option<TableName>, Error> {
    let Some(step) = steps.pop() else { return Ok(None) };
    let field = field_of(def, step)?;
    match &field.reference {
        _ if steps.is_empty() => Ok(None),
        Some(reference) => Ok(Some(reference.table.clone())),
        None => {
            let rest = steps.iter().rev();
            let field = rest.fold(step.to_owned(), |path, step| format!("{path}.{step}"));
            Err(Error::NoField { table: def.name.to_string(), field })
        }
    }
}
