//! A query compiled for the classes of a table, and its evaluation row by row.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::date::DatePart;
use super::parse::{Condition, Operator, Query, Relation};
use super::{date, script};
use crate::calendar;
use crate::schema::{Kind, TableId};
use crate::store::{Db, RowId, Val, collation};

/// The session a query runs in: who asks, when, and in which time zone.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The instance's present.
    pub(crate) now: DateTime<Utc>,
    /// The caller's time zone.
    pub(crate) zone: Tz,
    /// The caller's `sys_id`.
    pub(crate) user_id: String,
    /// The caller's user name.
    pub(crate) user_name: String,
}

/// A field of a condition: the steps of a dot-walk and the kind of the last column.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// The column names of the walk; one for a plain field.
    pub(crate) steps: Vec<String>,
    /// The kind of the last column.
    pub(crate) kind: Kind,
}

/// The path of a field of a table, or `None` when the table has no such field.
pub(crate) fn resolve(db: &Db, table: TableId, field: &str) -> Option<Path> {
    let steps: Vec<String> = field.split('.').map(str::to_owned).collect();
    let mut at = table;
    let mut kind = Kind::Text;
    for (i, step) in steps.iter().enumerate() {
        let column = db.schema.table(at).layout.column(step)?;
        kind = column.kind;
        if i + 1 < steps.len() {
            if !matches!(kind, Kind::Reference | Kind::Domain) {
                return None;
            }
            at = db.schema.find(column.reference.as_deref()?)?;
        }
    }
    Some(Path { steps, kind })
}

/// The row that a reference value names, through the column's own key.
pub(crate) fn follow(db: &Db, row: RowId, element: &str) -> Option<RowId> {
    let class = db.row(row).table;
    let column = db.schema.table(class).layout.column(element)?;
    let target = db.schema.find(column.reference.as_deref()?)?;
    let value = db.value(row, element);
    if value.is_empty() {
        return None;
    }
    match column.reference_key.as_deref() {
        None => db.find_val(target, value),
        Some(key) => {
            let fold = db.symbols.fold(value);
            db.scan(target).find(|&r| db.symbols.fold(db.value(r, key)) == fold)
        }
    }
}

/// The value at the end of a dot-walk.
pub(crate) fn walk(db: &Db, row: RowId, steps: &[String]) -> Val {
    let mut row = row;
    let Some((last, before)) = steps.split_last() else { return Val::EMPTY };
    for step in before {
        match follow(db, row, step) {
            Some(next) => row = next,
            None => return Val::EMPTY,
        }
    }
    db.value(row, last)
}

#[derive(Debug, Clone)]
enum Test {
    Never,
    Always,
    Empty(bool),
    /// Equality under the collation with one of some values; negated or not; whether empty passes when negated.
    OneOf {
        folds: Vec<Val>,
        negated: bool,
        empty_passes: bool,
    },
    /// A number or date-time in a range.
    Range {
        low: Option<(f64, bool)>,
        high: Option<(f64, bool)>,
        negated: bool,
    },
    /// Text compared in the order of the collation.
    TextRange {
        low: Option<(String, bool)>,
        high: Option<(String, bool)>,
    },
    Contains {
        needle: String,
        negated: bool,
    },
    Prefix(String),
    Suffix(String),
    Field {
        steps: Vec<String>,
        operator: Operator,
        day: bool,
    },
    Distance {
        steps: Vec<String>,
        seconds: i64,
        more: bool,
        after: bool,
    },
    Part(DatePart, Tz),
    Classes {
        names: Vec<Val>,
    },
}

#[derive(Debug, Clone)]
struct Check {
    slot: Option<usize>,
    steps: Vec<String>,
    kind: Kind,
    test: Test,
}

/// What to do with a condition on a field that does not exist (facts §2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownField {
    /// Drop the condition: the default of an instance.
    #[default]
    Ignore,
    /// Return no row, as with `glide.invalid_query.returns_no_rows`.
    NoRows,
    /// Refuse the call with 403.
    Forbid,
}

/// A query ready to be asked of the rows of one class.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    alternatives: Vec<Vec<Vec<Check>>>,
    nothing: bool,
}

impl Compiled {
    /// Compiles a query on `table` for the rows of `class`, which is the table or extends it.
    pub(crate) fn new(
        db: &Db,
        table: TableId,
        class: TableId,
        query: &Query,
        unknown: UnknownField,
        session: &Session,
    ) -> Self {
        let mut nothing = false;
        let mut alternatives = Vec::new();
        for alternative in &query.alternatives {
            let mut groups = Vec::new();
            for group in alternative {
                let mut checks = Vec::new();
                for condition in group {
                    match resolve(db, table, &condition.field) {
                        Some(path) => checks.push(check(db, class, condition, path, session)),
                        None => nothing |= unknown == UnknownField::NoRows,
                    }
                }
                if !checks.is_empty() {
                    groups.push(checks);
                }
            }
            alternatives.push(groups);
        }
        Self { alternatives, nothing }
    }

    /// True when every row passes.
    pub(crate) fn is_trivial(&self) -> bool {
        !self.nothing && self.alternatives.iter().any(Vec::is_empty)
    }

    /// True when the row passes.
    pub(crate) fn matches(&self, db: &Db, row: RowId) -> bool {
        !self.nothing
            && self
                .alternatives
                .iter()
                .any(|groups| groups.iter().all(|g| g.iter().any(|c| passes(db, row, c))))
    }
}

fn check(db: &Db, class: TableId, condition: &Condition, path: Path, session: &Session) -> Check {
    let slot = match path.steps.as_slice() {
        [single] => db.schema.table(class).layout.slot(single),
        _ => None,
    };
    let test = test(db, condition, path.kind, session);
    Check { slot, steps: path.steps, kind: path.kind, test }
}

/// The value of a condition with `javascript:` evaluated.
pub(crate) fn literal(text: &str, session: &Session) -> Option<String> {
    match text.strip_prefix("javascript:") {
        Some(code) => script::evaluate(code, session),
        None => Some(text.to_owned()),
    }
}

/// A text as the number that a column of this kind is compared by.
pub(crate) fn number_of(kind: Kind, text: &str) -> Option<f64> {
    if kind == Kind::Date {
        calendar::parse_loose(text.get(..10)?).map(|s| s as f64)
    } else if kind.is_temporal() {
        calendar::parse_loose(text).map(|s| s as f64)
    } else {
        text.trim().parse::<f64>().ok().filter(|n| n.is_finite())
    }
}

fn is_ranged(kind: Kind) -> bool {
    kind.is_numeric() || kind.is_temporal() || kind == Kind::Date
}

fn test(db: &Db, condition: &Condition, kind: Kind, session: &Session) -> Test {
    let Some(value) = literal(&condition.value, session) else { return Test::Never };
    let ranged = is_ranged(kind);
    let text = |v: &str| collation::fold(v).into_owned();
    match condition.operator {
        Operator::Anything => Test::Always,
        Operator::IsEmpty | Operator::EmptyString => Test::Empty(true),
        Operator::IsNotEmpty => Test::Empty(false),
        Operator::Equal if value.is_empty() || value == "NULL" => Test::Empty(true),
        Operator::NotEqual if value.is_empty() || value == "NULL" => Test::Empty(false),
        Operator::Equal => one_of(db, kind, [value.as_str()].into_iter(), false),
        Operator::NotEqual => one_of(db, kind, [value.as_str()].into_iter(), true),
        Operator::In => one_of(db, kind, value.split(','), false),
        Operator::NotIn => one_of(db, kind, value.split(','), true),
        Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
            let inclusive = matches!(condition.operator, Operator::LessOrEqual | Operator::GreaterOrEqual);
            let upper = matches!(condition.operator, Operator::Less | Operator::LessOrEqual);
            if ranged {
                let Some(n) = number_of(kind, &value) else { return Test::Never };
                let bound = Some((n, inclusive));
                let (low, high) = if upper { (None, bound) } else { (bound, None) };
                Test::Range { low, high, negated: false }
            } else {
                let bound = Some((text(&value), inclusive));
                let (low, high) = if upper { (None, bound) } else { (bound, None) };
                Test::TextRange { low, high }
            }
        }
        Operator::Between => between(kind, &value, session, false),
        Operator::On => between(kind, value_range(&value), session, false),
        Operator::NotOn => between(kind, value_range(&value), session, true),
        Operator::Contains => Test::Contains { needle: collation::fold_inner(&value), negated: false },
        Operator::NotContains => Test::Contains { needle: collation::fold_inner(&value), negated: true },
        Operator::StartsWith => Test::Prefix(collation::fold_inner(&value)),
        Operator::EndsWith => Test::Suffix(text(&value)),
        Operator::SameAs | Operator::NotSameAs => {
            let (field, day) =
                value.split_once('@').map_or((value.as_str(), false), |(f, unit)| (f, unit == "day"));
            Test::Field {
                steps: field.split('.').map(str::to_owned).collect(),
                operator: condition.operator,
                day,
            }
        }
        Operator::GreaterField
        | Operator::LessField
        | Operator::GreaterOrEqualField
        | Operator::LessOrEqualField => Test::Field {
            steps: value.split('.').map(str::to_owned).collect(),
            operator: condition.operator,
            day: false,
        },
        Operator::Relative(relation) => relative(&value, relation, session),
        Operator::DatePart => DatePart::parse(&value).map_or(Test::Never, |p| Test::Part(p, session.zone)),
        Operator::MoreThan | Operator::LessThan => distance(&value, condition.operator == Operator::MoreThan),
        Operator::InstanceOf => match db.schema.find(&value) {
            Some(table) => Test::Classes {
                names: db
                    .schema
                    .family(table)
                    .into_iter()
                    .filter_map(|t| db.symbols.find_fold(&db.schema.table(t).name))
                    .collect(),
            },
            None => Test::Never,
        },
    }
}

/// Equality with one of some values; values of numbers and dates are brought into their stored form first.
fn one_of<'a>(db: &Db, kind: Kind, values: impl Iterator<Item = &'a str>, negated: bool) -> Test {
    let mut folds = Vec::new();
    for value in values {
        let canonical = match kind {
            Kind::Boolean if value == "1" => "true".to_owned(),
            Kind::Boolean if value == "0" => "false".to_owned(),
            Kind::Integer => match value.trim().parse::<i128>() {
                Ok(n) => n.to_string(),
                Err(_) => continue,
            },
            _ if kind.is_temporal() && value.len() == 10 => format!("{value} 00:00:00"),
            _ => value.to_owned(),
        };
        folds.extend(db.symbols.find_fold(&canonical));
    }
    // A reference `!=` asks for rows "populated by any other" value, so empty ones stay out (facts §2.3).
    Test::OneOf { folds, negated, empty_passes: !matches!(kind, Kind::Reference) }
}

/// The `start@end` part of an `ON` value, whose first part is a label.
fn value_range(value: &str) -> &str {
    value.split_once('@').map_or("", |(_, range)| range)
}

fn between(kind: Kind, value: &str, session: &Session, negated: bool) -> Test {
    let Some((low, high)) = value.split_once('@') else { return Test::Never };
    let (Some(low), Some(high)) = (literal(low, session), literal(high, session)) else { return Test::Never };
    if is_ranged(kind) {
        match (number_of(kind, &low), number_of(kind, &high)) {
            (Some(l), Some(h)) => Test::Range { low: Some((l, true)), high: Some((h, true)), negated },
            _ => Test::Never,
        }
    } else {
        let text = |v: &str| Some((collation::fold(v).into_owned(), true));
        Test::TextRange { low: text(&low), high: text(&high) }
    }
}

/// Reads `@hour@ago@1`.
fn relative(value: &str, relation: Relation, session: &Session) -> Test {
    let parts: Vec<&str> = value.trim_start_matches('@').split('@').collect();
    let [unit, direction, count] = parts.as_slice() else { return Test::Never };
    let bound = count.parse().ok().and_then(|n| date::step(session.now, unit, *direction == "ahead", n));
    let Some(at) = bound.map(|at| at.timestamp() as f64) else { return Test::Never };
    let (low, high) = match relation {
        Relation::Greater => (Some((at, false)), None),
        Relation::GreaterOrEqual => (Some((at, true)), None),
        Relation::Less => (None, Some((at, false))),
        Relation::LessOrEqual => (None, Some((at, true))),
        Relation::Equal => (Some((at, true)), Some((at, true))),
    };
    Test::Range { low, high, negated: false }
}

/// Reads `other_field@day@after@3`.
fn distance(value: &str, more: bool) -> Test {
    let parts: Vec<&str> = value.split('@').collect();
    let [field, unit, direction, count] = parts.as_slice() else { return Test::Never };
    match count.parse().ok().and_then(|n| date::span(unit, n)) {
        Some(span) => Test::Distance {
            steps: field.split('.').map(str::to_owned).collect(),
            seconds: span.num_seconds(),
            more,
            after: *direction == "after",
        },
        None => Test::Never,
    }
}

fn seconds_of(db: &Db, value: Val) -> Option<i64> {
    value.as_seconds().or_else(|| db.symbols.with(value, calendar::parse_loose))
}

/// The number that a stored value is compared by.
pub(crate) fn stored_number(db: &Db, kind: Kind, value: Val) -> Option<f64> {
    match value.as_seconds() {
        Some(seconds) if kind != Kind::Date => Some(seconds as f64),
        _ => db.symbols.with(value, |text| number_of(kind, text)),
    }
}

fn passes(db: &Db, row: RowId, check: &Check) -> bool {
    let value = match check.slot {
        Some(slot) => db.row(row).get(slot),
        None => walk(db, row, &check.steps),
    };
    match &check.test {
        Test::Never => false,
        Test::Always => true,
        Test::Empty(wanted) => value.is_empty() == *wanted,
        Test::OneOf { folds, negated, empty_passes } => {
            if value.is_empty() {
                return *negated && *empty_passes;
            }
            folds.contains(&db.symbols.fold(value)) != *negated
        }
        Test::Range { low, high, negated } => {
            let Some(n) = (!value.is_empty()).then(|| stored_number(db, check.kind, value)).flatten() else {
                return false;
            };
            let above = low.is_none_or(|(l, inclusive)| n > l || (inclusive && n == l));
            let below = high.is_none_or(|(h, inclusive)| n < h || (inclusive && n == h));
            (above && below) != *negated
        }
        Test::TextRange { low, high } => {
            !value.is_empty()
                && db.symbols.with(db.symbols.fold(value), |text| {
                    low.as_ref().is_none_or(|(l, inclusive)| text > l.as_str() || (*inclusive && text == l))
                        && high
                            .as_ref()
                            .is_none_or(|(h, inclusive)| text < h.as_str() || (*inclusive && text == h))
                })
        }
        Test::Contains { needle, negated } => {
            let value = shown(db, row, check, value);
            !value.is_empty() && with_fold(db, value, |text| text.contains(needle.as_str())) != *negated
        }
        Test::Prefix(needle) => {
            let value = shown(db, row, check, value);
            !value.is_empty() && with_fold(db, value, |text| text.starts_with(needle.as_str()))
        }
        Test::Suffix(needle) => {
            let value = shown(db, row, check, value);
            !value.is_empty() && with_fold(db, value, |text| text.ends_with(needle.as_str()))
        }
        Test::Field { steps, operator, day } => {
            compare_fields(db, check, value, walk(db, row, steps), *operator, *day)
        }
        Test::Distance { steps, seconds, more, after } => {
            let other = walk(db, row, steps);
            let (Some(a), Some(b)) = (seconds_of(db, value), seconds_of(db, other)) else { return false };
            let apart = if *after { a - b } else { b - a };
            if *more { apart > *seconds } else { apart < *seconds }
        }
        Test::Part(part, zone) => seconds_of(db, value)
            .and_then(|s| DateTime::<Utc>::from_timestamp(s, 0))
            .is_some_and(|at| part.matches(at, *zone)),
        Test::Classes { names } => names.contains(&db.symbols.fold(value)),
    }
}

fn with_fold<R>(db: &Db, value: Val, f: impl FnOnce(&str) -> R) -> R {
    db.symbols.with(db.symbols.fold(value), f)
}

/// `LIKE` and its kin look at the display value of a reference (facts §2.2).
fn shown(db: &Db, row: RowId, check: &Check, value: Val) -> Val {
    if check.kind != Kind::Reference || value.is_empty() {
        return value;
    }
    let mut at = row;
    let Some((last, before)) = check.steps.split_last() else { return value };
    for step in before {
        match follow(db, at, step) {
            Some(next) => at = next,
            None => return Val::EMPTY,
        }
    }
    follow(db, at, last).map_or(Val::EMPTY, |target| db.display(target))
}

fn compare_fields(db: &Db, check: &Check, a: Val, b: Val, operator: Operator, day: bool) -> bool {
    if matches!(operator, Operator::SameAs | Operator::NotSameAs) {
        let same = if day {
            match (seconds_of(db, a), seconds_of(db, b)) {
                (Some(a), Some(b)) => a.div_euclid(86_400) == b.div_euclid(86_400),
                _ => a == b,
            }
        } else {
            db.symbols.fold(a) == db.symbols.fold(b)
        };
        return same == (operator == Operator::SameAs);
    }
    if a.is_empty() || b.is_empty() {
        return false;
    }
    let ordering = if is_ranged(check.kind) {
        stored_number(db, check.kind, a)
            .zip(stored_number(db, check.kind, b))
            .and_then(|(a, b)| a.partial_cmp(&b))
    } else {
        Some(with_fold(db, a, |x| with_fold(db, b, |y| x.cmp(y))))
    };
    ordering.is_some_and(|o| match operator {
        Operator::GreaterField => o.is_gt(),
        Operator::LessField => o.is_lt(),
        Operator::GreaterOrEqualField => o.is_ge(),
        _ => o.is_le(),
    })
}
