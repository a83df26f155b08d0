//! Rows as JSON in the exact shapes of facts §1.4.
//!
//! A [`Plan`] is made once per page and class: key order, choice labels and link prefixes are worked out there, so that
//! a row costs little more than copying its text.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::HashMap;

use super::params::DisplayMode;
use crate::acl::Access;
use crate::calendar;
use crate::display::{self, Profile};
use crate::json;
use crate::query::compile;
use crate::schema::{Column, Kind, TableId, key_order};
use crate::store::{Db, RowId, Val};

/// What a page of rows looks like.
#[derive(Debug, Clone)]
pub(crate) struct Style<'a> {
    /// What values are returned.
    pub(crate) mode: DisplayMode,
    /// References without their link.
    pub(crate) exclude_link: bool,
    /// `H/api/now/table` or with the version asked for (facts §1.4).
    pub(crate) link_base: &'a str,
    /// The reader's date formats and language.
    pub(crate) profile: &'a Profile,
    /// The fields asked for, or all.
    pub(crate) fields: Option<&'a [String]>,
}

#[derive(Debug)]
enum Source {
    Slot(usize),
    Walk(Vec<String>),
}

/// Choice labels by stored value: the value of the dependent column and the label, already escaped.
type Labels = HashMap<Val, Vec<(Val, String)>>;

#[derive(Debug)]
struct Field {
    key: String,
    source: Source,
    column: Arc<Column>,
    labels: Option<Labels>,
    dependent: Option<usize>,
    target: Option<TableId>,
    link: String,
    /// The whole key and value of an empty value, which most values of a wide row are; none for journals, whose
    /// display depends on the row.
    empty: Option<String>,
    /// Display values of references met on this page; none for those that dangle.
    seen: RefCell<HashMap<Val, Option<Val>>>,
}

/// How the rows of one class are printed.
#[derive(Debug)]
pub(crate) struct Plan {
    fields: Vec<Field>,
}

impl Plan {
    /// The plan for rows of `class` read through `table`: the table's columns, or the fields asked for, which may be
    /// the class's own (facts §1.4); fields that the reader may not see are left out.
    pub(crate) fn new(
        db: &Db,
        table: TableId,
        class: TableId,
        access: &Access<'_>,
        style: &Style<'_>,
    ) -> Self {
        let layout = &db.schema.table(class).layout;
        let mut names: Vec<String> = match style.fields {
            Some(fields) => fields.to_vec(),
            None => {
                let seen = &db.schema.table(table).layout;
                seen.order().iter().map(|&s| seen.slots[usize::from(s)].column.element.to_string()).collect()
            }
        };
        if style.fields.is_some() {
            names.sort();
            names.dedup();
            names.retain(|n| compile::resolve(db, class, n).is_some() && readable(db, class, n, access));
            key_order::sort_keys(&mut names, Clone::clone);
        }
        let fields = names
            .iter()
            .filter_map(|name| {
                let (owner, column) = column_at(db, class, name)?;
                if style.fields.is_none() && !access.reads_field(class, name) {
                    return None;
                }
                let source = match layout.slot(name) {
                    Some(slot) => Source::Slot(slot),
                    None => Source::Walk(name.split('.').map(str::to_owned).collect()),
                };
                Some(Field::new(
                    db,
                    owner,
                    name,
                    column,
                    source,
                    layout.slot(column.dependent.as_deref().unwrap_or("")),
                    style,
                ))
            })
            .collect();
        Self { fields }
    }

    /// Appends a row.
    pub(crate) fn render(&self, out: &mut String, db: &Db, row: RowId, style: &Style<'_>) {
        out.push('{');
        let stored = db.row(row);
        for (at, field) in self.fields.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            let value = match &field.source {
                Source::Slot(slot) => stored.get(*slot),
                Source::Walk(steps) => compile::walk(db, row, steps),
            };
            match &field.empty {
                Some(text) if value.is_empty() => out.push_str(text),
                _ => {
                    out.push_str(&field.key);
                    field.render(out, db, row, value, style);
                }
            }
        }
        out.push('}');
    }
}

/// The last column of a dot-walk from a class, and the class that it is read from.
fn column_at<'a>(db: &'a Db, class: TableId, name: &str) -> Option<(TableId, &'a Arc<Column>)> {
    let mut at = class;
    let mut steps = name.split('.').peekable();
    loop {
        let column = db.schema.table(at).layout.column(steps.next()?)?;
        if steps.peek().is_none() {
            return Some((at, column));
        }
        at = db.schema.find(column.reference.as_deref()?)?;
    }
}

/// True when every step of a dot-walk may be read.
fn readable(db: &Db, class: TableId, name: &str, access: &Access<'_>) -> bool {
    let mut at = class;
    for step in name.split('.') {
        if !access.reads_field(at, step) {
            return false;
        }
        let target = db.schema.table(at).layout.column(step).and_then(|c| c.reference.as_deref());
        if let Some(next) = target.and_then(|t| db.schema.find(t)) {
            at = next;
        }
    }
    true
}

impl Field {
    fn new(
        db: &Db,
        owner: TableId,
        name: &str,
        column: &Arc<Column>,
        source: Source,
        dependent: Option<usize>,
        style: &Style<'_>,
    ) -> Self {
        let labels = (column.has_choices() && style.mode != DisplayMode::Stored)
            .then(|| labels(db, owner, column, &style.profile.language));
        let mut link = String::new();
        if let Some(table) = &column.reference {
            json::push_escaped(&mut link, style.link_base);
            link.push('/');
            link.push_str(table);
            match &column.reference_key {
                None => link.push('/'),
                Some(key) => {
                    link.push('?');
                    link.push_str(key);
                    link.push('=');
                }
            }
        }
        let mut field = Self {
            key: format!("{}:", json::string(name)),
            source,
            column: Arc::clone(column),
            labels,
            dependent,
            target: column.reference.as_deref().and_then(|t| db.schema.find(t)),
            link,
            empty: None,
            seen: RefCell::default(),
        };
        if !matches!(field.column.kind, Kind::Journal | Kind::JournalList) {
            let mut text = field.key.clone();
            field.render_empty(&mut text, style.mode);
            field.empty = Some(text);
        }
        field
    }

    /// Appends what an empty value looks like.
    fn render_empty(&self, out: &mut String, mode: DisplayMode) {
        let shown = match self.column.kind {
            Kind::Boolean => "false",
            Kind::DueDate => "UNKNOWN",
            _ => "",
        };
        match mode {
            DisplayMode::Stored => out.push_str("\"\""),
            DisplayMode::Shown => json::push_string(out, shown),
            DisplayMode::Both if self.column.null_display && self.column.has_choices() => {
                out.push_str("{\"display_value\":null,\"value\":\"\"}");
            }
            DisplayMode::Both => {
                out.push_str("{\"display_value\":");
                json::push_string(out, shown);
                out.push_str(",\"value\":\"\"}");
            }
        }
    }

    fn render(&self, out: &mut String, db: &Db, row: RowId, value: Val, style: &Style<'_>) {
        let linked = matches!(self.column.kind, Kind::Reference | Kind::Domain) && !value.is_empty();
        match style.mode {
            DisplayMode::Stored if linked && !style.exclude_link => {
                out.push_str("{\"link\":\"");
                self.push_link(out, db, value);
                out.push_str("\",\"value\":\"");
                push_val(out, db, value);
                out.push_str("\"}");
            }
            DisplayMode::Stored => {
                out.push('"');
                push_val(out, db, value);
                out.push('"');
            }
            DisplayMode::Shown if linked && !style.exclude_link => {
                out.push_str("{\"display_value\":\"");
                self.push_display(out, db, row, value, style.profile);
                out.push_str("\",\"link\":\"");
                self.push_link(out, db, value);
                out.push_str("\"}");
            }
            DisplayMode::Shown => {
                out.push('"');
                self.push_display(out, db, row, value, style.profile);
                out.push('"');
            }
            DisplayMode::Both => {
                out.push_str("{\"display_value\":\"");
                self.push_display(out, db, row, value, style.profile);
                out.push('"');
                if self.column.kind == Kind::Currency {
                    out.push_str(",\"currency_display_value\":\"");
                    db.symbols.with(value, |text| out.push_str(&display::currency_code(text)));
                    out.push('"');
                }
                if linked && !style.exclude_link {
                    out.push_str(",\"link\":\"");
                    self.push_link(out, db, value);
                    out.push('"');
                }
                out.push_str(",\"value\":\"");
                push_val(out, db, value);
                out.push_str("\"}");
            }
        }
    }

    fn push_link(&self, out: &mut String, db: &Db, value: Val) {
        out.push_str(&self.link);
        push_val(out, db, value);
    }

    /// Appends the display value, JSON-escaped.
    fn push_display(&self, out: &mut String, db: &Db, row: RowId, value: Val, profile: &Profile) {
        if value.is_empty() {
            // Only journals come here without a value: they show their history.
            if matches!(self.source, Source::Slot(_)) {
                json::push_escaped(out, &history(db, row, &self.column.element, profile));
            }
            return;
        }
        if let Some(labels) = &self.labels {
            match label_for(labels, value, self.dependent.map(|s| db.row(row).get(s))) {
                Some(label) => out.push_str(label),
                None => push_val(out, db, value),
            }
            return;
        }
        match self.column.kind {
            Kind::Reference | Kind::Domain => {
                let mut seen = self.seen.borrow_mut();
                if let Some(shown) = *seen.entry(value).or_insert_with(|| self.reference_display(db, value)) {
                    push_val(out, db, shown);
                }
            }
            Kind::Text | Kind::Boolean => push_val(out, db, value),
            Kind::DateTime | Kind::DueDate if profile.is_plain() => push_val(out, db, value),
            _ => json::push_escaped(out, &shown(db, &self.column, value, profile)),
        }
    }

    /// The display value of a reference; nothing when it dangles (facts §1.4).
    fn reference_display(&self, db: &Db, value: Val) -> Option<Val> {
        match self.target.and_then(|t| self.referenced(db, t, value)) {
            Some(target) => Some(db.display_value(target)),
            None => (self.column.kind == Kind::Domain).then_some(value),
        }
    }

    fn referenced(&self, db: &Db, target: TableId, value: Val) -> Option<RowId> {
        match &self.column.reference_key {
            None => db.find_val(target, value),
            Some(key) => {
                db.find_equal(target, key, &db.symbols.text(value)).and_then(|rows| rows.first().copied())
            }
        }
    }
}

fn push_val(out: &mut String, db: &Db, value: Val) {
    db.symbols.push_json(out, value);
}

/// The labels of a column's choices in a language, English where it has none; inactive choices have no label, so
/// their raw value shows.
fn labels(db: &Db, class: TableId, column: &Column, language: &str) -> Labels {
    let mut out = Labels::new();
    let Some((_, set)) = db.choices.of(&db.schema, class, column) else { return out };
    for wanted in ["en", language] {
        for choice in set.iter().filter(|c| c.language == wanted && !c.inactive) {
            let Some(value) = db.symbols.find(&choice.value) else { continue };
            let dependent = db.symbols.find(&choice.dependent).unwrap_or(Val::EMPTY);
            let mut label = String::new();
            json::push_escaped(&mut label, &choice.label);
            let entry = out.entry(value).or_default();
            match entry.iter_mut().find(|(on, _)| *on == dependent) {
                Some((_, text)) => *text = label,
                None => entry.push((dependent, label)),
            }
        }
    }
    out
}

fn label_for(labels: &Labels, value: Val, dependent: Option<Val>) -> Option<&str> {
    let entry = labels.get(&value)?;
    let chosen = dependent.and_then(|d| entry.iter().find(|(on, _)| *on == d)).or_else(|| entry.first());
    chosen.map(|(_, label)| label.as_str())
}

/// The display text of a value of a column that needs more than its stored text.
fn shown(db: &Db, column: &Column, value: Val, profile: &Profile) -> String {
    let text = || db.symbols.text(value);
    match column.kind {
        Kind::Integer | Kind::Decimal => display::grouped(&text()),
        Kind::DateTime | Kind::DueDate => {
            let seconds = value.as_seconds().or_else(|| calendar::parse_canonical(&text()));
            seconds.map_or_else(text, |s| profile.date_time(s))
        }
        Kind::LocalDateTime => value.as_seconds().map_or_else(text, |s| profile.local(calendar::naive(s))),
        Kind::Time => text().get(11..).map_or_else(text, str::to_owned),
        Kind::Duration => value.as_seconds().map_or_else(text, display::duration),
        Kind::Date => profile.date(&text()),
        Kind::Currency => display::currency(&text()),
        Kind::Password => "********".to_owned(),
        Kind::ClassName => {
            let name = text();
            db.schema.find(&name).map_or(name, |t| db.schema.table(t).label.clone())
        }
        Kind::List => list(db, column, &text()),
        Kind::Text | Kind::Boolean | Kind::Reference | Kind::Domain | Kind::Journal | Kind::JournalList => {
            text()
        }
    }
}

/// The names of a list of ids; free e-mail addresses stay as they are.
fn list(db: &Db, column: &Column, text: &str) -> String {
    let target = column.reference.as_deref().and_then(|t| db.schema.find(t));
    let names: Vec<String> = text
        .split(',')
        .map(|item| match target.and_then(|t| db.find(t, item.trim())) {
            Some(row) => db.display_text(row),
            None => item.to_owned(),
        })
        .collect();
    names.join(", ")
}

/// The history text of a journal column: newest first, in the reader's zone (facts §1.4).
fn history(db: &Db, row: RowId, element: &str, profile: &Profile) -> String {
    let Some(journal) = db.schema.find("sys_journal_field") else { return String::new() };
    let layout = &db.schema.table(journal).layout;
    let Some(column) = layout.column("element_id") else { return String::new() };
    let entries = db.postings(journal, &column.element, db.value(row, "sys_id"));
    if entries.is_empty() {
        return String::new();
    }
    let class = db.row(row).table;
    let own = &db.schema.table(class).layout;
    let mut chosen: Vec<(i64, usize, String)> = Vec::new();
    for (at, &entry) in entries.iter().enumerate() {
        let name = db.text(entry, "element");
        let merged =
            element == "comments_and_work_notes" && matches!(name.as_str(), "comments" | "work_notes");
        if name != element && !merged {
            continue;
        }
        let seconds = db.value(entry, "sys_created_on").as_seconds().unwrap_or(0);
        let author = db.text(entry, "sys_created_by");
        let author = crate::users::find(db, &author).map_or(author, |u| db.text(u, "name"));
        let label = own.column(&name).map_or(name.as_str(), |c| db.label(class, c));
        let text =
            format!("{} - {author} ({label})\n{}\n\n", profile.date_time(seconds), db.text(entry, "value"));
        chosen.push((seconds, at, text));
    }
    chosen.sort_by_key(|(seconds, at, _)| std::cmp::Reverse((*seconds, *at)));
    chosen.into_iter().map(|(_, _, text)| text).collect()
}
