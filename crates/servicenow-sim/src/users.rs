//! Users and their roles (facts §9).

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::display::Profile;
use crate::query::Session;
use crate::store::{Db, RowId};

/// The role whose holder reads the metadata tables of facts §9 without being admin.
pub(crate) const METADATA_ROLE: &str = "x_fdw_metadata_reader";

/// Roles that a role contains.
const CONTAINED: &[(&str, &[&str])] = &[
    ("itil_admin", &["itil"]),
    (
        "itil",
        &[
            "sn_incident_read",
            "sn_incident_write",
            "sn_problem_read",
            "sn_problem_write",
            "sn_change_read",
            "sn_change_write",
            "sn_request_read",
            "sn_request_write",
        ],
    ),
];

/// Somebody who calls the instance.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    /// The caller's `sys_id`.
    pub(crate) sys_id: String,
    /// The caller's user name.
    pub(crate) user_name: String,
    /// All roles held, contained ones included.
    pub(crate) roles: HashSet<String>,
    /// How dates and labels are shown to the caller.
    pub(crate) profile: Profile,
}

impl Actor {
    /// The platform itself, as which server scripts run.
    pub(crate) fn system() -> Self {
        Self {
            sys_id: String::new(),
            user_name: "system".to_owned(),
            roles: HashSet::from(["admin".to_owned()]),
            profile: Profile::default(),
        }
    }

    /// The user of a row of `sys_user`.
    pub(crate) fn of(db: &Db, row: RowId) -> Self {
        let text = |element: &str| db.text(row, element);
        let zone = [text("time_zone"), db.property("glide.sys.default.tz")]
            .iter()
            .find_map(|z| z.parse::<Tz>().ok())
            .unwrap_or(Tz::UTC);
        let or = |value: String, default: &str| if value.is_empty() { default.to_owned() } else { value };
        let profile = Profile {
            zone,
            date_format: or(text("date_format"), "yyyy-MM-dd"),
            time_format: or(text("time_format"), "HH:mm:ss"),
            language: or(text("preferred_language"), "en"),
        };
        let sys_id = text("sys_id");
        Self { roles: roles_of(db, &sys_id), sys_id, user_name: text("user_name"), profile }
    }

    /// True when the caller holds a role; an admin holds all.
    pub(crate) fn has(&self, role: &str) -> bool {
        self.roles.contains(role) || self.roles.contains("admin")
    }

    /// True for an admin.
    pub(crate) fn is_admin(&self) -> bool {
        self.roles.contains("admin")
    }

    /// The session that the caller's queries run in.
    pub(crate) fn session(&self, now: DateTime<Utc>) -> Session {
        Session {
            now,
            zone: self.profile.zone,
            user_id: self.sys_id.clone(),
            user_name: self.user_name.clone(),
        }
    }
}

/// The row of a user by user name.
pub(crate) fn find(db: &Db, user_name: &str) -> Option<RowId> {
    let table = db.schema.find("sys_user")?;
    db.find_equal(table, "user_name", user_name)?.first().copied()
}

fn roles_of(db: &Db, user: &str) -> HashSet<String> {
    let mut roles = HashSet::new();
    let (Some(grants), Some(table)) = (db.schema.find("sys_user_has_role"), db.schema.find("sys_user_role"))
    else {
        return roles;
    };
    for grant in db.find_equal(grants, "user", user).unwrap_or_default() {
        if let Some(role) = db.find_val(table, db.value(grant, "role")) {
            roles.insert(db.text(role, "name"));
        }
    }
    for (role, contained) in CONTAINED {
        if roles.contains(*role) {
            roles.extend(contained.iter().map(|&c| c.to_owned()));
        }
    }
    roles
}
