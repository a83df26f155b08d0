//! The Aggregate API (facts §6).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::acl::{Access, QueryUse, Reading};
use crate::http::{ApiError, Request, Response};
use crate::instance::Instance;
use crate::json;
use crate::query::compile;
use crate::query::plan::{self, Ask};
use crate::schema::{Kind, TableId};
use crate::store::{Db, RowId, Val};
use crate::table_api::params::{DisplayMode, Params};
use crate::table_api::read;
use crate::table_api::render::{Plan, Style};
use crate::users::Actor;

const KINDS: [&str; 4] = ["avg", "min", "max", "sum"];

/// What a call wants computed.
#[derive(Debug, Default)]
struct Wanted {
    count: bool,
    /// The fields per kind, in the order of [`KINDS`].
    fields: [Vec<String>; 4],
    group_by: Vec<String>,
    having: Vec<(String, String, String, f64)>,
    order_by: Vec<(String, bool)>,
}

impl Wanted {
    fn parse(request: &Request) -> Self {
        let list = |name: &str| -> Vec<String> {
            request
                .parameter(name)
                .map(|v| v.split(',').map(str::trim).filter(|f| !f.is_empty()).map(str::to_owned).collect())
                .unwrap_or_default()
        };
        let mut wanted =
            Self { count: request.parameter("sysparm_count") == Some("true"), ..Self::default() };
        for (at, kind) in KINDS.iter().enumerate() {
            wanted.fields[at] = list(&format!("sysparm_{kind}_fields"));
        }
        wanted.group_by = list("sysparm_group_by");
        for text in list("sysparm_having") {
            if let [kind, field, operator, value] = text.split('^').collect::<Vec<_>>().as_slice()
                && let Ok(value) = value.parse()
            {
                wanted.having.push((kind.to_lowercase(), (*field).to_owned(), (*operator).to_owned(), value));
            }
        }
        wanted.order_by = list("sysparm_order_by")
            .into_iter()
            .map(|text| match text.strip_suffix("^DESC") {
                Some(field) => (field.to_owned(), true),
                None => (text, false),
            })
            .collect();
        wanted
    }
}

/// The rows of a group and the values it is grouped by.
struct Group {
    by: Vec<Val>,
    rows: Vec<RowId>,
}

/// `GET` of aggregates: table and role ACLs count, scripted row ACLs do not (facts §6).
pub(crate) fn aggregate(
    instance: &Instance,
    actor: &Actor,
    name: &str,
    request: &Request,
) -> Result<Response, ApiError> {
    let wanted = Wanted::parse(request);
    let params = Params::parse(&request.query);
    let rules = instance.acl_rules();
    let switches = instance.switches();
    instance.refresh_view(name);
    let db = instance.db.read();
    let table = read::table(&db, name)?;
    let access = Access::new(&db, actor, &rules);
    match access.reading(table) {
        Reading::Refused => return Err(ApiError::not_authorized()),
        Reading::All | Reading::Where(_) | Reading::Nothing => {}
    }
    let mut query = read::query_of(&db, table, &params, actor);
    let unknown = read::unknown_field(&db, switches.unknown_field);
    read::check_query(&db, table, &query, &access, unknown)?;
    let mut group_by = wanted.group_by.clone();
    group_by.append(&mut query.group_by);
    let known = |fields: &[String]| -> Vec<String> {
        fields.iter().filter(|f| compile::resolve(&db, table, f).is_some()).cloned().collect()
    };
    let group_by = known(&group_by);
    let fields: [Vec<String>; 4] = wanted.fields.each_ref().map(|f| known(f));
    for field in fields.iter().flatten().chain(&group_by) {
        let first = field.split('.').next().unwrap_or(field);
        if !access.queries_field(table, first, QueryUse::Match) {
            return Err(ApiError::unreadable_query());
        }
    }
    let session = actor.session(instance.clock.now());
    query.order.clear();
    let only_count = group_by.is_empty() && fields.iter().all(Vec::is_empty);
    let ask = Ask {
        table,
        query: &query,
        unknown,
        session: &session,
        offset: 0,
        limit: if only_count { 0 } else { usize::MAX },
        count: true,
        unstable: None,
    };
    let selection = plan::select(&db, &ask);
    let total = if access.reading(table) == Reading::Nothing { 0 } else { selection.total.unwrap_or(0) };
    let computation = Computation { db: &db, table, wanted: &wanted, fields: &fields };
    if group_by.is_empty() {
        let body = format!("{{\"result\":{{\"stats\":{}}}}}", computation.stats(&selection.rows, total));
        return Ok(Response::json(200, body));
    }
    let mut groups = group(&db, &group_by, &selection.rows);
    groups.retain(|g| computation.keeps(g));
    computation.sort(&mut groups, &group_by);
    let base = instance.base_url();
    let link_base = format!("{base}/api/now/table");
    let style = Style {
        mode: params.display,
        exclude_link: true,
        link_base: &link_base,
        profile: &actor.profile,
        fields: Some(&group_by),
    };
    let mut body = String::from("{\"result\":[");
    for (at, group) in groups.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        let _ = write!(
            body,
            "{{\"stats\":{},\"groupby_fields\":[",
            computation.stats(&group.rows, group.rows.len())
        );
        for (i, field) in group_by.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            let value = db.symbols.text(group.by[i]);
            let shown = || display_of(&db, table, group.rows[0], field, &access, &style);
            match params.display {
                DisplayMode::Stored => {
                    let _ = write!(
                        body,
                        "{{\"field\":{},\"value\":{}}}",
                        json::string(field),
                        json::string(&value)
                    );
                }
                DisplayMode::Shown => {
                    let _ = write!(
                        body,
                        "{{\"field\":{},\"display_value\":{}}}",
                        json::string(field),
                        json::string(&shown())
                    );
                }
                DisplayMode::Both => {
                    let _ = write!(
                        body,
                        "{{\"display_value\":{},\"field\":{},\"value\":{}}}",
                        json::string(&shown()),
                        json::string(field),
                        json::string(&value)
                    );
                }
            }
        }
        body.push_str("]}");
    }
    body.push_str("]}");
    Ok(Response::json(200, body))
}

/// The display value of a grouped field, taken from any row of the group.
fn display_of(
    db: &Db,
    table: TableId,
    row: RowId,
    field: &str,
    access: &Access<'_>,
    style: &Style<'_>,
) -> String {
    let fields = [field.to_owned()];
    let style = Style { mode: DisplayMode::Shown, fields: Some(&fields), ..style.clone() };
    let mut text = String::new();
    Plan::new(db, table, db.row(row).table, access, &style).render(&mut text, db, row, &style);
    serde_json::from_str::<BTreeMap<String, serde_json::Value>>(&text)
        .ok()
        .and_then(|map| map.into_values().next())
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Groups rows by the collation's equality, in order of the first field's text.
fn group(db: &Db, by: &[String], rows: &[RowId]) -> Vec<Group> {
    let paths: Vec<Vec<String>> = by.iter().map(|f| f.split('.').map(str::to_owned).collect()).collect();
    let mut groups: hashbrown::HashMap<Vec<Val>, Group> = hashbrown::HashMap::new();
    for &row in rows {
        let values: Vec<Val> = paths.iter().map(|p| compile::walk(db, row, p)).collect();
        let key: Vec<Val> = values.iter().map(|&v| db.symbols.fold(v)).collect();
        groups.entry(key).or_insert_with(|| Group { by: values, rows: Vec::new() }).rows.push(row);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_cached_key(|g| g.by.iter().map(|&v| db.symbols.text(v)).collect::<Vec<_>>());
    groups
}

struct Computation<'a> {
    db: &'a Db,
    table: TableId,
    wanted: &'a Wanted,
    fields: &'a [Vec<String>; 4],
}

impl Computation<'_> {
    fn stats(&self, rows: &[RowId], count: usize) -> String {
        let mut parts = Vec::new();
        if self.wanted.count {
            parts.push(format!("\"count\":\"{count}\""));
        }
        for (at, kind) in KINDS.iter().enumerate() {
            if !self.fields[at].is_empty() {
                let values: Vec<String> = self.fields[at]
                    .iter()
                    .map(|f| format!("{}:{}", json::string(f), json::string(&self.value(kind, f, rows))))
                    .collect();
                parts.push(format!("\"{kind}\":{{{}}}", values.join(",")));
            }
        }
        format!("{{{}}}", parts.join(","))
    }

    fn numbers(&self, field: &str, rows: &[RowId]) -> (Kind, Vec<(f64, Val)>) {
        let Some(path) = compile::resolve(self.db, self.table, field) else {
            return (Kind::Text, Vec::new());
        };
        let numbers = rows
            .iter()
            .filter_map(|&row| {
                let value = compile::walk(self.db, row, &path.steps);
                let n = (!value.is_empty())
                    .then(|| compile::stored_number(self.db, path.kind, value))
                    .flatten()?;
                Some((n, value))
            })
            .collect();
        (path.kind, numbers)
    }

    /// One aggregate; averages carry four decimals (facts §6), extremes of dates are dates.
    fn value(&self, kind: &str, field: &str, rows: &[RowId]) -> String {
        let (column, numbers) = self.numbers(field, rows);
        if numbers.is_empty() {
            return String::new();
        }
        let sum: f64 = numbers.iter().map(|(n, _)| n).sum();
        match kind {
            "avg" => format!("{:.4}", sum / numbers.len() as f64),
            "sum" if column == Kind::Integer => format!("{sum:.0}"),
            "sum" => format!("{sum}"),
            extreme => {
                let pick = if extreme == "min" {
                    numbers.iter().min_by(|a, b| a.0.total_cmp(&b.0))
                } else {
                    numbers.iter().max_by(|a, b| a.0.total_cmp(&b.0))
                };
                pick.map_or_else(String::new, |(_, v)| self.db.symbols.text(*v))
            }
        }
    }

    fn number(&self, kind: &str, field: &str, group: &Group) -> f64 {
        if kind == "count" {
            return group.rows.len() as f64;
        }
        let (_, numbers) = self.numbers(field, &group.rows);
        let values = numbers.iter().map(|(n, _)| *n);
        match kind {
            "avg" => values.clone().sum::<f64>() / numbers.len().max(1) as f64,
            "sum" => values.sum(),
            "min" => values.fold(f64::INFINITY, f64::min),
            _ => values.fold(f64::NEG_INFINITY, f64::max),
        }
    }

    fn keeps(&self, group: &Group) -> bool {
        self.wanted.having.iter().all(|(kind, field, operator, value)| {
            let n = self.number(kind, field, group);
            match operator.as_str() {
                ">" => n > *value,
                ">=" => n >= *value,
                "<" => n < *value,
                "<=" => n <= *value,
                "!=" => n != *value,
                _ => n == *value,
            }
        })
    }

    fn sort(&self, groups: &mut [Group], group_by: &[String]) {
        for (key, descending) in self.wanted.order_by.iter().rev() {
            let ordering = |a: &Group, b: &Group| match key.split_once('^') {
                Some((kind, field)) => {
                    let kind = kind.to_lowercase();
                    self.number(&kind, field, a).total_cmp(&self.number(&kind, field, b))
                }
                None if key.eq_ignore_ascii_case("count") => a.rows.len().cmp(&b.rows.len()),
                None => match group_by.iter().position(|f| f == key) {
                    Some(at) => self.db.symbols.text(a.by[at]).cmp(&self.db.symbols.text(b.by[at])),
                    None => std::cmp::Ordering::Equal,
                },
            };
            groups.sort_by(|a, b| if *descending { ordering(b, a) } else { ordering(a, b) });
        }
    }
}
