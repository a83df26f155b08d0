//! The captured incident INC0000060 with everything it refers to, so that our answer can be held against the real one
//! (`tests/captures/incident_list_v2_with_headers.json`).

use serde_json::Value;

use crate::dictionary::Seeder;
use crate::ident;
use crate::store::Db;

const CAPTURE: &str = include_str!("../../tests/captures/incident_list_v2_with_headers.json");

/// Records that the capture refers to: table, id, display column, display value.
const REFERRED: &[(&str, &str, &str, &str)] = &[
    ("sys_user", "5137153cc611227c000bbd1bd8cd2007", "name", "David Loo"),
    ("sys_user", "681ccaf9c0a8016400b98a06818d57c7", "name", "Joe Employee"),
    ("sys_user_group", "287ebd7da9fe198100f92cc8d1d2154e", "name", "Network"),
    ("cmdb_ci", "109562a3c611227500a7b7ff98cc0dc7", "name", "Storage Area Network 001"),
    ("cmdb_ci_service", "27d32778c0a8000b00db970eeaa60f16", "name", "Email"),
    ("core_company", "31bea3d53790200044e0bfc8bcbe5dec", "name", "ACME North America"),
];

/// Journal entries of the incident: column, time, user, text.
const NOTES: &[(&str, &str, &str, &str)] = &[
    ("comments", "2016-12-12 15:19:57", "employee", "I cannot reach the mail server."),
    ("comments", "2016-12-12 18:52:42", "david.loo", "Are you on the VPN?\nSince when?"),
    ("work_notes", "2016-12-12 17:01:24", "david.loo", "Set the right configuration item"),
    ("comments", "2016-12-13 20:30:14", "employee", "That must be it. Please close."),
];

/// Adds the incident.
pub(crate) fn add(db: &mut Db) {
    for (table, id, column, value) in REFERRED {
        let seeder = Seeder::new(db, table, "admin", "2012-02-17 19:04:49");
        let user = match *value {
            "David Loo" => "david.loo",
            "Joe Employee" => "employee",
            _ => "",
        };
        let mut fields = vec![("sys_id", *id), (*column, *value)];
        if !user.is_empty() {
            fields.push(("user_name", user));
        }
        seeder.add(db, &fields);
    }
    let capture: Value = serde_json::from_str(CAPTURE).expect("the capture is JSON");
    let row = capture["body"]["result"][0].as_object().expect("the capture has a row");
    let fields: Vec<(&str, &str)> = row
        .iter()
        .map(|(element, value)| {
            let text =
                value.as_str().or_else(|| value["value"].as_str()).expect("a value is text or a reference");
            (element.as_str(), text)
        })
        .collect();
    let seeder = Seeder::new(db, "incident", "employee", "2016-12-12 15:19:57");
    seeder.add(db, &fields);
    let journal = Seeder::new(db, "sys_journal_field", "employee", "2016-12-12 15:19:57");
    for (element, at, user, text) in NOTES {
        let id = ident::sys_id("sys_journal_field", at);
        journal.add(
            db,
            &[
                ("sys_id", &id),
                ("name", "incident"),
                ("element", element),
                ("element_id", "1c741bd70b2322007518478d83673af3"),
                ("value", text),
                ("sys_created_on", at),
                ("sys_created_by", user),
            ],
        );
    }
}
