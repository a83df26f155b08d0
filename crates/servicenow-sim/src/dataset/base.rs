//! What every instance has: users with their roles, the OAuth client, properties, the record everybody knows.

use crate::acl::Operation;
use crate::dictionary::{BASE_STAMP, Seeder};
use crate::ident;
use crate::instance::Secrets;
use crate::oauth::JwtKey;
use crate::rules::{BusinessRule, Phase, RuleEffect};
use crate::store::Db;
use crate::users::METADATA_ROLE;

/// A user who can log in: user name, password, first name, last name, roles, time zone, date format, language.
type Login = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
    &'static str,
    &'static str,
);

/// The users of facts §9 and of the crate's documentation.
const LOGINS: &[Login] = &[
    ("admin", "admin", "System", "Administrator", &["admin"], "", "", ""),
    (
        "fdw.integration",
        "fdw-secret",
        "FDW",
        "Integration",
        &["itil", "itil_admin", METADATA_ROLE],
        "UTC",
        "",
        "",
    ),
    ("itil.user", "itil-secret", "Ivy", "Fulfiller", &["itil"], "", "", ""),
    ("ess.user", "ess-secret", "Ess", "Requester", &[], "", "", ""),
    (
        "readonly.user",
        "readonly-secret",
        "Rita",
        "Reader",
        &["itil", METADATA_ROLE, "snc_read_only"],
        "",
        "",
        "",
    ),
    ("pacific.user", "pacific-secret", "Paul", "Pacific", &["itil"], "America/Los_Angeles", "", ""),
    ("german.user", "german-secret", "Greta", "Deutsch", &["itil"], "Europe/Berlin", "dd.MM.yyyy", "de"),
];

const ROLES: &[&str] = &[
    "admin",
    "itil",
    "itil_admin",
    "snc_read_only",
    "personalize_dictionary",
    "audit_viewer",
    "catalog_admin",
    "user_admin",
    "oauth_admin",
    "rate_limit_admin",
    "snc_basic_auth_api_access",
    "query_no_domain_table_api",
    "sn_incident_read",
    "sn_incident_write",
    "sn_problem_read",
    "sn_problem_write",
    "sn_change_read",
    "sn_change_write",
    "sn_request_read",
    "sn_request_write",
    METADATA_ROLE,
];

/// The id of Gurney Halleck, to whom INC0012345 is assigned.
pub(crate) const GURNEY: &str = "46d44a40c0a8016400b98a0681a55e77";

/// The number of the incident of the project's own demonstration.
pub(crate) const KNOWN_NUMBER: &str = "INC0012345";

/// The id of a user who can log in.
pub(crate) fn login_id(user_name: &str) -> String {
    match user_name {
        "admin" => "6816f79cc0a8016401c5a33be04be441".to_owned(),
        other => ident::sys_id("sys_user", other),
    }
}

/// Child tables differ from their parents in defaults and labels (facts §7.1; the labels of facts §3's data policy).
pub(crate) fn add_overrides(db: &mut Db) {
    let Some(incident) = db.schema.find("incident") else { return };
    db.schema.overrides.insert((incident, "priority".to_owned()), "5".to_owned());
    db.labels.insert((incident, "close_code".to_owned()), "Resolution code".to_owned());
    db.labels.insert((incident, "close_notes".to_owned()), "Resolution notes".to_owned());
}

/// Adds what every instance has.
pub(crate) fn add(db: &mut Db) -> Secrets {
    add_metadata(db);
    let mut secrets = Secrets::default();
    let roles = Seeder::new(db, "sys_user_role", "system", BASE_STAMP);
    for role in ROLES {
        roles.add(db, &[("sys_id", &ident::sys_id("sys_user_role", role)), ("name", role)]);
    }
    let users = Seeder::new(db, "sys_user", "admin", BASE_STAMP);
    let grants = Seeder::new(db, "sys_user_has_role", "admin", BASE_STAMP);
    for (user_name, password, first, last, held, zone, date_format, language) in LOGINS {
        let id = login_id(user_name);
        users.add(
            db,
            &[
                ("sys_id", &id),
                ("user_name", user_name),
                ("first_name", first),
                ("last_name", last),
                ("name", &format!("{first} {last}")),
                ("email", &format!("{user_name}@example.com")),
                ("time_zone", zone),
                ("date_format", date_format),
                ("preferred_language", language),
                ("user_password", &ident::sys_id("hash", user_name)),
            ],
        );
        secrets.passwords.insert((*user_name).to_owned(), (*password).to_owned());
        for role in *held {
            let (role_id, grant) = (ident::sys_id("sys_user_role", role), format!("{user_name}.{role}"));
            grants.add(
                db,
                &[("sys_id", &ident::sys_id("sys_user_has_role", &grant)), ("user", &id), ("role", &role_id)],
            );
        }
    }
    users.add(
        db,
        &[
            ("sys_id", GURNEY),
            ("user_name", "gurney.halleck"),
            ("first_name", "Gurney"),
            ("last_name", "Halleck"),
            ("name", "Gurney Halleck"),
            ("email", "gurney.halleck@example.com"),
        ],
    );
    let groups = Seeder::new(db, "sys_user_group", "admin", BASE_STAMP);
    groups.add(db, &[("sys_id", &ident::sys_id("sys_user_group", "Warmasters")), ("name", "Warmasters")]);
    add_registry(db, &mut secrets);
    secrets
}

fn add_metadata(db: &mut Db) {
    let scopes = Seeder::new(db, "sys_scope", "system", BASE_STAMP);
    scopes.add(db, &[("sys_id", "global"), ("name", "Global"), ("scope", "global")]);
    scopes.add(
        db,
        &[
            ("sys_id", "x_acme_app"),
            ("name", "Acme App"),
            ("scope", "x_acme_app"),
            ("version", "1.0.0"),
            ("vendor", "Acme"),
        ],
    );
    let overrides = Seeder::new(db, "sys_dictionary_override", "system", BASE_STAMP);
    overrides.add(
        db,
        &[
            ("sys_id", &ident::sys_id("sys_dictionary_override", "incident.priority")),
            ("name", "incident"),
            ("base_table", "task"),
            ("element", "priority"),
            ("default_value_override", "true"),
            ("default_value", "5"),
        ],
    );
    let labels = Seeder::new(db, "sys_documentation", "system", BASE_STAMP);
    for (element, label) in [("close_code", "Resolution code"), ("close_notes", "Resolution notes")] {
        let id = ident::sys_id("sys_documentation", &format!("override.incident.{element}"));
        labels.add(db, &[("sys_id", &id), ("name", "incident"), ("element", element), ("label", label)]);
    }
    let labels_in_german = [("short_description", "Kurzbeschreibung"), ("state", "Status")];
    for (element, label) in labels_in_german {
        let id = ident::sys_id("sys_documentation", &format!("de.task.{element}"));
        labels.add(
            db,
            &[("sys_id", &id), ("name", "task"), ("element", element), ("label", label), ("language", "de")],
        );
    }
    let properties = Seeder::new(db, "sys_properties", "system", BASE_STAMP);
    for (name, value) in [
        ("glide.invalid_query.returns_no_rows", "false"),
        ("glide.rest.choice.allow_non_existing_value", "false"),
        ("glide.rest.table_api.admin_only_sys_fields", "false"),
        ("glide.oauth.inbound.client.credential.grant_type.enabled", "true"),
        ("glide.sys.default.tz", "UTC"),
        ("glide.product.name", "ServiceNow"),
    ] {
        properties
            .add(db, &[("sys_id", &ident::sys_id("sys_properties", name)), ("name", name), ("value", value)]);
    }
}

/// What checks the signatures made with [`crate::PRIVATE_KEY`].
const PUBLIC_KEY: &[u8] = include_bytes!("../../data/jwt/public_key.der");

/// The OAuth client whose application user is `fdw.integration`, and an API key for the same user.
fn add_registry(db: &mut Db, secrets: &mut Secrets) {
    let entities = Seeder::new(db, "oauth_entity", "admin", BASE_STAMP);
    let id = ident::sys_id("oauth_entity", "fdw-client");
    entities.add(
        db,
        &[
            ("sys_id", &id),
            ("name", "FDW client"),
            ("client_id", "fdw-client"),
            ("client_secret", &ident::sys_id("cipher", "fdw-client")),
            ("user", &login_id("fdw.integration")),
            ("redirect_url", "http://localhost/oauth/callback"),
        ],
    );
    let key = JwtKey { key_id: "fdw-key".to_owned(), public_key: PUBLIC_KEY.to_vec() };
    secrets.jwt_keys.insert("fdw-client".to_owned(), vec![key]);
    secrets.clients.insert(id, "fdw-client-secret".to_owned());
    secrets.api_keys.insert("fdw-api-key".to_owned(), "fdw.integration".to_owned());
}

/// The incident of the project's own demonstration: INC0012345, In Progress, assigned to Gurney Halleck.
pub(crate) fn add_known_incident(db: &mut Db) {
    let incidents = Seeder::new(db, "incident", "admin", "2026-02-03 08:30:00");
    let caller = login_id("ess.user");
    incidents.add(
        db,
        &[
            ("sys_id", &ident::sys_id("incident", KNOWN_NUMBER)),
            ("number", KNOWN_NUMBER),
            ("task_effective_number", KNOWN_NUMBER),
            ("state", "2"),
            ("incident_state", "2"),
            ("impact", "1"),
            ("urgency", "2"),
            ("priority", "2"),
            ("category", "hardware"),
            ("subcategory", "monitor"),
            ("contact_type", "phone"),
            ("short_description", "Shield generator hums in a minor key"),
            ("description", "It was in tune yesterday.\r\nPlease look before the banquet."),
            ("caller_id", &caller),
            ("opened_by", &caller),
            ("opened_at", "2026-02-03 08:30:00"),
            ("assigned_to", GURNEY),
            ("assignment_group", &ident::sys_id("sys_user_group", "Warmasters")),
            ("sys_mod_count", "3"),
            ("sys_updated_on", "2026-02-03 10:15:42"),
            ("sys_updated_by", "gurney.halleck"),
        ],
    );
    let last = db.numbers.entry("INC".to_owned()).or_insert(0);
    *last = (*last).max(12_345);
}

/// The rules that the instance starts with: one that refuses, so that refusals can be met without setting one up.
pub(crate) fn rules() -> Vec<BusinessRule> {
    vec![BusinessRule {
        name: "Acme guard".to_owned(),
        table: "x_acme_app_thing".to_owned(),
        phase: Phase::Before,
        operations: vec![Operation::Create, Operation::Write],
        condition: "nameLIKEforbidden".to_owned(),
        effect: RuleEffect::Abort,
    }]
}
