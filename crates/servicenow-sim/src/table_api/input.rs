//! Values of a write or of a `field=value` pair, brought into their stored form (facts §1.3, §1.6).

use serde_json::Value;

use crate::calendar;
use crate::display::Profile;
use crate::schema::choice::Choice;
use crate::schema::{Column, Kind, TableId};
use crate::store::Db;

/// The text of a JSON value: scalars, or the `value`/`display_value` of an object as the instance returns it.
pub(crate) fn text_of(value: &Value, display: bool) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(on) => Some(on.to_string()),
        Value::Null => Some(String::new()),
        Value::Object(map) => {
            let keys = if display { ["display_value", "value"] } else { ["value", "display_value"] };
            keys.iter().find_map(|k| map.get(*k)).and_then(|v| text_of(v, display))
        }
        Value::Array(items) => {
            let texts: Option<Vec<String>> = items.iter().map(|v| text_of(v, display)).collect();
            texts.map(|t| t.join(","))
        }
    }
}

/// How a write's values are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    /// The data.
    pub(crate) db: &'a Db,
    /// The class written to.
    pub(crate) class: TableId,
    /// The writer's formats and language.
    pub(crate) profile: &'a Profile,
    /// Values are display values.
    pub(crate) display: bool,
    /// `glide.rest.choice.allow_non_existing_value`.
    pub(crate) any_choice: bool,
}

impl Reader<'_> {
    /// The stored form of a value, or `None` when the instance silently drops it.
    pub(crate) fn read(&self, column: &Column, text: &str) -> Option<String> {
        if column.has_choices() {
            return self.choice(column, text);
        }
        if text.is_empty() {
            return Some(String::new());
        }
        match column.kind {
            Kind::Boolean => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some("true".to_owned()),
                "false" | "0" | "no" | "off" => Some("false".to_owned()),
                _ => None,
            },
            Kind::Integer => {
                number(text, self.display).and_then(|t| t.parse::<i128>().ok()).map(|n| n.to_string())
            }
            Kind::Decimal => {
                number(text, self.display).filter(|t| t.parse::<f64>().is_ok_and(f64::is_finite))
            }
            Kind::Currency => currency(text),
            Kind::Reference => self.reference(column, text),
            Kind::List => Some(self.list(column, text)),
            Kind::DateTime | Kind::DueDate => {
                if self.display {
                    self.profile.parse_date_time(text)
                } else {
                    calendar::parse_loose(text).map(canonical)
                }
            }
            Kind::LocalDateTime => calendar::parse_loose(text).map(canonical),
            Kind::Date => {
                if self.display {
                    self.profile.parse_date(text)
                } else {
                    calendar::parse_loose(text).and_then(|_| text.get(..10)).map(str::to_owned)
                }
            }
            Kind::Time => calendar::parse_canonical(text)
                .map(canonical)
                .or_else(|| calendar::parse_canonical(&format!("1970-01-01 {text}")).map(canonical)),
            Kind::Duration => duration(text),
            Kind::ClassName => self.db.schema.find(text).map(|_| text.to_owned()),
            Kind::Password | Kind::JournalList => None,
            Kind::Text | Kind::Journal | Kind::Domain => Some(text.to_owned()),
        }
    }

    /// Choices: a value that does not exist is dropped, and a choice cannot be emptied (facts §1.6).
    fn choice(&self, column: &Column, text: &str) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        let Some((_, set)) = self.db.choices.of(&self.db.schema, self.class, column) else {
            return Some(text.to_owned());
        };
        if self.display
            && let Some(choice) = by_label(set, text, &self.profile.language)
        {
            return Some(choice.value.clone());
        }
        let known = set.iter().any(|c| c.value == text && !c.inactive);
        (known || self.any_choice || column.choice == 2).then(|| text.to_owned())
    }

    /// References: an id as it is, else the row with that display value (facts §1.6); what is not found is stored as
    /// it came when raw, and dropped when a display value was promised.
    fn reference(&self, column: &Column, text: &str) -> Option<String> {
        let target = self.db.schema.find(column.reference.as_deref()?)?;
        if column.reference_key.is_some() {
            return Some(text.to_owned());
        }
        if !self.display && self.db.find(target, text).is_some() {
            return Some(text.to_owned());
        }
        if !self.display && text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(text.to_owned());
        }
        match by_display(self.db, target, text) {
            Some(id) => Some(id),
            None if self.display => self.db.find(target, text).map(|_| text.to_owned()),
            None => Some(text.to_owned()),
        }
    }

    fn list(&self, column: &Column, text: &str) -> String {
        let Some(target) = column.reference.as_deref().and_then(|t| self.db.schema.find(t)) else {
            return text.to_owned();
        };
        let items: Vec<String> = text
            .split(',')
            .map(str::trim)
            .filter(|i| !i.is_empty())
            .map(|item| match self.display.then(|| by_display(self.db, target, item)).flatten() {
                Some(id) => id,
                None => item.to_owned(),
            })
            .collect();
        items.join(",")
    }
}

fn by_label<'a>(set: &'a [Choice], label: &str, language: &str) -> Option<&'a Choice> {
    let find =
        |language: &str| set.iter().find(|c| c.label == label && c.language == language && !c.inactive);
    find(language).or_else(|| find("en"))
}

/// The id of the first row with a display value.
fn by_display(db: &Db, target: TableId, text: &str) -> Option<String> {
    let fold = db.symbols.find_fold(text)?;
    db.scan(target).find(|&r| db.symbols.fold(db.display(r)) == fold).map(|r| db.text(r, "sys_id"))
}

fn canonical(seconds: i64) -> String {
    let mut buffer = [0u8; 19];
    calendar::write_canonical(seconds, &mut buffer).to_owned()
}

fn number(text: &str, display: bool) -> Option<String> {
    let text = text.trim();
    Some(if display { text.replace(',', "") } else { text.to_owned() })
}

/// `699.99`, `$1,234.50` or `USD;12.5` as the stored amount; zero is `0` (facts §1.4).
fn currency(text: &str) -> Option<String> {
    let amount = text.rsplit(';').next().unwrap_or(text);
    let plain: String = amount.chars().filter(|c| c.is_ascii_digit() || matches!(c, '.' | '-')).collect();
    let n: f64 = plain.parse().ok()?;
    Some(if n == 0.0 { "0".to_owned() } else { plain })
}

/// A stored duration, or `D HH:MM:SS`.
fn duration(text: &str) -> Option<String> {
    if let Some(seconds) = calendar::parse_canonical(text) {
        return Some(canonical(seconds));
    }
    let (days, time) = text.split_once(' ').unwrap_or(("0", text));
    let seconds = calendar::parse_canonical(&format!("1970-01-01 {time}"))?;
    Some(canonical(days.parse::<i64>().ok()? * 86_400 + seconds))
}

/// The stored form of a `field=value` pair, where labels and display values work too (facts §1.3).
pub(crate) fn stored_form(db: &Db, table: TableId, field: &str, value: &str, profile: &Profile) -> String {
    let Some(column) = db.schema.table(table).layout.column(field) else { return value.to_owned() };
    if column.has_choices() {
        let set = db.choices.of(&db.schema, table, column).map_or(&[][..], |(_, set)| set);
        if set.iter().any(|c| c.value == value) {
            return value.to_owned();
        }
        let fold = value.to_lowercase();
        let label = set.iter().find(|c| c.label.to_lowercase() == fold && !c.inactive);
        return label.map_or_else(|| value.to_owned(), |c| c.value.clone());
    }
    let reader = Reader { db, class: table, profile, display: false, any_choice: true };
    match column.kind {
        Kind::Reference => reader.reference(column, value).unwrap_or_else(|| value.to_owned()),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_durations_are_read_in_all_their_forms() {
        assert_eq!(currency("$1,234.50").as_deref(), Some("1234.50"));
        assert_eq!(currency("USD;0.00").as_deref(), Some("0"));
        assert_eq!(duration("1 04:23:17").as_deref(), Some("1970-01-02 04:23:17"));
        assert_eq!(duration("soon"), None);
    }
}
