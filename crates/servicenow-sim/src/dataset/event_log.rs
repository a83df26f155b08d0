//! The incidents of the real event log (`data/README.md`): the last or first state of each, and the events to replay.

use std::collections::HashMap;

use super::{Plan, base};
use crate::calendar;
use crate::dictionary::{self, Seeder};
use crate::ident;
use crate::replay::{Event, Replay};
use crate::schema::choice::Choice;
use crate::schema::{Column, Schema};
use crate::store::{Db, Val};

static LOG: &[u8] = include_bytes!("../../data/incident_event_log.csv.xz");

/// The user whose incidents are those of this caller of the log: a few hundred rows, scattered.
const ESS_CALLER: &str = "Caller 290";

/// The incident columns that an event sets.
const COLUMNS: &[&str] = &[
    "state",
    "incident_state",
    "hold_reason",
    "active",
    "reassignment_count",
    "reopen_count",
    "made_sla",
    "caller_id",
    "opened_by",
    "opened_at",
    "contact_type",
    "location",
    "category",
    "subcategory",
    "cmdb_ci",
    "impact",
    "urgency",
    "priority",
    "assignment_group",
    "assigned_to",
    "knowledge",
    "notify",
    "problem_id",
    "rfc",
    "caused_by",
    "close_code",
    "close_notes",
    "resolved_by",
    "resolved_at",
    "closed_at",
    "business_stc",
    "calendar_stc",
    "calendar_duration",
    "short_description",
    "u_symptom",
    "u_priority_confirmation",
];

/// Adds the two columns of the log that are not among the captured 92.
pub(crate) fn add_extra_columns(schema: &mut Schema) {
    if let Some(incident) = schema.find("incident") {
        schema.add_column(incident, Column::new("u_symptom", "Symptom", "string"));
        schema
            .add_column(incident, Column::new("u_priority_confirmation", "Priority confirmation", "boolean"));
    }
}

/// A line of the log by column name.
struct Line<'a> {
    at: &'a HashMap<String, usize>,
    record: &'a csv::StringRecord,
}

impl Line<'_> {
    fn get(&self, name: &str) -> &str {
        self.at.get(name).and_then(|&i| self.record.get(i)).unwrap_or("")
    }
}

/// The state of an incident at one event.
#[derive(Clone)]
struct State {
    number: String,
    values: Box<[Val]>,
    created_on: String,
    created_by: String,
    updated_on: i64,
    updated_by: String,
    mod_count: String,
}

/// Loads the log: `count` incidents, or all of them.
pub(crate) fn load(db: &mut Db, count: Option<usize>, plan: Plan) -> Replay {
    let mut people = People::new(db);
    let mut reader = csv::Reader::from_reader(liblzma::read::XzDecoder::new(LOG));
    let at: HashMap<String, usize> = reader
        .headers()
        .map(|h| h.iter().enumerate().map(|(i, n)| (n.to_owned(), i)).collect())
        .unwrap_or_default();
    let mut first: Vec<State> = Vec::new();
    let mut last: Vec<State> = Vec::new();
    let mut events: Vec<(i64, Event)> = Vec::new();
    // The known incident, which is not taken from the log, is one of those asked for.
    let wanted = count.map_or(usize::MAX, |n| n.saturating_sub(1));
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).unwrap_or(false) {
        let line = Line { at: &at, record: &record };
        if line.get("number") == base::KNOWN_NUMBER {
            // The demonstration's own record keeps its state whatever is replayed.
            continue;
        }
        let state = people.state(db, &line);
        let known = last.len();
        match last.last_mut() {
            Some(current) if current.number == state.number => *current = state.clone(),
            _ if known >= wanted => break,
            _ => {
                first.push(state.clone());
                last.push(state.clone());
            }
        }
        let incident = db.symbols.intern(&ident::sys_id("incident", &state.number));
        let user = db.symbols.intern(&state.updated_by);
        events.push((state.updated_on, Event { incident, user, values: state.values }));
    }
    events.sort_by_key(|(at, _)| *at);
    let states = if plan.first_events { first } else { last };
    insert(db, &states, count.map_or(states.len(), |_| wanted));
    let choices = std::mem::take(&mut people.choices);
    let seeder = Seeder::new(db, "sys_choice", "admin", dictionary::BASE_STAMP);
    for (element, choice) in choices {
        dictionary::add_choice(db, &seeder, "incident", &element, &choice);
    }
    let columns = COLUMNS.iter().map(|c| (*c).to_owned()).collect();
    Replay::new(columns, events.into_iter().map(|(_, e)| e).collect())
}

/// Inserts `count` incidents, cycling the states; later cycles get numbers and times of their own.
fn insert(db: &mut Db, states: &[State], count: usize) {
    let Some(table) = db.schema.find("incident") else { return };
    if states.is_empty() {
        return;
    }
    let layout = db.schema.table(table).layout.clone();
    let mut template = vec![Val::EMPTY; layout.slots.len()];
    for (slot, s) in layout.live() {
        let default = db.schema.default_of(table, &s.column).to_owned();
        template[slot] = db.symbols.intern(&default);
    }
    let slot = |name: &str| layout.slot(name).expect("a column of the base schema");
    let slots: Vec<Option<usize>> = COLUMNS.iter().map(|c| layout.slot(c)).collect();
    let (id, number, effective, class) =
        (slot("sys_id"), slot("number"), slot("task_effective_number"), slot("sys_class_name"));
    let (created_on, created_by) = (slot("sys_created_on"), slot("sys_created_by"));
    let (updated_on, updated_by, mods) =
        (slot("sys_updated_on"), slot("sys_updated_by"), slot("sys_mod_count"));
    let class_name = db.symbols.intern("incident");
    let mut highest = 0u64;
    for n in 0..count {
        let (state, cycle) = (&states[n % states.len()], (n / states.len()) as i64);
        let shift = cycle * 3_607;
        let mut vals = template.clone();
        for (at, value) in slots.iter().zip(&state.values) {
            if let Some(at) = at {
                vals[*at] = shifted(*value, shift);
            }
        }
        let serial = state.number[3..].parse::<u64>().unwrap_or(0) + cycle as u64 * 200_000;
        highest = highest.max(serial);
        let name = format!("INC{serial:07}");
        vals[number] = db.symbols.intern(&name);
        vals[effective] = vals[number];
        vals[id] = db.symbols.intern(&ident::sys_id("incident", &name));
        vals[class] = class_name;
        let created = db.symbols.intern(&state.created_on);
        vals[created_on] = shifted(created, shift);
        vals[created_by] = db.symbols.intern(&state.created_by);
        vals[updated_on] = Val::from_seconds(state.updated_on - shift).unwrap_or(Val::EMPTY);
        vals[updated_by] = db.symbols.intern(&state.updated_by);
        vals[mods] = db.symbols.intern(&state.mod_count);
        db.insert(table, vals);
    }
    db.numbers.insert("INC".to_owned(), highest);
}

/// A date-time moved back; anything else, durations included, as it is.
fn shifted(value: Val, by: i64) -> Val {
    match value.as_seconds() {
        Some(seconds) if by != 0 && seconds > 1_000_000_000 => {
            Val::from_seconds(seconds - by).unwrap_or(value)
        }
        _ => value,
    }
}

/// Makes real records and choices out of the log's labels, each once.
struct People {
    made: HashMap<(&'static str, String), Val>,
    choices: Vec<(String, Choice)>,
    seeders: HashMap<&'static str, Seeder>,
}

const STAMP: &str = "2015-12-01 00:00:00";

impl People {
    fn new(db: &mut Db) -> Self {
        let seeders = ["sys_user", "sys_user_group", "cmn_location", "cmdb_ci", "problem", "change_request"]
            .into_iter()
            .map(|t| (t, Seeder::new(db, t, "admin", STAMP)))
            .collect();
        Self { made: HashMap::new(), choices: Vec::new(), seeders }
    }

    /// The id of the record that a label stands for.
    fn record(&mut self, db: &mut Db, table: &'static str, label: &str) -> Val {
        if label.is_empty() {
            return Val::EMPTY;
        }
        if table == "sys_user" && label == ESS_CALLER {
            return db.symbols.intern(&base::login_id("ess.user"));
        }
        if let Some(&id) = self.made.get(&(table, label.to_owned())) {
            return id;
        }
        let id = ident::sys_id(table, label);
        let seeder = &self.seeders[table];
        match table {
            "sys_user" => {
                let user_name = user_name(label);
                seeder.add(
                    db,
                    &[
                        ("sys_id", &id),
                        ("user_name", &user_name),
                        ("name", label),
                        ("last_name", label),
                        ("email", &format!("{user_name}@example.com")),
                    ],
                );
            }
            "problem" => {
                let number = format!("PRB{:0>7}", label);
                seeder.add(
                    db,
                    &[
                        ("sys_id", &id),
                        ("number", &number),
                        ("task_effective_number", &number),
                        ("state", "101"),
                        ("short_description", &format!("Problem {label}")),
                    ],
                );
            }
            "change_request" => {
                let number = format!("CHG{:0>7}", label.trim_start_matches(|c: char| !c.is_ascii_digit()));
                seeder.add(
                    db,
                    &[
                        ("sys_id", &id),
                        ("number", &number),
                        ("task_effective_number", &number),
                        ("state", "-5"),
                        ("short_description", &format!("Change {label}")),
                    ],
                );
            }
            _ => {
                seeder.add(db, &[("sys_id", &id), ("name", label)]);
            }
        }
        let id = db.symbols.intern(&id);
        self.made.insert((table, label.to_owned()), id);
        id
    }

    /// The value of the choice that a label stands for.
    fn choice(
        &mut self,
        db: &mut Db,
        element: &'static str,
        label: &str,
        value: &str,
        dependent: &str,
    ) -> Val {
        if label.is_empty() {
            return Val::EMPTY;
        }
        let stored = db.symbols.intern(value);
        let key = (element, format!("{value}\0{dependent}"));
        if self.made.insert(key, stored).is_none() {
            let choice = Choice {
                value: value.to_owned(),
                label: label.to_owned(),
                language: "en".to_owned(),
                sequence: 1000 + self.choices.len() as i64,
                inactive: false,
                dependent: dependent.to_owned(),
            };
            self.choices.push((element.to_owned(), choice));
        }
        stored
    }

    /// An event as the state of its incident.
    fn state(&mut self, db: &mut Db, line: &Line<'_>) -> State {
        let (state, hold) = match line.get("incident_state") {
            "New" => ("1", ""),
            "Active" => ("2", ""),
            "Awaiting User Info" => ("3", "1"),
            "Awaiting Problem" => ("3", "3"),
            "Awaiting Vendor" => ("3", "4"),
            "Awaiting Evidence" => ("3", "1"),
            "Resolved" => ("6", ""),
            "Closed" => ("7", ""),
            _ => ("1", ""),
        };
        let over = matches!(state, "6" | "7");
        let digit = |name: &str| line.get(name).get(..1).unwrap_or("").to_owned();
        let contact = match line.get("contact_type") {
            "Phone" => "phone",
            "Email" => "email",
            "Self service" => "self-service",
            "IVR" => "ivr",
            _ => "direct",
        };
        let category = slug(line.get("category"));
        let when = |name: &str| if over { line.get(name) } else { "" };
        let resolved = when("resolved_at");
        let elapsed = calendar::parse_canonical(resolved)
            .zip(calendar::parse_canonical(line.get("opened_at")))
            .map(|(to, from)| (to - from).max(0));
        let mut buffer = [0u8; 19];
        let duration = elapsed.map_or("", |s| calendar::write_canonical(s, &mut buffer)).to_owned();
        let elapsed = elapsed.map_or_else(String::new, |s| s.to_string());
        let text =
            format!("{} / {} at {}", line.get("category"), line.get("subcategory"), line.get("location"));
        let values: Vec<Val> = COLUMNS
            .iter()
            .map(|column| match *column {
                "state" | "incident_state" => db.symbols.intern(state),
                "hold_reason" => db.symbols.intern(hold),
                "caller_id" => self.record(db, "sys_user", line.get("caller_id")),
                "opened_by" => self.record(db, "sys_user", line.get("opened_by")),
                "assigned_to" => self.record(db, "sys_user", line.get("assigned_to")),
                "resolved_by" => self.record(db, "sys_user", when("resolved_by")),
                "location" => self.record(db, "cmn_location", line.get("location")),
                "cmdb_ci" => self.record(db, "cmdb_ci", line.get("cmdb_ci")),
                "assignment_group" => self.record(db, "sys_user_group", line.get("assignment_group")),
                "problem_id" => self.record(db, "problem", line.get("problem_id")),
                "rfc" => self.record(db, "change_request", line.get("rfc")),
                "caused_by" => self.record(db, "change_request", line.get("caused_by")),
                "contact_type" => db.symbols.intern(contact),
                "category" => self.choice(db, "category", line.get("category"), &category, ""),
                "subcategory" => {
                    let value = slug(line.get("subcategory"));
                    self.choice(db, "subcategory", line.get("subcategory"), &value, &category)
                }
                "impact" | "urgency" | "priority" => db.symbols.intern(&digit(column)),
                "notify" => db.symbols.intern(if line.get("notify") == "Send Email" { "2" } else { "1" }),
                "close_code" if over => {
                    let code = Some(line.get("closed_code")).filter(|c| !c.is_empty()).unwrap_or("code 0");
                    self.choice(db, "close_code", code, code, "")
                }
                "close_notes" if over => db.symbols.intern("Closed by the service desk."),
                "close_code" | "close_notes" => Val::EMPTY,
                "resolved_at" => db.symbols.intern(resolved),
                "closed_at" => db.symbols.intern(if state == "7" { line.get("closed_at") } else { "" }),
                "business_stc" | "calendar_stc" => db.symbols.intern(&elapsed),
                "calendar_duration" => db.symbols.intern(&duration),
                "short_description" => db.symbols.intern(&text),
                same => db.symbols.intern(line.get(same)),
            })
            .collect();
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        State {
            number: line.get("number").to_owned(),
            values: values.into_boxed_slice(),
            created_on: or(line.get("sys_created_at"), line.get("opened_at")),
            created_by: or(&user_name(line.get("sys_created_by")), "system"),
            updated_on: calendar::parse_canonical(line.get("sys_updated_at")).unwrap_or(0),
            updated_by: or(&user_name(line.get("sys_updated_by")), "system"),
            mod_count: line.get("sys_mod_count").to_owned(),
        }
    }
}

/// `Caller 2403` as a user name.
fn user_name(label: &str) -> String {
    label.to_lowercase().replace(' ', ".")
}

/// `Category 55` as a choice value.
fn slug(label: &str) -> String {
    label.to_lowercase().replace(' ', "_")
}
