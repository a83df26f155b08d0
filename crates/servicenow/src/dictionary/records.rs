//! The dictionary as records: `sys_db_object`, `sys_dictionary`, `sys_dictionary_override`, `sys_choice`.

use std::collections::{BTreeSet, HashMap};

use super::{Choice, ChoiceRule, FieldDef, Reference, TableDef, TableSummary, is_hidden, read_all, ui};
use crate::client::Client;
use crate::client::transport::Transport;
use crate::error::Result;
use crate::page::Rows;
use crate::query::{Query, Term};
use crate::value::{TableName, is_field_name};

/// Names asked for in one query, so that its address stays well below an instance's limit.
const NAMES_AT_A_TIME: usize = 60;
/// A table extends at most so many others; more means that the instance's data go in a circle.
const DEPTH: usize = 16;

const FIELDS: [&str; 17] = [
    "name",
    "element",
    "column_label",
    "internal_type",
    "max_length",
    "reference",
    "mandatory",
    "read_only",
    "read_only_option",
    "display",
    "virtual",
    "choice",
    "choice_table",
    "choice_field",
    "dependent",
    "dependent_on_field",
    "default_value",
];
/// A table's place among the others.
#[derive(Clone, Debug)]
struct Place {
    name: TableName,
    label: String,
    id: String,
    parent: String,
}

/// Describes those of the tables whose dictionary may be read.
pub(super) async fn fetch<T: Transport>(
    client: &Client<T>,
    tables: &[TableName],
) -> Result<HashMap<TableName, TableDef>> {
    let mut places = Places::default();
    places.load(client, tables).await?;
    let chains: Vec<Vec<Place>> = tables.iter().filter_map(|table| places.chain(table)).collect();
    let members: BTreeSet<TableName> = chains.iter().flatten().map(|place| place.name.clone()).collect();
    let entries = read_named(client, "sys_dictionary", &members, &FIELDS).await?;
    let defaults = read_defaults(client, &members).await?;
    let labels = read_labels(client, &members).await?;
    let mut choices = Choices::load(client, &members, &entries).await?;

    let mut described = HashMap::new();
    for chain in chains {
        let table = chain[0].name.clone();
        let mut fields = fields_of(&chain, &entries, &defaults, &labels);
        if fields.is_empty() {
            continue; // the dictionary answers with no rows to those who may not read it
        }
        if choices.hidden {
            ui::fill_choices(client, &table, &mut fields).await?;
        } else {
            choices.fill(&chain, &entries, &mut fields);
        }
        let chain_names = chain.iter().map(|place| place.name.clone()).collect();
        let label = chain[0].label.clone();
        described.insert(table.clone(), TableDef { name: table, label, chain: chain_names, fields });
    }
    fill_display_fields(client, &mut places, &mut described).await?;
    Ok(described)
}

/// The tables that each of these extends, itself first; those that may not be seen are left out.
pub(super) async fn chains<T: Transport>(
    client: &Client<T>,
    tables: &[TableName],
) -> Result<HashMap<TableName, Vec<TableName>>> {
    let mut places = Places::default();
    places.load(client, tables).await?;
    let names = |chain: Vec<Place>| chain.into_iter().map(|place| place.name).collect();
    let chain = |table: &TableName| Some((table.clone(), names(places.chain(table)?)));
    Ok(tables.iter().filter_map(chain).collect())
}

/// Every table the caller can see.
pub(super) async fn list_tables<T: Transport>(client: &Client<T>) -> Result<Vec<TableSummary>> {
    let pages = read_all(client, "sys_db_object", Query::all(), &["name", "label"]).await?;
    let mut tables = Vec::new();
    for rows in &pages {
        for row in 0..rows.len() {
            if let Ok(name) = TableName::new(rows.get(row, "name")) {
                tables.push(TableSummary { name, label: rows.get(row, "label").to_owned() });
            }
        }
    }
    Ok(tables)
}

/// What is known of the tree of tables.
#[derive(Default)]
struct Places {
    by_name: HashMap<TableName, Place>,
    by_id: HashMap<String, TableName>,
}

impl Places {
    /// Learns of tables and of all those they extend, a level at a time.
    async fn load<T: Transport>(&mut self, client: &Client<T>, tables: &[TableName]) -> Result<()> {
        let wanted: Vec<&str> =
            tables.iter().filter(|table| !self.by_name.contains_key(*table)).map(TableName::as_str).collect();
        let mut parents = self.read(client, "name", &wanted).await?;
        for _ in 0..DEPTH {
            parents.retain(|id| !id.is_empty() && !self.by_id.contains_key(id));
            if parents.is_empty() {
                break;
            }
            let ids: Vec<&str> = parents.iter().map(String::as_str).collect();
            parents = self.read(client, "sys_id", &ids).await?;
        }
        Ok(())
    }

    /// Reads the tables whose `key` is one of `values`; gives back their parents' identifiers.
    async fn read<T: Transport>(
        &mut self,
        client: &Client<T>,
        key: &str,
        values: &[&str],
    ) -> Result<BTreeSet<String>> {
        let mut parents = BTreeSet::new();
        for some in values.chunks(NAMES_AT_A_TIME) {
            let query = Query::all().and(Term::is_one_of(key, some.iter().copied())?);
            for rows in read_all(client, "sys_db_object", query, &["name", "label", "super_class"]).await? {
                for row in 0..rows.len() {
                    let Ok(name) = TableName::new(rows.get(row, "name")) else { continue };
                    let (label, parent) = (rows.get(row, "label"), rows.get(row, "super_class").to_owned());
                    let label = label.to_owned();
                    let id = rows.id(row).to_owned();
                    parents.insert(parent.clone());
                    self.by_id.insert(id.clone(), name.clone());
                    self.by_name.insert(name.clone(), Place { name, label, id, parent });
                }
            }
        }
        Ok(parents)
    }

    /// A table and those it extends, itself first.
    fn chain(&self, table: &TableName) -> Option<Vec<Place>> {
        let mut chain = vec![self.by_name.get(table)?.clone()];
        while let Some(parent) = chain.last().and_then(|place| self.by_id.get(&place.parent)) {
            let place = self.by_name.get(parent)?.clone();
            if chain.len() >= DEPTH || chain.iter().any(|seen| seen.id == place.id) {
                break;
            }
            chain.push(place);
        }
        Some(chain)
    }
}

/// Reads the records of a metadata table that belong to any of the tables, by its field `name`.
async fn read_named<T: Transport>(
    client: &Client<T>,
    metadata: &str,
    tables: &BTreeSet<TableName>,
    fields: &[&str],
) -> Result<Vec<Rows>> {
    let names: Vec<&str> = tables.iter().map(TableName::as_str).collect();
    let mut pages = Vec::new();
    for some in names.chunks(NAMES_AT_A_TIME) {
        let query = Query::all().and(Term::is_one_of("name", some.iter().copied())?);
        pages.extend(read_all(client, metadata, query.and(Term::is_not_empty("element")), fields).await?);
    }
    Ok(pages)
}

/// Default values that a child table sets for an inherited field, by (table, field).
async fn read_defaults<T: Transport>(
    client: &Client<T>,
    tables: &BTreeSet<TableName>,
) -> Result<HashMap<(String, String), String>> {
    let fields = ["name", "element", "default_value_override", "default_value"];
    let pages = match read_named(client, "sys_dictionary_override", tables, &fields).await {
        Ok(pages) => pages,
        Err(e) if is_hidden(&e) => return Ok(HashMap::new()),
        Err(e) => return Err(e),
    };
    let mut defaults = HashMap::new();
    for rows in &pages {
        for row in (0..rows.len()).filter(|&row| rows.get(row, "default_value_override") != "false") {
            let key = (rows.get(row, "name").to_owned(), rows.get(row, "element").to_owned());
            defaults.insert(key, rows.get(row, "default_value").to_owned());
        }
    }
    Ok(defaults)
}

/// Labels of fields, by (table, field): a child table may call an inherited field otherwise.
async fn read_labels<T: Transport>(
    client: &Client<T>,
    tables: &BTreeSet<TableName>,
) -> Result<HashMap<(String, String), String>> {
    let fields = ["name", "element", "label", "language"];
    let pages = match read_named(client, "sys_documentation", tables, &fields).await {
        Ok(pages) => pages,
        Err(e) if is_hidden(&e) => return Ok(HashMap::new()),
        Err(e) => return Err(e),
    };
    let mut labels = HashMap::new();
    for rows in &pages {
        for row in 0..rows.len() {
            if rows.get(row, "language") == "en" && !rows.get(row, "label").is_empty() {
                let key = (rows.get(row, "name").to_owned(), rows.get(row, "element").to_owned());
                labels.insert(key, rows.get(row, "label").to_owned());
            }
        }
    }
    Ok(labels)
}

/// The fields of a table: those of the topmost table first, each table's by name; a child's own entry for an
/// inherited field replaces it in place.
fn fields_of(
    chain: &[Place],
    entries: &[Rows],
    defaults: &HashMap<(String, String), String>,
    labels: &HashMap<(String, String), String>,
) -> Vec<FieldDef> {
    let mut fields: Vec<FieldDef> = Vec::new();
    for place in chain.iter().rev() {
        let mut own: Vec<FieldDef> = Vec::new();
        for rows in entries {
            for row in (0..rows.len()).filter(|&row| rows.get(row, "name") == place.name.as_str()) {
                // A name that is none could not be asked for.
                own.extend(Some(field_of(rows, row)).filter(|field| is_field_name(&field.name)));
            }
        }
        own.sort_by(|a, b| a.name.cmp(&b.name));
        own.dedup_by(|a, b| a.name == b.name);
        for field in own {
            match fields.iter_mut().find(|inherited| inherited.name == field.name) {
                Some(inherited) => *inherited = field,
                None => fields.push(field),
            }
        }
        for field in &mut fields {
            let key = (place.name.as_str().to_owned(), field.name.clone());
            if let Some(default) = defaults.get(&key) {
                field.default_value.clone_from(default);
            }
            if let Some(label) = labels.get(&key) {
                field.label.clone_from(label);
            }
        }
    }
    fields
}

fn field_of(rows: &Rows, row: usize) -> FieldDef {
    let text = |field| rows.get(row, field);
    let is = |field| text(field) == "true";
    let some = |field| Some(text(field).to_owned()).filter(|s: &String| !s.is_empty());
    FieldDef {
        name: text("element").to_owned(),
        label: text("column_label").to_owned(),
        internal_type: text("internal_type").to_owned(),
        max_length: text("max_length").parse().ok(),
        reference: TableName::new(text("reference"))
            .ok()
            .map(|table| Reference { table, display_field: None }),
        mandatory: is("mandatory"),
        read_only: is("read_only"),
        computed: is("virtual"),
        locked: is("read_only")
            && matches!(text("read_only_option"), "strict_read_only" | "client_script_modifiable"),
        choice: choice_rule(text("choice"), text("internal_type")),
        choices: Vec::new(),
        dependent_on: some("dependent_on_field").or_else(|| some("dependent")),
        default_value: text("default_value").to_owned(),
    }
}

/// `choice` of the dictionary: 1 dropdown with none, 2 suggestion, 3 dropdown without none.
fn choice_rule(choice: &str, internal_type: &str) -> ChoiceRule {
    match choice {
        "1" | "3" => ChoiceRule::Strict,
        "2" => ChoiceRule::Suggestion,
        _ if internal_type == "choice" => ChoiceRule::Strict,
        _ => ChoiceRule::None,
    }
}

/// The choices of a set of tables.
struct Choices {
    by_field: HashMap<(String, String), Vec<Choice>>,
    /// The instance shows labels only, not the fields and values they belong to.
    hidden: bool,
}

impl Choices {
    async fn load<T: Transport>(
        client: &Client<T>,
        tables: &BTreeSet<TableName>,
        entries: &[Rows],
    ) -> Result<Self> {
        let fields =
            ["name", "element", "value", "label", "language", "sequence", "inactive", "dependent_value"];
        let mut tables = tables.clone();
        for rows in entries {
            let redirects = (0..rows.len()).map(|row| rows.get(row, "choice_table"));
            tables.extend(redirects.filter_map(|table| TableName::new(table).ok()));
        }
        let mut choices = Self { by_field: HashMap::new(), hidden: false };
        let pages = match read_named(client, "sys_choice", &tables, &fields).await {
            Ok(pages) => pages,
            Err(e) if is_hidden(&e) => return Ok(Self { hidden: true, ..choices }),
            Err(e) => return Err(e),
        };
        let mut ordered: Vec<((String, String), i64, Choice)> = Vec::new();
        for rows in &pages {
            for row in 0..rows.len() {
                let text = |field| rows.get(row, field).to_owned();
                if text("name").is_empty() || text("element").is_empty() {
                    choices.hidden = true;
                    return Ok(choices);
                }
                let choice = Choice {
                    value: text("value"),
                    label: text("label"),
                    language: text("language"),
                    inactive: text("inactive") == "true",
                    dependent_value: text("dependent_value"),
                };
                ordered.push((
                    (text("name"), text("element")),
                    text("sequence").parse().unwrap_or(i64::MAX),
                    choice,
                ));
            }
        }
        // A dictionary with choice fields and a choice table without rows do not go together.
        let wants = |rows: &Rows| (0..rows.len()).any(|row| matches!(rows.get(row, "choice"), "1" | "3"));
        choices.hidden = ordered.is_empty() && entries.iter().any(wants);
        // English first: it is what messages to people show when a choice has several labels.
        let key = |entry: &((String, String), i64, Choice)| {
            (entry.1, entry.2.value.clone(), entry.2.language != "en", entry.2.language.clone())
        };
        ordered.sort_by_key(key);
        for (field, _, choice) in ordered {
            choices.by_field.entry(field).or_default().push(choice);
        }
        Ok(choices)
    }

    /// Gives each field the choices of the nearest table that has any for it: a child's set replaces its
    /// parent's. `choice_table` and `choice_field` of the dictionary point elsewhere.
    fn fill(&mut self, chain: &[Place], entries: &[Rows], fields: &mut [FieldDef]) {
        let redirect = redirects(chain, entries);
        for field in fields {
            let own = chain.iter().map(|place| (place.name.as_str(), field.name.as_str()));
            let elsewhere = redirect.get(&field.name).map(|(table, field)| (table.as_str(), field.as_str()));
            let set = elsewhere
                .into_iter()
                .chain(own)
                .find_map(|(table, element)| self.by_field.get(&(table.to_owned(), element.to_owned())));
            if let Some(set) = set {
                field.choices.clone_from(set);
            }
        }
    }
}

/// Fields whose choices are those of another field, by name.
fn redirects(chain: &[Place], entries: &[Rows]) -> HashMap<String, (String, String)> {
    let mut redirects = HashMap::new();
    for rows in entries {
        for row in 0..rows.len() {
            let in_chain = chain.iter().any(|place| place.name.as_str() == rows.get(row, "name"));
            let (table, field) = (rows.get(row, "choice_table"), rows.get(row, "choice_field"));
            if in_chain && !table.is_empty() {
                let element = rows.get(row, "element").to_owned();
                let field = if field.is_empty() { element.clone() } else { field.to_owned() };
                redirects.insert(element, (table.to_owned(), field));
            }
        }
    }
    redirects
}

/// Finds out which field of a referenced table is shown for its records.
async fn fill_display_fields<T: Transport>(
    client: &Client<T>,
    places: &mut Places,
    described: &mut HashMap<TableName, TableDef>,
) -> Result<()> {
    let references = |def: &TableDef| {
        def.fields
            .iter()
            .filter_map(|field| field.reference.as_ref().map(|r| r.table.clone()))
            .collect::<Vec<_>>()
    };
    let targets: BTreeSet<TableName> = described.values().flat_map(references).collect();
    let targets: Vec<TableName> = targets.into_iter().collect();
    places.load(client, &targets).await?;
    let chains: HashMap<TableName, Vec<Place>> =
        targets.iter().filter_map(|table| Some((table.clone(), places.chain(table)?))).collect();
    let members: BTreeSet<&str> = chains.values().flatten().map(|place| place.name.as_str()).collect();
    let members: Vec<&str> = members.into_iter().collect();
    let mut displays: HashMap<String, String> = HashMap::new();
    let mut fields: HashMap<String, BTreeSet<String>> = HashMap::new();
    for some in members.chunks(NAMES_AT_A_TIME) {
        // Without a field marked for display the platform shows `name` or `number`, so those are asked for too.
        let query = Query::all()
            .and(Term::is_one_of("name", some.iter().copied())?)
            .and(Term::is_not_empty("element"));
        let query = Query::parse(&format!("{query}^display=true^ORelementINname,number"))?;
        for rows in read_all(client, "sys_dictionary", query, &["name", "element", "display"]).await? {
            for row in 0..rows.len() {
                let (table, element) =
                    (rows.get(row, "name").to_owned(), rows.get(row, "element").to_owned());
                if rows.get(row, "display") == "true" {
                    displays.insert(table.clone(), element.clone());
                }
                fields.entry(table).or_default().insert(element);
            }
        }
    }
    let has = |table: &Place, field: &str| fields.get(table.name.as_str()).is_some_and(|f| f.contains(field));
    let display_field = |table: &TableName| {
        let chain = chains.get(table)?;
        let marked = chain.iter().find_map(|place| displays.get(place.name.as_str()).cloned());
        let usual = ["name", "number"].into_iter().find(|field| chain.iter().any(|place| has(place, field)));
        marked.or_else(|| usual.map(str::to_owned))
    };
    for reference in
        described.values_mut().flat_map(|def| &mut def.fields).filter_map(|f| f.reference.as_mut())
    {
        reference.display_field = display_field(&reference.table);
    }
    Ok(())
}
