//! Direct edits: what happens inside the instance without REST — scripts, imports, administrators (facts §8.1).

use crate::acl::AclRule;
use crate::ident;
use crate::instance::Instance;
use crate::query::Query;
use crate::query::compile::UnknownField;
use crate::query::plan::{self, Ask};
use crate::record::{Options, Refusal, Writer};
use crate::rules::BusinessRule;
use crate::schema::TableId;
use crate::store::{Db, RowId};
use crate::users::{self, Actor};
use chrono::{DateTime, TimeDelta, Utc};

/// Why a direct edit could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// There is no such table.
    #[error("no table \"{0}\"")]
    NoTable(String),
    /// The table has no such column.
    #[error("no column \"{0}\"")]
    NoColumn(String),
    /// The table has no such record.
    #[error("no record \"{0}\"")]
    NoRecord(String),
    /// There is no such user.
    #[error("no user \"{0}\"")]
    NoUser(String),
    /// The instance refused the write.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A write that is carried out now or, with a commit delay, later.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Insert(Vec<(String, String)>),
    Update(String, Vec<(String, String)>),
    Delete(String),
}

/// A write that is stamped but not visible yet (facts §8.1, late commits).
#[derive(Debug, Clone)]
pub(crate) struct Deferred {
    due: DateTime<Utc>,
    stamp: DateTime<Utc>,
    table: String,
    change: Change,
    options: Options,
    actor: Actor,
    /// Its scripts' requests have left.
    posted: bool,
}

/// Makes the delayed writes visible whose time has come.
pub(crate) fn settle(instance: &Instance) {
    let now = instance.clock.now();
    let due: Vec<Deferred> = {
        let mut deferred = instance.deferred.lock();
        if deferred.is_empty() {
            return;
        }
        let (due, later) = deferred.drain(..).partition(|d| d.due <= now);
        *deferred = later;
        due
    };
    let mut db = instance.db.write();
    for d in due {
        instance.writer(&mut db, &d.actor, d.options, |writer| {
            writer.now = d.stamp;
            // A record that vanished in the meantime is a lost race, as inside a real instance.
            if let Err(error) = apply(writer, &d.table, &d.change) {
                tracing::debug!(%error, "a delayed edit was lost");
            }
            if d.posted {
                writer.effects.posts.clear();
            }
        });
    }
}

/// Puts a write off when there is a commit delay; gives it back when it is to be carried out now.
pub(crate) fn defer(
    instance: &Instance,
    table: &str,
    change: Change,
    options: Options,
    actor: &Actor,
) -> Option<Change> {
    let delay = instance.switches().commit_delay_ms;
    if delay == 0 {
        return Some(change);
    }
    let stamp = instance.clock.now();
    let posted = instance.switches().posts_before_commit;
    if posted {
        post(instance, table, &change, options, actor, stamp);
    }
    instance.deferred.lock().push(Deferred {
        due: stamp + TimeDelta::milliseconds(delay as i64),
        stamp,
        table: table.to_owned(),
        change,
        options,
        actor: actor.clone(),
        posted,
    });
    None
}

/// Has the requests leave that a write's scripts make; whatever else the write does is not kept.
fn post(
    instance: &Instance,
    table: &str,
    change: &Change,
    options: Options,
    actor: &Actor,
    stamp: DateTime<Utc>,
) {
    let mut copy = instance.db.read().clone();
    instance.writer(&mut copy, actor, options, |writer| {
        writer.now = stamp;
        if apply(writer, table, change).is_err() {
            writer.effects.withdraw();
        }
        writer.effects.later.clear();
        writer.effects.errors.clear();
    });
}

fn apply(writer: &mut Writer<'_>, table: &str, change: &Change) -> Result<(), EditError> {
    let id = find_table(writer.db, table)?;
    match change {
        Change::Insert(fields) => {
            writer.insert(id, fields)?;
        }
        Change::Update(sys_id, fields) => {
            let row = find_row(writer.db, id, sys_id)?;
            writer.update(row, fields)?;
        }
        Change::Delete(sys_id) => {
            let row = find_row(writer.db, id, sys_id)?;
            writer.delete(row)?;
        }
    }
    Ok(())
}

fn find_table(db: &Db, name: &str) -> Result<TableId, EditError> {
    db.schema.find(name).ok_or_else(|| EditError::NoTable(name.to_owned()))
}

fn find_row(db: &Db, table: TableId, sys_id: &str) -> Result<RowId, EditError> {
    db.find(table, sys_id).ok_or_else(|| EditError::NoRecord(sys_id.to_owned()))
}

fn check_columns(db: &Db, table: TableId, fields: &[(String, String)]) -> Result<(), EditError> {
    let family = db.schema.family(table);
    for (element, _) in fields {
        if !family.iter().any(|&t| db.schema.table(t).layout.slot(element).is_some()) {
            return Err(EditError::NoColumn(element.clone()));
        }
    }
    Ok(())
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(e, v)| ((*e).to_owned(), (*v).to_owned())).collect()
}

/// Edits the instance from inside. Values are stored values; nothing is dropped silently.
#[derive(Debug, Clone)]
pub struct Edit<'a> {
    instance: &'a Instance,
    pub(crate) options: Options,
    actor: Actor,
}

impl<'a> Edit<'a> {
    pub(crate) fn new(instance: &'a Instance) -> Self {
        Self { instance, options: Options::default(), actor: Actor::system() }
    }

    /// Edits as another user, who then stands in `sys_updated_by`.
    pub fn as_user(mut self, user_name: &str) -> Self {
        self.actor.user_name = user_name.to_owned();
        let db = self.instance.db.read();
        if let Some(row) = users::find(&db, user_name) {
            self.actor.sys_id = db.text(row, "sys_id");
        }
        drop(db);
        self
    }

    /// Leaves `sys_updated_on`, `sys_updated_by` and `sys_mod_count` as they are (`autoSysFields(false)`).
    pub fn without_auto_sys_fields(mut self) -> Self {
        self.options.auto_sys_fields = false;
        self
    }

    /// Runs no business rules and keeps no audit (`setWorkflow(false)`).
    pub fn without_workflow(mut self) -> Self {
        self.options.workflow = false;
        self
    }

    fn write(&self, table: &str, change: Change) -> Result<(), EditError> {
        let Some(change) = defer(self.instance, table, change, self.options, &self.actor) else {
            return Ok(());
        };
        let mut db = self.instance.db.write();
        self.instance.writer(&mut db, &self.actor, self.options, |writer| apply(writer, table, &change))
    }

    /// Makes a record; its `sys_id`.
    pub fn insert(&self, table: &str, fields: &[(&str, &str)]) -> Result<String, EditError> {
        let mut fields = owned(fields);
        let id = {
            let mut db = self.instance.db.write();
            check_columns(&db, find_table(&db, table)?, &fields)?;
            match fields.iter().find(|(e, _)| e == "sys_id") {
                Some((_, id)) => id.clone(),
                None => {
                    db.made_ids += 1;
                    ident::opaque(self.instance.seed, "edit", db.made_ids)
                }
            }
        };
        fields.retain(|(e, _)| e != "sys_id");
        fields.push(("sys_id".to_owned(), id.clone()));
        self.write(table, Change::Insert(fields))?;
        Ok(id)
    }

    /// Changes a record.
    pub fn update(&self, table: &str, sys_id: &str, fields: &[(&str, &str)]) -> Result<(), EditError> {
        let fields = owned(fields);
        {
            let db = self.instance.db.read();
            let id = find_table(&db, table)?;
            check_columns(&db, id, &fields)?;
            find_row(&db, id, sys_id)?;
        }
        self.write(table, Change::Update(sys_id.to_owned(), fields))
    }

    /// The ids of the records that match an encoded query.
    pub fn find(&self, table: &str, query: &str) -> Result<Vec<String>, EditError> {
        let db = self.instance.db.read();
        let table = find_table(&db, table)?;
        let session = self.actor.session(self.instance.clock.now());
        let query = Query::parse(query);
        let ask = Ask {
            table,
            query: &query,
            unknown: UnknownField::NoRows,
            session: &session,
            offset: 0,
            limit: usize::MAX,
            count: false,
            unstable: None,
        };
        Ok(plan::select(&db, &ask).rows.into_iter().map(|r| db.text(r, "sys_id")).collect())
    }

    /// Changes all records that match an encoded query (a mass update); how many.
    pub fn update_where(
        &self,
        table: &str,
        query: &str,
        fields: &[(&str, &str)],
    ) -> Result<usize, EditError> {
        let ids = self.find(table, query)?;
        for id in &ids {
            self.update(table, id, fields)?;
        }
        Ok(ids.len())
    }

    /// Deletes a record.
    pub fn delete(&self, table: &str, sys_id: &str) -> Result<(), EditError> {
        {
            let db = self.instance.db.read();
            find_row(&db, find_table(&db, table)?, sys_id)?;
        }
        self.write(table, Change::Delete(sys_id.to_owned()))
    }

    /// Deletes all records that match an encoded query; how many.
    pub fn delete_where(&self, table: &str, query: &str) -> Result<usize, EditError> {
        let ids = self.find(table, query)?;
        for id in &ids {
            // A cascade may have taken it already.
            if let Err(error) = self.delete(table, id)
                && !matches!(error, EditError::NoRecord(_))
            {
                return Err(error);
            }
        }
        Ok(ids.len())
    }

    fn user_id(&self, user_name: &str) -> Result<String, EditError> {
        let db = self.instance.db.read();
        let row = users::find(&db, user_name).ok_or_else(|| EditError::NoUser(user_name.to_owned()))?;
        Ok(db.text(row, "sys_id"))
    }

    /// Renames a user: display values elsewhere change without any referring row being touched.
    pub fn rename_user(&self, user_name: &str, name: &str) -> Result<(), EditError> {
        let id = self.user_id(user_name)?;
        self.update("sys_user", &id, &[("name", name)])
    }

    /// Changes the label of a choice in all rows with that value and language `en`.
    pub fn relabel_choice(
        &self,
        table: &str,
        element: &str,
        value: &str,
        label: &str,
    ) -> Result<usize, EditError> {
        let query = format!("name={table}^element={element}^value={value}^language=en");
        self.update_where("sys_choice", &query, &[("label", label)])
    }

    /// Adds a column; its name, which may have got a prefix.
    pub fn add_column(
        &self,
        table: &str,
        element: &str,
        label: &str,
        internal_type: &str,
    ) -> Result<String, EditError> {
        let fields = [
            ("name", table),
            ("element", element),
            ("column_label", label),
            ("internal_type", internal_type),
        ];
        let id = self.insert("sys_dictionary", &fields)?;
        let db = self.instance.db.read();
        let row = find_row(&db, find_table(&db, "sys_dictionary")?, &id)?;
        Ok(db.text(row, "element"))
    }

    fn column_row(&self, table: &str, element: &str) -> Result<String, EditError> {
        let found = self.find("sys_dictionary", &format!("name={table}^element={element}"))?;
        found.into_iter().next().ok_or_else(|| EditError::NoColumn(format!("{table}.{element}")))
    }

    /// Drops a column.
    pub fn remove_column(&self, table: &str, element: &str) -> Result<(), EditError> {
        self.delete("sys_dictionary", &self.column_row(table, element)?)
    }

    /// Changes the label of a column.
    pub fn retitle_column(&self, table: &str, element: &str, label: &str) -> Result<(), EditError> {
        self.update("sys_dictionary", &self.column_row(table, element)?, &[("column_label", label)])
    }

    /// Sets a system property, making it if need be.
    pub fn set_property(&self, name: &str, value: &str) -> Result<(), EditError> {
        match self.find("sys_properties", &format!("name={name}"))?.first() {
            Some(id) => self.update("sys_properties", id, &[("value", value)]),
            None => self.insert("sys_properties", &[("name", name), ("value", value)]).map(|_| ()),
        }
    }

    /// Makes a user who can log in with a password and holds roles; the `sys_id`.
    pub fn add_user(&self, user_name: &str, password: &str, roles: &[&str]) -> Result<String, EditError> {
        let fields = [("user_name", user_name), ("name", user_name), ("web_service_access_only", "true")];
        let id = self.insert("sys_user", &fields)?;
        self.set_password(user_name, password);
        for role in roles {
            self.grant_role(user_name, role)?;
        }
        Ok(id)
    }

    /// Sets a user's password.
    pub fn set_password(&self, user_name: &str, password: &str) {
        let (user, password) = (user_name.to_owned(), password.to_owned());
        self.instance.change_secrets(|s| {
            s.passwords.insert(user, password);
        });
    }

    /// Sets the secret of an OAuth client.
    pub fn set_client_secret(&self, client_id: &str, secret: &str) -> Result<(), EditError> {
        let found = self.find("oauth_entity", &format!("client_id={client_id}"))?;
        let entity = found.into_iter().next().ok_or_else(|| EditError::NoRecord(client_id.to_owned()))?;
        let secret = secret.to_owned();
        self.instance.change_secrets(|s| {
            s.clients.insert(entity, secret);
        });
        Ok(())
    }

    /// Binds an API key to a user.
    pub fn add_api_key(&self, key: &str, user_name: &str) {
        let (key, user) = (key.to_owned(), user_name.to_owned());
        self.instance.change_secrets(|s| {
            s.api_keys.insert(key, user);
        });
    }

    /// Ends all OAuth tokens; refresh tokens too when asked to.
    pub fn expire_tokens(&self, refresh: bool) {
        if refresh { self.instance.tokens.expire_all() } else { self.instance.tokens.expire_access() }
    }

    /// Gives a user a role, making the role if need be.
    pub fn grant_role(&self, user_name: &str, role: &str) -> Result<(), EditError> {
        let user = self.user_id(user_name)?;
        let role_id = match self.find("sys_user_role", &format!("name={role}"))?.into_iter().next() {
            Some(id) => id,
            None => self.insert("sys_user_role", &[("name", role)])?,
        };
        self.insert("sys_user_has_role", &[("user", &user), ("role", &role_id)]).map(|_| ())
    }

    /// Takes a role from a user.
    pub fn revoke_role(&self, user_name: &str, role: &str) -> Result<usize, EditError> {
        let user = self.user_id(user_name)?;
        self.delete_where("sys_user_has_role", &format!("user={user}^role.name={role}"))
    }

    /// Adds an access rule.
    pub fn add_acl(&self, rule: AclRule) {
        self.instance.change_acl(|rules| rules.push(rule));
    }

    /// Takes all added access rules away.
    pub fn clear_acls(&self) {
        self.instance.change_acl(Vec::clear);
    }

    /// Adds a business rule.
    pub fn add_rule(&self, rule: BusinessRule) {
        self.instance.change_rules(|rules| rules.push(rule));
    }

    /// Takes the business rules of a name away; how many there were.
    pub fn remove_rule(&self, name: &str) -> usize {
        let mut removed = 0;
        self.instance.change_rules(|rules| {
            let before = rules.len();
            rules.retain(|r| r.name != name);
            removed = before - rules.len();
        });
        removed
    }
}
