//! Access control: what each user may read, write and query (facts §1.5, §7.3, §9).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::query::compile::UnknownField;
use crate::query::{Compiled, Query};
use crate::schema::{Column, ReadOnly, TableId};
use crate::store::{Db, RowId};
use crate::users::{Actor, METADATA_ROLE};

/// What is done to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Reading rows.
    Read,
    /// Changing a row.
    Write,
    /// Making a row.
    Create,
    /// Deleting a row.
    Delete,
}

/// A restriction added to the built-in access rules; it never binds an admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AclRule {
    /// The user sees only the rows that match an encoded query.
    Rows {
        /// The table; its children are bound too.
        table: String,
        /// The user name, or everybody.
        user: Option<String>,
        /// The encoded query.
        query: String,
    },
    /// The user cannot read a field: its key is left out.
    FieldRead {
        /// The table.
        table: String,
        /// The field.
        field: String,
        /// The user name, or everybody.
        user: Option<String>,
    },
    /// The user cannot write a field: a new value is silently dropped.
    FieldWrite {
        /// The table.
        table: String,
        /// The field.
        field: String,
        /// The user name, or everybody.
        user: Option<String>,
    },
    /// The user cannot filter by equality on a field: 403 (facts §1.5, query ACLs).
    QueryMatch {
        /// The table.
        table: String,
        /// The field.
        field: String,
        /// The user name, or everybody.
        user: Option<String>,
    },
    /// The user cannot filter by range or sort on a field: 403.
    QueryRange {
        /// The table.
        table: String,
        /// The field.
        field: String,
        /// The user name, or everybody.
        user: Option<String>,
    },
    /// The user cannot do something with a table at all.
    Table {
        /// The table.
        table: String,
        /// The user name, or everybody.
        user: Option<String>,
        /// What is forbidden.
        operation: Operation,
        /// For reads: refuse with 403 instead of answering an empty list.
        #[serde(default)]
        refuse: bool,
    },
}

impl AclRule {
    fn scope(&self) -> (&str, Option<&str>) {
        match self {
            Self::Rows { table, user, .. }
            | Self::FieldRead { table, user, .. }
            | Self::FieldWrite { table, user, .. }
            | Self::QueryMatch { table, user, .. }
            | Self::QueryRange { table, user, .. }
            | Self::Table { table, user, .. } => (table, user.as_deref()),
        }
    }

    fn binds(&self, db: &Db, actor: &Actor, class: TableId) -> bool {
        let (table, user) = self.scope();
        !actor.is_admin()
            && user.is_none_or(|u| u == actor.user_name)
            && db.schema.lineage(class).any(|t| &*db.schema.table(t).name == table)
    }
}

/// How a table answers a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reading {
    /// All rows.
    All,
    /// No row, with 200.
    Nothing,
    /// 403.
    Refused,
    /// The rows of an encoded query.
    Where(&'static str),
}

/// How a field is used in a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryUse {
    /// Equality, lists and emptiness.
    Match,
    /// Everything else, sorting included.
    Range,
}

/// The access rules as they bind one actor.
pub(crate) struct Access<'a> {
    db: &'a Db,
    actor: &'a Actor,
    rules: &'a [AclRule],
}

const OWN_INCIDENTS: &str = "caller_id=javascript:gs.getUserID()^ORopened_by=javascript:gs.getUserID()";
const OWN_REQUESTS: &str = "requested_for=javascript:gs.getUserID()^ORopened_by=javascript:gs.getUserID()";

/// The incident fields that a user without a fulfiller role may set.
const ESS_WRITABLE: &[&str] = &[
    "short_description",
    "description",
    "comments",
    "urgency",
    "caller_id",
    "category",
    "subcategory",
    "contact_type",
    "sys_id",
];

const METADATA: &[&str] = &[
    "sys_dictionary",
    "sys_dictionary_override",
    "sys_glide_object",
    "sys_documentation",
    "sys_number",
    "sys_choice_set",
];

impl<'a> Access<'a> {
    /// The rules as they bind an actor.
    pub(crate) fn new(db: &'a Db, actor: &'a Actor, rules: &'a [AclRule]) -> Self {
        Self { db, actor, rules }
    }

    fn named(&self, class: TableId, names: &[&str]) -> bool {
        self.db.schema.lineage(class).any(|t| names.contains(&&*self.db.schema.table(t).name))
    }

    fn metadata(&self) -> bool {
        self.actor.has(METADATA_ROLE)
    }

    /// How a table answers a read by this actor.
    pub(crate) fn reading(&self, class: TableId) -> Reading {
        if self.actor.is_admin() {
            return Reading::All;
        }
        for rule in self.rules.iter().filter(|r| r.binds(self.db, self.actor, class)) {
            if let AclRule::Table { operation: Operation::Read, refuse, .. } = rule {
                return if *refuse { Reading::Refused } else { Reading::Nothing };
            }
        }
        let when = |allowed: bool, otherwise: Reading| if allowed { Reading::All } else { otherwise };
        let has = |role: &str| self.actor.has(role);
        if self.named(class, &["sys_db_object", "metric_definition", "metric_instance", "sys_plugins"]) {
            when(has("itil") || self.metadata(), Reading::Refused)
        } else if self.named(class, METADATA) {
            when(has("personalize_dictionary") || self.metadata(), Reading::Nothing)
        } else if self.named(class, &["sys_audit"]) {
            when(has("audit_viewer"), Reading::Nothing)
        } else if self.named(class, &["sys_audit_delete"]) {
            when(self.metadata(), Reading::Nothing)
        } else if self.named(
            class,
            &["sys_properties", "sys_script", "oauth_entity", "sys_rate_limit_rules", "sysevent"],
        ) {
            Reading::Nothing
        } else if self.named(class, &["sys_journal_field"]) {
            when(has("itil") || self.metadata(), Reading::Nothing)
        } else if self.named(class, &["incident"]) {
            when(has("sn_incident_read"), Reading::Where(OWN_INCIDENTS))
        } else if self.named(class, &["problem"]) {
            when(has("sn_problem_read"), Reading::Nothing)
        } else if self.named(class, &["change_request", "change_task"]) {
            when(has("sn_change_read"), Reading::Nothing)
        } else if self.named(class, &["sc_request", "sc_req_item"]) {
            when(has("sn_request_read"), Reading::Where(OWN_REQUESTS))
        } else if self.named(class, &["sc_task"]) {
            when(has("sn_request_read"), Reading::Nothing)
        } else if self.named(class, &["cmdb", "cmdb_rel_ci", "task_sla", "incident_sla"]) {
            when(has("itil"), Reading::Nothing)
        } else {
            Reading::All
        }
    }

    /// A filter for the rows of a page, compiled once per class.
    pub(crate) fn row_filter(&self, now: DateTime<Utc>) -> RowFilter<'a> {
        RowFilter { db: self.db, actor: self.actor, rules: self.rules, now, classes: HashMap::new() }
    }

    /// True when the actor may change, make or delete rows of a class.
    pub(crate) fn may(&self, class: TableId, operation: Operation) -> bool {
        if self.actor.roles.contains("snc_read_only") {
            return false;
        }
        if self.db.schema.table(class).view.is_some() {
            return false;
        }
        if self.actor.is_admin() {
            return true;
        }
        let forbidden = self
            .rules
            .iter()
            .filter(|r| r.binds(self.db, self.actor, class))
            .any(|r| matches!(r, AclRule::Table { operation: o, .. } if *o == operation));
        if forbidden {
            return false;
        }
        let has = |role: &str| self.actor.has(role);
        let deletes_tasks = operation != Operation::Delete || has("itil_admin");
        if self.named(class, &["incident"]) {
            deletes_tasks && (has("sn_incident_write") || operation != Operation::Delete)
        } else if self.named(class, &["problem"]) {
            deletes_tasks && has("sn_problem_write")
        } else if self.named(class, &["change_request", "change_task"]) {
            deletes_tasks && has("sn_change_write")
        } else if self.named(class, &["sc_request", "sc_req_item", "sc_task"]) {
            deletes_tasks && has("sn_request_write")
        } else if self.named(class, &["sc_cat_item", "sc_catalog", "sc_category"]) {
            has("catalog_admin")
        } else if self.named(class, &["sys_user", "sys_user_group", "sys_user_grmember"]) {
            has("user_admin")
        } else {
            let name = &self.db.schema.table(class).name;
            !name.starts_with("sys") && !name.starts_with("oauth") && has("itil")
        }
    }

    /// True when the actor may read a field of a class.
    pub(crate) fn reads_field(&self, class: TableId, element: &str) -> bool {
        if self.actor.is_admin() {
            return true;
        }
        let denied = self
            .rules
            .iter()
            .filter(|r| r.binds(self.db, self.actor, class))
            .any(|r| matches!(r, AclRule::FieldRead { field, .. } if field == element));
        if denied {
            return false;
        }
        if self.named(class, &["sys_choice"]) {
            return self.metadata() || element == "label";
        }
        if self.named(class, &["task"]) && !self.actor.has("itil") && !self.actor.has("sn_incident_read") {
            return !matches!(element, "work_notes" | "comments_and_work_notes" | "work_notes_list");
        }
        !(element == "user_password" && self.named(class, &["sys_user"]))
    }

    /// True when the actor may set a field of a class; otherwise a new value is silently dropped (facts §1.6).
    pub(crate) fn writes_field(&self, class: TableId, column: &Column) -> bool {
        if column.read_only == ReadOnly::Strict || column.computed {
            return false;
        }
        if self.actor.is_admin() {
            return true;
        }
        let element = &*column.element;
        let denied = self
            .rules
            .iter()
            .filter(|r| r.binds(self.db, self.actor, class))
            .any(|r| matches!(r, AclRule::FieldWrite { field, .. } if field == element));
        if denied {
            return false;
        }
        if self.named(class, &["incident"]) && !self.actor.has("sn_incident_write") {
            return ESS_WRITABLE.contains(&element);
        }
        true
    }

    /// True when the actor may use a field of a class in a query this way; the default is the read ACL (facts §1.5).
    pub(crate) fn queries_field(&self, class: TableId, element: &str, usage: QueryUse) -> bool {
        if self.actor.is_admin() {
            return true;
        }
        let denied = self.rules.iter().filter(|r| r.binds(self.db, self.actor, class)).any(|r| match r {
            AclRule::QueryMatch { field, .. } => field == element && usage == QueryUse::Match,
            AclRule::QueryRange { field, .. } => field == element && usage == QueryUse::Range,
            _ => false,
        });
        !denied && self.reads_field(class, element)
    }
}

/// Which rows of a page an actor sees.
pub(crate) struct RowFilter<'a> {
    db: &'a Db,
    actor: &'a Actor,
    rules: &'a [AclRule],
    now: DateTime<Utc>,
    classes: HashMap<TableId, Option<Vec<Compiled>>>,
}

impl RowFilter<'_> {
    /// True when the actor sees a row.
    pub(crate) fn sees(&mut self, row: RowId) -> bool {
        if self.actor.is_admin() {
            return true;
        }
        let class = self.db.row(row).table;
        if !self.classes.contains_key(&class) {
            let filters = self.compile(class);
            self.classes.insert(class, filters);
        }
        match &self.classes[&class] {
            None => false,
            Some(filters) => filters.iter().all(|f| f.matches(self.db, row)),
        }
    }

    fn compile(&self, class: TableId) -> Option<Vec<Compiled>> {
        let access = Access::new(self.db, self.actor, self.rules);
        let session = self.actor.session(self.now);
        let one = |text: &str| {
            Compiled::new(self.db, class, class, &Query::parse(text), UnknownField::NoRows, &session)
        };
        let mut filters = match access.reading(class) {
            Reading::All => Vec::new(),
            Reading::Where(query) => vec![one(query)],
            Reading::Nothing | Reading::Refused => return None,
        };
        for rule in self.rules.iter().filter(|r| r.binds(self.db, self.actor, class)) {
            if let AclRule::Rows { query, .. } = rule {
                filters.push(one(query));
            }
        }
        Some(filters)
    }
}
