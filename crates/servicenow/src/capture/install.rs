//! What a subscription needs in the instance: rules, and for a queue its table. Made, looked at, and taken away.
//!
//! Everything is found by the subscription's name, so that it can be made by hand too, by whoever has the rights; and
//! what was made from here by its `sys_id` as well, whatever it was renamed to. Whatever is there and right stays as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tokio::time::sleep;

use super::{PREFIX, Subscription, SubscriptionId, is_scoped, queue, script};
use crate::client::Client;
use crate::client::retry::Effect;
use crate::client::table_api::{Identity, List};
use crate::client::transport::Transport;
use crate::error::{Error, Refusal, Result, Words};
use crate::page::{Layout, Rows};
use crate::query::{Op, Query, Term, ids_term};
use crate::value::{SysId, TableName};

/// Where rules are kept.
const RULES: &str = "sys_script";
/// Where tables are kept.
const TABLES: &str = "sys_db_object";
/// Where columns are kept.
const COLUMNS: &str = "sys_dictionary";
/// What makes a rule ours, besides its script: field and value.
const RULE: &[(&str, &str)] = &[
    ("active", "true"),
    ("advanced", "true"),
    ("action_insert", "true"),
    ("action_update", "true"),
    ("action_delete", "true"),
    ("condition", ""),
    ("filter_condition", ""),
];
/// How often rules are looked for by their ids in one call, which makes the address long.
const IDS_AT_A_TIME: usize = 100;
/// A rule runs after those that users make, so that it tells of what they have made of the record.
const ORDER: &str = "10000";
/// Deletions in a queue are not worth an entry in the instance's audit.
const QUEUE_ATTRIBUTES: &str = "no_audit_delete=true";
/// Rules read at a time: one per table.
const MOST: u32 = 10_000;
/// A table is there some time after it was made.
const TABLE_PATIENCE: u32 = 20;
/// The pause between two looks whether it is.
const TABLE_PAUSE: Duration = Duration::from_millis(500);

/// What could not be done in the instance, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("could not {step}: {error}")]
pub struct Failure {
    /// What, as an infinitive.
    pub step: String,
    /// Why.
    pub error: Error,
}

impl Failure {
    fn at(step: impl Into<String>) -> impl FnOnce(Error) -> Self {
        let step = step.into();
        move |error| Self { step, error }
    }

    /// Whether rights are missing, which somebody else may have.
    pub fn is_about_rights(&self) -> bool {
        matches!(
            self.error,
            Error::Refused { refusal: Refusal::Acl | Refusal::QueryAcl | Refusal::Aborted, .. }
                | Error::NoTable(_)
        )
    }
}

/// The outcome of a step.
type Outcome<T> = std::result::Result<T, Failure>;

/// How the rules of a subscription differ from what they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The caller sees no rules and there may be some: nothing is known.
    pub is_blind: bool,
    /// Tables without a rule.
    pub missing: Vec<TableName>,
    /// Rules that somebody has changed: the rule, its table, and which field.
    pub altered: Vec<(SysId, TableName, String)>,
    /// Rules on tables that are not of interest, or more than one on a table.
    pub surplus: Vec<SysId>,
}

impl<T: Transport> Client<T> {
    /// The queue of a subscription, if there is one and the caller may read it.
    pub async fn find_queue(&self, id: &SubscriptionId) -> Result<Option<TableName>> {
        let label = those("label", &id.name());
        let named = match self.entries(TABLES, &label, &["name"]).await {
            Ok(rows) => (!rows.is_empty()).then(|| TableName::new(rows.get(0, "name"))).transpose()?,
            Err(Error::Refused { .. } | Error::NoTable(_)) => None,
            Err(e) => return Err(e),
        };
        let name = named.map_or_else(|| TableName::new(id.queue_name()), Ok)?;
        match self.read_queue(&name, 1).await {
            Ok(_) => Ok(Some(name)),
            Err(Error::NoTable(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the queue of a subscription, or what is missing of it; gives back what the instance calls it.
    pub async fn make_queue(&self, id: &SubscriptionId) -> Outcome<TableName> {
        let label = those("label", &id.name());
        let found =
            self.entries(TABLES, &label, &["name"]).await.map_err(Failure::at("look for the queue table"))?;
        let name = match found.is_empty() {
            false => found.get(0, "name").to_owned(),
            true => {
                let table = json!({
                    "name": id.queue_name(), "label": id.name(), "access": "public", "ws_access": "true",
                    "create_access": "true", "is_extendable": "false",
                    "create_access_controls": "false", "create_module": "false", "create_mobile_module": "false",
                });
                let step = "create the queue table";
                let made = self.make(TABLES, id.sys_id_of("queue"), &table, &["name"]).await;
                made.map_err(Failure::at(step))?.get(0, "name").to_owned()
            }
        };
        let name = TableName::new(name).map_err(|e| Failure::at("create the queue table")(e.into()))?;
        self.make_columns(id, &name).await?;
        Ok(name)
    }

    /// Makes the columns that a queue lacks, as far as the caller may see which ones it has: whoever was interrupted has
    /// left some out, and what is written to a column that is not there is lost without a word.
    pub async fn complete_queue(&self, id: &SubscriptionId, queue: &TableName) -> Outcome<()> {
        let step = format!("read the columns of table \"{queue}\"");
        match self.missing_columns(queue).await.map_err(Failure::at(step))? {
            Some(missing) if !missing.is_empty() => self.make_columns(id, queue).await,
            _ => Ok(()),
        }
    }

    /// The columns that a queue lacks; `None` if the caller may not see which ones it has.
    pub async fn missing_columns(&self, queue: &TableName) -> Result<Option<Vec<&'static str>>> {
        let there = match self.entries(COLUMNS, &those("name", queue.as_str()), &["element"]).await {
            // A table has itself for an entry, if nothing else.
            Ok(there) if there.is_empty() => return Ok(None),
            Ok(there) => there,
            Err(Error::Refused { .. } | Error::NoTable(_)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let has = |name: &str| (0..there.len()).any(|row| there.get(row, "element") == name);
        Ok(Some(queue::COLUMNS.iter().map(|(name, ..)| *name).filter(|name| !has(name)).collect()))
    }

    async fn make_columns(&self, id: &SubscriptionId, queue: &TableName) -> Outcome<()> {
        let step = || format!("create the columns of table \"{queue}\"");
        let there =
            self.entries(COLUMNS, &those("name", queue.as_str()), &["element", "internal_type"]).await;
        let there = there.map_err(Failure::at(step()))?;
        let has = |name: &str| (0..there.len()).any(|row| there.get(row, "element") == name);
        for (name, label, length) in queue::COLUMNS.iter().filter(|(name, ..)| !has(name)) {
            let column = json!({
                "name": queue.as_str(), "element": name, "column_label": label, "internal_type": "string",
                "max_length": length.to_string(), "active": "true",
            });
            let mut attempts = 0;
            loop {
                match self.make(COLUMNS, id.sys_id_of(name), &column, &["element"]).await {
                    // Somebody else may have made it meanwhile.
                    Ok(_) | Err(Error::Refused { refusal: Refusal::Unique, .. }) => break,
                    Err(e @ Error::Refused { refusal: Refusal::Acl, .. }) => {
                        return Err(Failure::at(step())(e));
                    }
                    Err(e) if attempts == TABLE_PATIENCE => return Err(Failure::at(step())(e)),
                    Err(_) => attempts += 1,
                }
                sleep(TABLE_PAUSE).await;
            }
        }
        let collection = (0..there.len()).find(|row| there.get(*row, "internal_type") == "collection");
        if let Some(row) = collection {
            let attributes = json!({ "attributes": QUEUE_ATTRIBUTES });
            // It works without, and leaves more in the audit.
            let _kept = self.change(COLUMNS, &SysId::new(there.id(row)), &attributes, &["attributes"]).await;
        }
        let mut attempts = 0;
        loop {
            match self.read_queue(queue, 1).await {
                Ok(_) => return Ok(()),
                Err(e) if attempts == TABLE_PATIENCE => return Err(Failure::at(step())(e)),
                Err(_) => attempts += 1,
            }
            sleep(TABLE_PAUSE).await;
        }
    }

    /// How a subscription's rules are, compared with what they should be on these tables.
    pub async fn inspect_rules(
        &self,
        subscription: &Subscription,
        tables: &BTreeSet<TableName>,
    ) -> Result<Inspection> {
        let mut fields: Vec<&str> = RULE.iter().map(|(field, _)| *field).collect();
        fields.extend(["name", "collection", "when", "script"]);
        let name = subscription.id.name();
        let named = match self.list_entries(RULES, &those("name", &name), &fields).await {
            // Rules that may not be seen are counted all the same.
            Ok((rows, total)) if rows.is_empty() && total > 0 => None,
            Ok((rows, _)) => Some(rows),
            Err(Error::Refused { .. } | Error::NoTable(_)) => None,
            Err(e) => return Err(e),
        };
        let Some(named) = named else { return Ok(Inspection { is_blind: true, ..Inspection::default() }) };
        let mut inspection = Inspection::default();
        let mut wanted: BTreeMap<&str, &TableName> =
            tables.iter().map(|table| (table.as_str(), table)).collect();
        let bare = tables
            .iter()
            .filter(|table| !(0..named.len()).any(|row| named.get(row, "collection") == table.as_str()));
        let own = self.rules_of(&subscription.id, bare, &named, &fields).await?;
        let made: HashMap<SysId, &str> =
            tables.iter().map(|table| (rule_id(&subscription.id, table), table.as_str())).collect();
        let each = |rules| (0..Rows::len(rules)).map(move |row| (rules, row));
        let mut rules: Vec<(&Rows, usize)> = std::iter::once(&named).chain(&own).flat_map(each).collect();
        // One that was made from here is its table's, whatever it is called by now; others give way to it.
        rules.sort_by_key(|(rules, row)| !made.contains_key(&SysId::new(rules.id(*row))));
        for (rules, row) in rules {
            let id = SysId::new(rules.id(row));
            let on = made.get(&id).copied().unwrap_or(rules.get(row, "collection"));
            let Some(table) = wanted.remove(on) else {
                inspection.surplus.push(id);
                continue;
            };
            let is = |field: &str, value: &str| match field {
                "filter_condition" => rules.get(row, field).trim_end_matches("^EQ") == value,
                _ => rules.get(row, field) == value,
            };
            let identity = [("name", name.as_str()), ("collection", table.as_str()), ("when", when(table))];
            let differs = RULE.iter().chain(&identity).find(|(field, value)| !is(field, value));
            let differs = differs.map(|(field, _)| *field).or_else(|| {
                let ours = script::rule(subscription, table);
                (!is_same_script(rules.get(row, "script"), &ours)).then_some("script")
            });
            if let Some(field) = differs {
                inspection.altered.push((id, table.clone(), field.to_owned()));
            }
        }
        inspection.missing = wanted.into_values().cloned().collect();
        Ok(inspection)
    }

    /// Of the rules that were made from here for some tables those that do not have the subscription's name any more.
    async fn rules_of<'t>(
        &self,
        id: &SubscriptionId,
        tables: impl Iterator<Item = &'t TableName>,
        named: &Rows,
        fields: &[&str],
    ) -> Result<Vec<Rows>> {
        let known: HashSet<&str> = named.ids().collect();
        let ids: Vec<SysId> =
            tables.map(|table| rule_id(id, table)).filter(|id| !known.contains(id.as_str())).collect();
        let mut found = Vec::new();
        for some in ids.chunks(IDS_AT_A_TIME) {
            found.push(self.entries(RULES, &Query::all().and(ids_term(some)), fields).await?);
        }
        Ok(found)
    }

    /// Makes the rule on a table. One that somebody else has made meanwhile, or renamed, is made what it should be.
    pub async fn make_rule(&self, subscription: &Subscription, table: &TableName) -> Outcome<()> {
        let step = || format!("create the Business Rule on table \"{table}\"");
        let id = rule_id(&subscription.id, table);
        let made = self.make(RULES, id.clone(), &rule(subscription, table), &["active", "script"]).await;
        if let Err(Error::Refused { refusal: Refusal::Unique, .. }) = made {
            return self.mend_rule(subscription, table, &id).await;
        }
        confirm(made.map_err(Failure::at(step()))?, subscription, table).map_err(Failure::at(step()))
    }

    /// Makes a rule what it should be.
    pub async fn mend_rule(&self, subscription: &Subscription, table: &TableName, id: &SysId) -> Outcome<()> {
        let step = || format!("change the Business Rule on table \"{table}\"");
        let mended = self.change(RULES, id, &rule(subscription, table), &["active", "script"]).await;
        confirm(mended.map_err(Failure::at(step()))?, subscription, table).map_err(Failure::at(step()))
    }

    /// Deletes a rule.
    pub async fn remove_rule(&self, id: &SysId) -> Outcome<()> {
        match self.delete(&fixed(RULES), id).await {
            Ok(()) | Err(Error::NoRecord(_)) => Ok(()),
            Err(e) => Err(Failure::at("delete a Business Rule")(e)),
        }
    }

    /// Takes everything away that was made for a subscription; gives back how many rules that were. `tables` are those
    /// that may have a rule under another name.
    pub async fn remove_subscription(
        &self,
        id: &SubscriptionId,
        tables: &BTreeSet<TableName>,
    ) -> Outcome<usize> {
        let step = "look for the Business Rules";
        let name = id.name();
        let (rules, total) = self
            .list_entries(RULES, &those("name", &name), &["collection"])
            .await
            .map_err(Failure::at(step))?;
        if rules.is_empty() && total > 0 {
            return Err(Failure::at("see the Business Rules")(forbidden()));
        }
        let renamed = self.rules_of(id, tables.iter(), &rules, &["collection"]).await;
        let renamed = renamed.map_err(Failure::at(step))?;
        let rules: Vec<&str> = std::iter::once(&rules).chain(&renamed).flat_map(Rows::ids).collect();
        for rule in &rules {
            self.remove_rule(&SysId::new(*rule)).await?;
        }
        let tables = match self.entries(TABLES, &those("label", &name), &["name"]).await {
            Ok(tables) => tables,
            Err(Error::NoTable(_)) => return Ok(rules.len()),
            Err(e) => return Err(Failure::at("look for the queue table")(e)),
        };
        for table in tables.ids() {
            match self.delete(&fixed(TABLES), &SysId::new(table)).await {
                Ok(()) | Err(Error::NoRecord(_)) => {}
                Err(e) => return Err(Failure::at("delete the queue table")(e)),
            }
        }
        Ok(rules.len())
    }

    /// The names under which others have rules in the instance, as far as the caller may see them: of other databases, or
    /// left over from what is gone.
    pub async fn other_subscriptions(&self, id: &SubscriptionId) -> Result<BTreeSet<String>> {
        let bound = |op, end: &str| Term::new("name", op, &format!("{PREFIX} {end}"));
        let (Ok(from), Ok(to)) = (bound(Op::Ge, "0"), bound(Op::Lt, "g")) else { return Ok(BTreeSet::new()) };
        let query = Query::all().and(from).and(to).order_by("sys_id");
        let rows = match self.entries(RULES, &query, &["name"]).await {
            Err(Error::Refused { .. } | Error::NoTable(_)) => return Ok(BTreeSet::new()),
            rows => rows?,
        };
        let is_other = |name: &str| {
            let digits = name.strip_prefix(PREFIX).map(str::trim_start).and_then(SubscriptionId::parse);
            digits.is_some_and(|other| other != *id)
        };
        let names = (0..rows.len()).map(|row| rows.get(row, "name"));
        Ok(names.filter(|name| is_other(name)).map(str::to_owned).collect())
    }

    /// The first of the tables in which capture is installed that the caller may not read.
    pub async fn hidden_from_installer(&self) -> Result<Option<&'static str>> {
        for table in [RULES, TABLES] {
            let query = Query::all().order_by("sys_id");
            let layout = Arc::new(Layout::of_text(&["sys_id"]));
            let name = fixed(table);
            let list =
                List { table: &name, query: &query, layout: &layout, limit: 1, offset: 0, count: true };
            match self.list(list).await {
                Ok(page) if page.rows.is_empty() && page.total.unwrap_or(0) > 0 => return Ok(Some(table)),
                Ok(_) => {}
                Err(Error::Refused { .. } | Error::NoTable(_)) => return Ok(Some(table)),
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    async fn entries(&self, table: &str, query: &Query, fields: &[&str]) -> Result<Rows> {
        self.list_entries(table, query, fields).await.map(|(rows, _)| rows)
    }

    async fn list_entries(&self, table: &str, query: &Query, fields: &[&str]) -> Result<(Rows, u64)> {
        let (table, layout) = (fixed(table), Arc::new(Layout::of_text(fields)));
        let list = List { table: &table, query, layout: &layout, limit: MOST, offset: 0, count: true };
        let page = self.list(list).await?;
        let total = page.total.unwrap_or(page.rows.len() as u64);
        Ok((page.rows, total))
    }

    async fn make(&self, table: &str, id: SysId, fields: &Json, answer: &[&str]) -> Result<Rows> {
        let layout = Arc::new(Layout::of_text(answer));
        self.insert(&fixed(table), &Identity::Fresh(id), &object(fields), &layout).await
    }

    async fn change(&self, table: &str, id: &SysId, fields: &Json, answer: &[&str]) -> Result<Rows> {
        let layout = Arc::new(Layout::of_text(answer));
        self.update(&fixed(table), id, &object(fields), &layout, Effect::Idempotent).await
    }
}

/// The `sys_id` of the rule on a table, where it was made from here.
fn rule_id(id: &SubscriptionId, table: &TableName) -> SysId {
    id.sys_id_of(&format!("rule {table}"))
}

/// When the rule on a table runs: in the change's transaction, if it may.
pub fn when(table: &TableName) -> &'static str {
    if is_scoped(table) { "async" } else { "after" }
}

/// The fields of the rule on a table.
fn rule(subscription: &Subscription, table: &TableName) -> Json {
    let mut rule = json!({
        "name": subscription.id.name(), "collection": table.as_str(), "order": ORDER, "sys_scope": "global",
        "when": when(table), "script": script::rule(subscription, table),
        "description": "Tells a Postgres database of changes. Made by servicenow.install_capture().",
    });
    for (field, value) in RULE {
        rule[field] = (*value).into();
    }
    rule
}

/// The instance drops what the caller may not write without a word.
fn confirm(stored: Rows, subscription: &Subscription, table: &TableName) -> Result<()> {
    let script = script::rule(subscription, table);
    if stored.len() == 1
        && stored.get(0, "active") == "true"
        && is_same_script(stored.get(0, "script"), &script)
    {
        return Ok(());
    }
    Err(forbidden())
}

/// What the instance does not say.
fn forbidden() -> Error {
    let message = "The record is not as it was sent, or not visible to this user".to_owned();
    Error::Refused { refusal: Refusal::Acl, words: Words { message, detail: None } }
}

/// Editors change how lines end.
fn is_same_script(one: &str, other: &str) -> bool {
    one.trim().lines().map(str::trim_end).eq(other.trim().lines().map(str::trim_end))
}

/// Entries whose field is one of our names.
fn those(field: &str, name: &str) -> Query {
    let term = Term::new(field, Op::Eq, name).expect("names can be expressed");
    Query::all().and(term).order_by("sys_id")
}

fn fixed(table: &str) -> TableName {
    TableName::new(table).expect("a valid name")
}

fn object(fields: &Json) -> Map<String, Json> {
    fields.as_object().cloned().unwrap_or_default()
}
