//! What a table consists of: fields, their types, choices and references.
//!
//! Two ways lead there. [`records`] reads `sys_db_object`, `sys_dictionary` and `sys_choice`, which need
//! rights; an instance hides them by answering with no rows, with 403, or with rows that lack their fields.
//! [`ui`] reads the endpoints the platform's own forms use, which every user may call for what they may see.
//! [`fetch`] takes the first where it works and the second where it does not.

mod choice;
mod field_type;
mod records;
mod ui;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::error::{Error, Result};
use crate::page::{Layout, Rows};
use crate::query::Query;
use crate::sync::range::Range;
use crate::sync::sweep::{Progress, Seen, Sweep};
use crate::value::{SysId, TableName};

pub use choice::Resolution;
pub use field_type::{FieldType, field_type};

/// Rows of metadata asked for at a time.
const PAGE: u32 = 1_000;

/// A table as its dictionary describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDef {
    /// Its name.
    pub name: TableName,
    /// What people call it.
    pub label: String,
    /// The table and those it extends, itself first; the table alone if the others may not be seen.
    pub chain: Vec<TableName>,
    /// Its fields, inherited ones included: those of the topmost table first, each table's by name.
    pub fields: Vec<FieldDef>,
}

impl TableDef {
    /// A field by name.
    pub fn field(&self, name: &str) -> Option<&FieldDef> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// A field of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldDef {
    /// Its name (`element` of the dictionary).
    pub name: String,
    /// What people call it.
    pub label: String,
    /// The dictionary's type name, such as `glide_date_time`.
    pub internal_type: String,
    /// The longest value in characters, as advice: the platform stores more than it says.
    pub max_length: Option<u32>,
    /// What a reference refers to.
    pub reference: Option<Reference>,
    /// Whether the dictionary wants a value; web services do not enforce it.
    pub mandatory: bool,
    /// Whether forms show it read-only.
    pub read_only: bool,
    /// Whether it is computed and therefore cannot be written.
    pub computed: bool,
    /// Whether the interface cannot write it either: only forms may, or nobody.
    #[serde(default)]
    pub locked: bool,
    /// Whether values come from a list of choices.
    pub choice: ChoiceRule,
    /// The choices, those of the nearest table that has any for the field.
    pub choices: Vec<Choice>,
    /// The field whose value says which choices apply.
    pub dependent_on: Option<String>,
    /// The value a new record gets, verbatim; may be a script.
    pub default_value: String,
}

impl FieldDef {
    /// Whether it refers to several records at once.
    pub fn is_list(&self) -> bool {
        self.internal_type == "glide_list"
    }
}

/// What a reference field refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// The table.
    pub table: TableName,
    /// The field of that table whose value is shown for a record, if it could be found out.
    pub display_field: Option<String>,
}

/// How binding a field's list of choices is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChoiceRule {
    /// There is no list.
    #[default]
    None,
    /// Values must come from the list.
    Strict,
    /// The list suggests; any value may be stored.
    Suggestion,
}

/// One choice of a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The stored value.
    pub value: String,
    /// What people see.
    pub label: String,
    /// The language of the label; empty if unknown.
    pub language: String,
    /// Whether it is no longer offered.
    pub inactive: bool,
    /// The value of [`FieldDef::dependent_on`] it belongs to; empty if it belongs to all.
    pub dependent_value: String,
}

/// A table in a list of tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSummary {
    /// Its name.
    pub name: TableName,
    /// What people call it.
    pub label: String,
}

/// Describes tables, in the order asked for. A table that is not there or may not be seen fails by itself
/// ([`Error::NoTable`], [`Error::Refused`]); a failure that concerns all of them fails the call.
pub async fn fetch<T: Transport>(
    client: &Client<T>,
    tables: &[TableName],
) -> Result<Vec<(TableName, Result<TableDef>)>> {
    let mut described = match records::fetch(client, tables).await {
        Ok(found) => found,
        Err(e) if is_hidden(&e) => HashMap::new(),
        Err(e) => return Err(e),
    };
    let mut all = Vec::with_capacity(tables.len());
    for table in tables {
        let def = match described.remove(table) {
            Some(def) => Ok(def),
            None => describe_hidden(client, table).await,
        };
        all.push((table.clone(), def));
    }
    Ok(all)
}

/// Describes a table whose dictionary may not be read, or says why it cannot be described.
async fn describe_hidden<T: Transport>(client: &Client<T>, table: &TableName) -> Result<TableDef> {
    match ui::fetch(client, table).await {
        Ok(def) if !def.fields.is_empty() => Ok(def),
        answer => {
            // The forms' endpoint does not say whether the table is there; a list of it does.
            let layout = std::sync::Arc::new(Layout::of_text(&[]));
            let query = Query::all();
            let list = List { table, query: &query, layout: &layout, limit: 1, offset: 0, count: false };
            client.list(list).await?;
            match answer {
                Err(e) if !is_hidden(&e) => Err(e),
                _ => Err(Error::Refused {
                    refusal: crate::error::Refusal::Acl,
                    words: crate::error::Words {
                        message: format!("dictionary of table \"{table}\" may not be read"),
                        detail: None,
                    },
                }),
            }
        }
    }
}

/// The tables that each of these extends, itself first, as far as the caller may see.
pub(crate) async fn chains<T: Transport>(
    client: &Client<T>,
    tables: &[TableName],
) -> Result<HashMap<TableName, Vec<TableName>>> {
    match records::chains(client, tables).await {
        Err(e) if is_hidden(&e) => Ok(HashMap::new()),
        found => found,
    }
}

/// Every table the caller can see.
pub async fn list_tables<T: Transport>(client: &Client<T>) -> Result<Vec<TableSummary>> {
    let mut tables = match records::list_tables(client).await {
        Ok(tables) if !tables.is_empty() => tables,
        Ok(_) => ui::list_tables(client).await?,
        Err(e) if is_hidden(&e) => ui::list_tables(client).await?,
        Err(e) => return Err(e),
    };
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    tables.dedup_by(|a, b| a.name == b.name);
    Ok(tables)
}

/// Whether an error says that something may not be seen, rather than that the instance is in trouble.
fn is_hidden(error: &Error) -> bool {
    matches!(error, Error::Refused { .. } | Error::NoTable(_) | Error::NoRecord(_) | Error::Rejected { .. })
}

/// The most that is read of a table here, in bytes; a large instance's dictionary of one table takes a few of them.
const MEMORY_LIMIT: usize = 256 << 20;

/// Reads every record of a table that matches.
async fn read_all<T: Transport>(
    client: &Client<T>,
    table: &str,
    query: Query,
    fields: &[&str],
) -> Result<Vec<Rows>> {
    let table = TableName::new(table)?;
    let layout = std::sync::Arc::new(Layout::of_text(fields));
    let mut sweep = Sweep::new(Range::default(), None);
    let (mut pages, page_size) = (Vec::<Rows>::new(), PageSize::new(PAGE));
    let mut size = 0;
    loop {
        let (query, offset) = sweep.page(&query)?;
        let (page, limit) = shrinking(&page_size, |limit| {
            let (table, query, layout, count) = (&table, &query, &layout, sweep.wants_count(limit));
            client.list(List { table, query, layout, limit, offset, count })
        })
        .await?;
        let last = page.rows.ids().last().map(SysId::new);
        size += page.rows.size();
        if size > MEMORY_LIMIT {
            return Err(Error::TooLarge { limit: MEMORY_LIMIT });
        }
        if last.is_some()
            && offset == 0
            && last.as_ref().map(SysId::as_str) == pages.last().and_then(|rows| rows.ids().last())
        {
            return Err(Error::Unreadable("the same records come over and over".to_owned()));
        }
        let seen = Seen { rows: page.rows.len(), last, total: page.total };
        pages.push(page.rows);
        if sweep.advance(&seen, limit) == Progress::Done {
            return Ok(pages);
        }
    }
}
