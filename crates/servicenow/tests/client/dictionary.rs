use std::collections::BTreeMap;
use std::time::Duration;

use servicenow::Error;
use servicenow::dictionary::{self, ChoiceRule, FieldDef, Resolution, TableDef};

use crate::{HttpClient, basic, calls, client, instance, login, set_up, table};

async fn describe(client: &HttpClient, name: &str) -> Result<TableDef, Error> {
    let mut described = dictionary::fetch(client, &[table(name)]).await?;
    assert_eq!(described.len(), 1);
    described.remove(0).1
}

fn field<'d>(def: &'d TableDef, name: &str) -> &'d FieldDef {
    def.field(name).unwrap_or_else(|| panic!("{} has no {name}", def.name))
}

#[tokio::test]
async fn a_table_has_the_fields_of_those_it_extends() {
    let sim = instance().await;
    let incident = describe(&client(&sim), "incident").await.expect("it may be read");
    assert_eq!(incident.label, "Incident");
    assert_eq!(incident.chain, [table("incident"), table("task")]);
    let mut names: Vec<&str> = incident.fields.iter().map(|field| field.name.as_str()).collect();
    let truth = &sim.truth("incident", "admin").expect("a table")[0];
    names.sort_unstable();
    assert_eq!(names, truth.keys().map(String::as_str).collect::<Vec<_>>(), "all 92, each once");
    let position = |name: &str| incident.fields.iter().position(|field| field.name == name);
    assert!(position("short_description") < position("caller_id"), "the topmost table's come first");
    let guide = describe(&client(&sim), "sc_cat_item_guide").await.expect("it may be read");
    assert!(guide.field("two_step").is_some() && guide.field("price").is_some());
    let server = describe(&client(&sim), "cmdb_ci_linux_server").await.expect("it may be read");
    assert_eq!(server.chain.last(), Some(&table("cmdb")));
    assert!(server.field("name").is_some() && server.field("cpu_speed").is_some());
}

#[tokio::test]
async fn a_field_is_described_with_type_length_label_and_default() {
    let sim = instance().await;
    let incident = describe(&client(&sim), "incident").await.expect("it may be read");
    let caller = field(&incident, "caller_id");
    assert_eq!(
        (caller.label.as_str(), caller.internal_type.as_str(), caller.mandatory),
        ("Caller", "reference", true)
    );
    let text = field(&incident, "short_description");
    assert_eq!((text.internal_type.as_str(), text.max_length, text.mandatory), ("string", Some(160), false));
    assert_eq!(field(&incident, "opened_at").internal_type, "glide_date_time");
    assert_eq!(field(&incident, "priority").default_value, "5", "a child may have a default of its own");
    let problem = describe(&client(&sim), "problem").await.expect("it may be read");
    assert_eq!(field(&problem, "priority").default_value, "4");
    let widget = describe(&client(&sim), "u_pg_widget").await.expect("it may be read");
    assert!(field(&widget, "u_calculated").computed && !field(&widget, "u_name").computed);
}

#[tokio::test]
async fn a_reference_knows_which_field_of_its_table_is_shown() {
    let sim = instance().await;
    for user in ["fdw.integration", "itil.user"] {
        let incident = describe(&basic(&sim, user), "incident").await.expect("it may be read");
        for (name, target, shown) in [
            ("caller_id", "sys_user", "name"),
            ("problem_id", "problem", "number"),
            ("assignment_group", "sys_user_group", "name"),
            ("cmdb_ci", "cmdb_ci", "name"),
            ("rfc", "change_request", "number"),
        ] {
            let reference = field(&incident, name).reference.clone().unwrap_or_else(|| panic!("{name}"));
            assert_eq!(
                (reference.table.as_str(), reference.display_field.as_deref()),
                (target, Some(shown)),
                "{user} {name}"
            );
        }
    }
}

#[tokio::test]
async fn a_childs_choices_take_the_place_of_its_parents() {
    let sim = instance().await;
    let client = client(&sim);
    let labels = |def: &TableDef, name: &str| -> Vec<String> {
        field(def, name)
            .offers(None)
            .iter()
            .map(|choice| format!("{}={}", choice.value, choice.label))
            .collect()
    };
    let incident = describe(&client, "incident").await.expect("it may be read");
    assert_eq!(
        labels(&incident, "state"),
        ["1=New", "2=In Progress", "3=On Hold", "6=Resolved", "7=Closed", "8=Canceled"]
    );
    assert_eq!(field(&incident, "state").choice, ChoiceRule::Strict);
    let task = describe(&client, "sc_task").await.expect("it may be read");
    assert!(labels(&task, "state").contains(&"3=Closed Complete".to_owned()), "{:?}", labels(&task, "state"));
    assert_eq!(labels(&incident, "impact"), ["1=1 - High", "2=2 - Medium", "3=3 - Low"]);
    let widget = describe(&client, "u_pg_widget").await.expect("it may be read");
    assert_eq!(
        labels(&widget, "u_border_state"),
        labels(&incident, "state"),
        "choices borrowed from another table"
    );
    assert_eq!(field(&widget, "u_name").choice, ChoiceRule::None);
}

#[tokio::test]
async fn choices_know_what_they_depend_on_and_whether_they_are_still_offered() {
    let sim = instance().await;
    let incident = describe(&client(&sim), "incident").await.expect("it may be read");
    let subcategory = field(&incident, "subcategory");
    assert_eq!(subcategory.dependent_on.as_deref(), Some("category"));
    let value = |text: &str| Resolution::Value(text.to_owned());
    assert_eq!(subcategory.resolve_label("Keyboard", Some("hardware")), value("keyboard"));
    assert_eq!(subcategory.resolve_label("Keyboard", Some("database")), Resolution::Unknown);
    assert_eq!(subcategory.resolve_label("Email", None), value("email"), "two categories share it");
    let state = field(&incident, "incident_state");
    assert!(state.choices.iter().any(|choice| choice.value == "4" && choice.inactive));
    assert!(!state.offers(None).iter().any(|choice| choice.value == "4"));
    assert_eq!(
        field(&incident, "state").resolve_label("Angehalten", None),
        value("3"),
        "labels of every language count"
    );
}

/// The platform's own forms show every user what the dictionary hides from most.
#[tokio::test]
async fn a_user_without_rights_to_the_dictionary_gets_the_same_fields() {
    let sim = instance().await;
    let (reader, fulfiller) = (client(&sim), basic(&sim, "itil.user"));
    let mut different = Vec::new();
    for name in [
        "incident",
        "problem",
        "change_request",
        "sc_req_item",
        "sc_cat_item_guide",
        "cmdb_ci_linux_server",
        "sys_user",
        "u_pg_widget",
        "x_acme_app_thing",
    ] {
        let (full, seen) = (
            describe(&reader, name).await.expect("it may be read"),
            describe(&fulfiller, name).await.expect("it may be seen"),
        );
        let facts = |def: &TableDef| -> BTreeMap<String, String> {
            def.fields
                .iter()
                .map(|field| {
                    let mut offers: Vec<(&str, &str)> =
                        field.offers(None).iter().map(|c| (c.value.as_str(), c.label.as_str())).collect();
                    offers.sort_unstable();
                    // Of lists, the forms do not say what they list.
                    let reference = field.reference.as_ref().filter(|_| field.internal_type == "reference");
                    let facts = format!(
                        "{} {} {:?} {:?} {:?} {} {} {offers:?}",
                        field.label,
                        field.internal_type,
                        field.max_length,
                        reference,
                        field.choice,
                        field.mandatory,
                        field.default_value
                    );
                    (field.name.clone(), facts)
                })
                .collect()
        };
        let (full, seen) = (facts(&full), facts(&seen));
        for (field, described) in &seen {
            if full.get(field) != Some(described) {
                different.push(format!("{name}.{field}: {:?} {described}", full.get(field)));
            }
        }
        // A password is nobody's business but an administrator's.
        let missing: Vec<&String> = full.keys().filter(|field| !seen.contains_key(*field)).collect();
        assert!(missing.iter().all(|field| *field == "user_password"), "{name} {missing:?}");
    }
    assert!(different.is_empty(), "{different:#?}");
}

#[tokio::test]
async fn fields_the_user_may_not_see_are_not_described() {
    let sim = instance().await;
    let incident = describe(&basic(&sim, "ess.user"), "incident").await.expect("it may be seen");
    assert!(incident.field("short_description").is_some() && incident.field("work_notes").is_none());
}

#[tokio::test]
async fn several_tables_are_described_together_and_fail_apart() {
    let sim = instance().await;
    for user in ["fdw.integration", "itil.user"] {
        let tables = ["incident", "no_such_table", "problem", "u_pg_hidden"].map(table);
        let described = dictionary::fetch(&basic(&sim, user), &tables).await.expect("most of them are there");
        let names: Vec<&str> = described.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["incident", "no_such_table", "problem", "u_pg_hidden"], "in the order asked for");
        assert!(described[0].1.is_ok() && described[2].1.is_ok(), "{user}");
        assert!(
            matches!(&described[1].1, Err(Error::NoTable(words)) if words.message == "Invalid table no_such_table"),
            "{user}: {:?}",
            described[1].1
        );
    }
}

#[tokio::test]
async fn a_table_without_rights_is_refused() {
    let sim = instance().await;
    // Its rows are hidden by an empty answer, and its dictionary by the forms' endpoint.
    let outcome = describe(&basic(&sim, "ess.user"), "sys_script").await;
    assert!(matches!(outcome, Err(Error::Refused { .. })), "{outcome:?}");
}

#[tokio::test]
async fn every_user_can_list_the_tables_there_are_for_them() {
    let sim = instance().await;
    for user in ["fdw.integration", "itil.user", "ess.user"] {
        let tables = dictionary::list_tables(&basic(&sim, user)).await.expect("a list");
        let label = |name: &str| tables.iter().find(|t| t.name.as_str() == name).map(|t| t.label.as_str());
        assert_eq!(label("incident"), Some("Incident"), "{user}");
        assert_eq!(label("u_pg_widget"), Some("Widget"), "{user}");
        assert!(tables.is_sorted_by(|a, b| a.name < b.name), "{user}: in order, each once");
    }
}

#[tokio::test]
async fn a_dictionary_that_cannot_be_read_for_the_moment_is_not_taken_for_a_hidden_one() {
    use servicenow_sim::{Effect, Fault};
    let sim = instance().await;
    for table in ["sys_db_object", "sys_dictionary", "sys_choice"] {
        let fault = sim.fault(Fault::new(Effect::Status { status: 503, html: true }).table(table));
        let outcome = describe(&client(&sim), "incident").await;
        assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{table}: {outcome:?}");
        sim.remove_fault(fault);
    }
}

#[tokio::test]
async fn a_list_that_takes_too_long_is_read_in_smaller_pages() {
    use servicenow_sim::{Effect, Fault};
    let sim = instance().await;
    sim.fault(Fault::new(Effect::Hang).table("sys_db_object").path("sysparm_limit=(1000|500)&"));
    let impatient = set_up(sim.url(), login("fdw.integration"), |_, options| {
        options.request_timeout = Duration::from_millis(500);
    });
    let tables = dictionary::list_tables(&impatient.expect("a client")).await.expect("a list");
    assert!(tables.iter().any(|summary| summary.name == table("incident")));
    let asked = calls(&sim, "GET");
    let asked: Vec<_> = asked.iter().filter_map(|call| call.parameter("sysparm_limit")).collect();
    assert_eq!(asked[..3], ["1000", "500", "250"], "none of them twice");
}
