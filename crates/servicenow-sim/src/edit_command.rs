//! Direct edits as JSON, for tests in other languages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::acl::AclRule;
use crate::edit::{Edit, EditError};
use crate::instance::Instance;
use crate::rules::BusinessRule;

/// A direct edit as JSON, for `POST /sim/edit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum EditCommand {
    /// Makes a record.
    Insert {
        /// The table.
        table: String,
        /// Its columns.
        fields: BTreeMap<String, String>,
        /// How.
        #[serde(flatten)]
        how: How,
    },
    /// Changes a record, or all records that match a query.
    Update {
        /// The table.
        table: String,
        /// The record.
        #[serde(default)]
        sys_id: Option<String>,
        /// The query, when no record is named.
        #[serde(default)]
        query: Option<String>,
        /// The columns.
        fields: BTreeMap<String, String>,
        /// How.
        #[serde(flatten)]
        how: How,
    },
    /// Deletes a record, or all records that match a query.
    Delete {
        /// The table.
        table: String,
        /// The record.
        #[serde(default)]
        sys_id: Option<String>,
        /// The query, when no record is named.
        #[serde(default)]
        query: Option<String>,
        /// How.
        #[serde(flatten)]
        how: How,
    },
    /// Renames a user.
    RenameUser {
        /// The user name.
        user: String,
        /// The new display name.
        name: String,
    },
    /// Relabels a choice.
    RelabelChoice {
        /// The table that defines the choice.
        table: String,
        /// The column.
        element: String,
        /// The value.
        value: String,
        /// The new label.
        label: String,
    },
    /// Adds a column.
    AddColumn {
        /// The table.
        table: String,
        /// The column.
        element: String,
        /// The label.
        label: String,
        /// The dictionary type.
        internal_type: String,
    },
    /// Drops a column.
    RemoveColumn {
        /// The table.
        table: String,
        /// The column.
        element: String,
    },
    /// Changes the label of a column.
    RetitleColumn {
        /// The table.
        table: String,
        /// The column.
        element: String,
        /// The new label.
        label: String,
    },
    /// Sets a system property.
    SetProperty {
        /// The name.
        name: String,
        /// The value.
        value: String,
    },
    /// Makes a user.
    AddUser {
        /// The user name.
        user: String,
        /// The password.
        password: String,
        /// The roles.
        #[serde(default)]
        roles: Vec<String>,
    },
    /// Sets a password.
    SetPassword {
        /// The user name.
        user: String,
        /// The password.
        password: String,
    },
    /// Gives a role.
    GrantRole {
        /// The user name.
        user: String,
        /// The role.
        role: String,
    },
    /// Takes a role away.
    RevokeRole {
        /// The user name.
        user: String,
        /// The role.
        role: String,
    },
    /// Binds an API key to a user.
    AddApiKey {
        /// The key.
        key: String,
        /// The user name.
        user: String,
    },
    /// Ends all OAuth tokens.
    ExpireTokens {
        /// The refresh tokens too.
        #[serde(default)]
        refresh: bool,
    },
    /// Adds an access rule.
    AddAcl {
        /// The rule.
        rule: AclRule,
    },
    /// Takes all added access rules away.
    ClearAcls,
    /// Adds a business rule.
    AddRule {
        /// The rule.
        rule: BusinessRule,
    },
    /// Takes a business rule away.
    RemoveRule {
        /// Its name.
        name: String,
    },
}

/// How a direct edit behaves; each flag left out is as in an ordinary script.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct How {
    /// `autoSysFields`.
    #[serde(default)]
    pub auto_sys_fields: Option<bool>,
    /// `setWorkflow`.
    #[serde(default)]
    pub workflow: Option<bool>,
    /// The user who edits.
    #[serde(default)]
    pub as_user: Option<String>,
}

impl How {
    fn apply<'a>(&self, mut edit: Edit<'a>) -> Edit<'a> {
        edit.options.auto_sys_fields = self.auto_sys_fields.unwrap_or(true);
        edit.options.workflow = self.workflow.unwrap_or(true);
        match &self.as_user {
            Some(user) => edit.as_user(user),
            None => edit,
        }
    }
}

fn pairs(fields: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    fields.iter().map(|(e, v)| (e.as_str(), v.as_str())).collect()
}

/// Carries out a command; the answer is the id, name or count it produced.
pub(crate) fn execute(instance: &Instance, command: EditCommand) -> Result<serde_json::Value, EditError> {
    let edit = Edit::new(instance);
    let every = |query: &Option<String>| query.clone().unwrap_or_default();
    Ok(match command {
        EditCommand::Insert { table, fields, how } => how.apply(edit).insert(&table, &pairs(&fields))?.into(),
        EditCommand::Update { table, sys_id: Some(id), fields, how, .. } => {
            how.apply(edit).update(&table, &id, &pairs(&fields))?;
            1.into()
        }
        EditCommand::Update { table, query, fields, how, .. } => {
            how.apply(edit).update_where(&table, &every(&query), &pairs(&fields))?.into()
        }
        EditCommand::Delete { table, sys_id: Some(id), how, .. } => {
            how.apply(edit).delete(&table, &id)?;
            1.into()
        }
        EditCommand::Delete { table, query, how, .. } => {
            how.apply(edit).delete_where(&table, &every(&query))?.into()
        }
        EditCommand::RenameUser { user, name } => {
            edit.rename_user(&user, &name)?;
            1.into()
        }
        EditCommand::RelabelChoice { table, element, value, label } => {
            edit.relabel_choice(&table, &element, &value, &label)?.into()
        }
        EditCommand::AddColumn { table, element, label, internal_type } => {
            edit.add_column(&table, &element, &label, &internal_type)?.into()
        }
        EditCommand::RemoveColumn { table, element } => {
            edit.remove_column(&table, &element)?;
            1.into()
        }
        EditCommand::RetitleColumn { table, element, label } => {
            edit.retitle_column(&table, &element, &label)?;
            1.into()
        }
        EditCommand::SetProperty { name, value } => {
            edit.set_property(&name, &value)?;
            1.into()
        }
        EditCommand::AddUser { user, password, roles } => {
            let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
            edit.add_user(&user, &password, &roles)?.into()
        }
        EditCommand::SetPassword { user, password } => {
            edit.set_password(&user, &password);
            1.into()
        }
        EditCommand::GrantRole { user, role } => {
            edit.grant_role(&user, &role)?;
            1.into()
        }
        EditCommand::RevokeRole { user, role } => edit.revoke_role(&user, &role)?.into(),
        EditCommand::AddApiKey { key, user } => {
            edit.add_api_key(&key, &user);
            1.into()
        }
        EditCommand::ExpireTokens { refresh } => {
            edit.expire_tokens(refresh);
            1.into()
        }
        EditCommand::AddAcl { rule } => {
            edit.add_acl(rule);
            1.into()
        }
        EditCommand::ClearAcls => {
            edit.clear_acls();
            1.into()
        }
        EditCommand::AddRule { rule } => {
            edit.add_rule(rule);
            1.into()
        }
        EditCommand::RemoveRule { name } => edit.remove_rule(&name).into(),
    })
}
