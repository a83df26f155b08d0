//! Whether the instance has done what it says it has done.

use pgrx::PgSqlErrorCode as Sql;
use pgrx::pg_sys::panic::ErrorReport;
use servicenow::dictionary::TableDef;
use servicenow::page::Rows;
use servicenow::value::{Kind, Show, SysId};

use super::draft::Sent;
use crate::catalog::Mirror;
use crate::error::error;

/// Compares the answer to a write with what was sent: ServiceNow drops a value that it does not like without a word,
/// and reports success. The ERROR names the fields. A rule of the instance may have replaced a value instead, unless the answer
/// has what was there before; `may_be_older` is asked whether that can be something that the cache does not know.
pub fn check(
    mirror: &Mirror,
    def: Option<&TableDef>,
    server: &str,
    sent: &[Sent],
    rows: &Rows,
    may_be_older: impl FnOnce() -> bool,
) -> Option<ErrorReport> {
    let answer = |sent: &Sent| rows.value(0, sent.column).encode().unwrap_or_default();
    let differs = |sent: &&Sent| {
        let column = &mirror.columns[sent.column];
        let is_as_wanted = match column.show {
            Show::Value => same(column.kind, &answer(sent), &sent.value),
            // The table does not show the stored value.
            Show::Label => is_label_of(def, sent, &answer(sent)),
        };
        // An entry of a journal is in no answer.
        !sent.appends && rows.is_shown(0, sent.column) && !is_as_wanted
    };
    let stayed = |sent: &&Sent| {
        let kind = mirror.columns[sent.column].kind;
        sent.before.as_ref().is_none_or(|all| all.iter().any(|before| same(kind, &answer(sent), before)))
    };
    let (mut dropped, replaced): (Vec<&Sent>, Vec<&Sent>) = sent.iter().filter(differs).partition(stayed);
    if !replaced.is_empty() && may_be_older() {
        dropped.extend(replaced);
    }
    if dropped.is_empty() {
        return None;
    }
    let names: Vec<String> = dropped.iter().map(|sent| format!("\"{}\"", sent.field)).collect();
    let (names, key, table) = (names.join(", "), rows.id(0), &mirror.table);
    Some(error(
        Sql::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!(
            "could not set {names} in record \"{key}\" of table \"{table}\" on server \"{server}\": the instance ignored it"
        ),
    )
    .set_detail("The instance reported success, but the record does not have the new value.")
    .set_hint(match dropped.iter().all(|sent| sent.value.is_empty()) {
        true => "A choice field cannot be emptied through ServiceNow's REST interface; other fields may be read-only for this user.",
        false => "The field may be read-only for this user, or a business rule may set it.",
    }))
}

/// The ERROR if a record was made under another key than the one that somebody has chosen: the instance may let
/// administrators alone choose (property `glide.rest.table_api.admin_only_sys_fields`).
pub fn check_key(mirror: &Mirror, server: &str, chosen: &SysId, rows: &Rows) -> Option<ErrorReport> {
    let (key, wanted, table) = (rows.id(0), chosen.as_str(), &mirror.table);
    if key.eq_ignore_ascii_case(wanted) {
        return None;
    }
    let message = format!(
        "could not set \"sys_id\" in record \"{wanted}\" of table \"{table}\" on server \"{server}\": the instance ignored it"
    );
    Some(
        error(Sql::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
            .set_detail(format!("The instance reported success, and has made record \"{key}\"."))
            .set_hint("This user may not choose keys: leave sys_id out."),
    )
}

/// Whether a label is that of what was sent, as far as it is known: that of a choice, or the name that was looked up without
/// regard to case.
fn is_label_of(def: Option<&TableDef>, sent: &Sent, label: &str) -> bool {
    let plain = |text: &str| text.trim().to_lowercase();
    match (label_of(def, sent), &sent.label) {
        (Some(wanted), _) => same(Kind::Text, label, &wanted),
        (None, Some(given)) => plain(label) == plain(given),
        (None, None) => true,
    }
}

/// The label that a choice's stored value shows, if it is known.
pub fn label_of(def: Option<&TableDef>, sent: &Sent) -> Option<String> {
    let field = def?.field(&sent.field)?;
    field.choices.iter().find(|choice| choice.value == sent.value).map(|choice| choice.label.clone())
}

/// Whether two wire values of a kind mean the same.
fn same(kind: Kind, a: &str, b: &str) -> bool {
    let plain = |text: &str| text.replace("\r\n", "\n").trim().to_owned();
    match (kind, a.trim().parse::<f64>(), b.trim().parse::<f64>()) {
        (Kind::Numeric | Kind::Float, Ok(a), Ok(b)) => a == b,
        (Kind::Boolean, ..) => (a == "true") == (b == "true"),
        _ => plain(a) == plain(b),
    }
}
