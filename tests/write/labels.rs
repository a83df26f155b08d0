//! From what people see to what is stored: choices, references, and the stored value beside them.

use world::World;

use crate::{KNOWN, incidents, known, world_with};

/// The record's stored value after an update of the incident everybody knows.
macro_rules! after {
    ($world:expr, $assignment:expr, $field:expr) => {{
        $world.db.run(&format!("UPDATE incident SET {} WHERE {KNOWN}", $assignment)).await;
        $world.remote("incident", &known(&$world), $field).expect("the record is there")
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_is_sent_as_the_value_behind_it() {
    let world = incidents().await;
    assert_eq!(after!(world, "contact_type = 'Self-service'", "contact_type"), "self-service");
    assert_eq!(after!(world, "approval = 'Not Yet Requested'", "approval"), "not requested");
    // What is stored stands for itself where no label reads like it, and labels of other languages do too.
    assert_eq!(after!(world, "category = 'network'", "category"), "network");
    assert_eq!(after!(world, "state = 'Angehalten'", "state"), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_means_the_choice_that_goes_with_the_field_it_depends_on() {
    let world = incidents().await;
    assert_eq!(
        after!(world, "category = 'Database', subcategory = 'MS SQL Server'", "subcategory"),
        "sql server"
    );
    assert_eq!(after!(world, "subcategory = 'Oracle'", "subcategory"), "oracle");
    assert_eq!(after!(world, "subcategory_value = 'db2'", "subcategory"), "db2");
    let patches = world.writes().len();
    let error = world.db.error(&format!("UPDATE incident SET subcategory = 'Keyboard' WHERE {KNOWN}")).await;
    assert_eq!(error.message(), "[ServiceNow] Value `Keyboard` is not a valid value for `subcategory`.");
    assert_eq!(error.code().code(), "23514");
    assert_eq!(
        error.hint(),
        Some("Valid values are: DB2 (db2), MS SQL Server (sql server), Oracle (oracle).")
    );
    assert_eq!(world.writes().len(), patches);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependent_label_goes_with_the_value_set_beside_it_in_an_insert() {
    let world = incidents().await;
    let row = world
        .db
        .rows(
            "INSERT INTO incident (short_description, category_value, subcategory) VALUES ('x', 'software', 'Email')
               RETURNING sys_id, subcategory_value, category",
        )
        .await;
    assert_eq!((row[0].get::<_, &str>(1), row[0].get::<_, &str>(2)), ("email", "Software"));
    let error = world
        .db
        .error("INSERT INTO incident (short_description, category, subcategory) VALUES ('y', 'Software', 'Keyboard')")
        .await;
    assert_eq!(error.code().code(), "23514");
    assert!(world.sim.edit().find("incident", "short_description=y").expect("a query").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_value_that_is_no_choice_is_refused_before_any_call() {
    let world = incidents().await;
    let error = world.db.error(&format!("UPDATE incident SET state_value = 99 WHERE {KNOWN}")).await;
    assert_eq!(error.message(), "[ServiceNow] Value `99` is not a valid value for `state`.");
    assert_eq!(error.code().code(), "23514");
    assert!(error.hint().is_some_and(|hint| hint.contains("New (1), In Progress (2)")), "{:?}", error.hint());
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_added_in_the_instance_is_accepted() {
    let world = incidents().await;
    let choice = [
        ("name", "incident"),
        ("element", "category"),
        ("value", "weather"),
        ("label", "Weather"),
        ("language", "en"),
        ("sequence", "9"),
    ];
    world.sim.edit().insert("sys_choice", &choice).expect("a valid record");
    assert_eq!(after!(world, "category = 'Weather'", "category"), "weather");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_is_found_by_the_name_of_its_record() {
    let world = incidents().await;
    let admin = world.find("sys_user", "user_name=admin");
    assert_eq!(after!(world, "assigned_to = 'System Administrator'", "assigned_to"), admin);
    let group = world.find("sys_user_group", "name=Service Desk");
    assert_eq!(after!(world, "assignment_group = 'Service Desk'", "assignment_group"), group);
    // A name as it is written comes before one that only compares equal in the instance.
    let other =
        world.sim.edit().insert("sys_user", &[("user_name", "loud"), ("name", "GURNEY HALLECK")]).unwrap();
    assert_eq!(after!(world, "assigned_to = 'GURNEY HALLECK'", "assigned_to"), other);
    let quoted =
        world.sim.edit().insert("sys_user", &[("user_name", "o"), ("name", "Miles O'Brien & \"Co\"=1")]);
    assert_eq!(after!(world, "assigned_to = 'Miles O''Brien & \"Co\"=1'", "assigned_to"), quoted.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_record_has_is_refused() {
    let world = incidents().await;
    let error =
        world.db.error(&format!("UPDATE incident SET assigned_to = 'Nobody Here' WHERE {KNOWN}")).await;
    assert_eq!(error.message(), "[ServiceNow] Value `Nobody Here` is not a valid value for `assigned_to`.");
    assert_eq!(error.code().code(), "23514");
    assert_eq!(error.detail(), Some("Table \"sys_user\" has no record of this name."));
    assert!(error.hint().is_some_and(|hint| hint.contains("assigned_to_value")), "{:?}", error.hint());
    assert!(world.writes().is_empty());
}

/// The instance compares without regard to case, and shows so many at a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_more_records_than_are_looked_at_is_refused() {
    let world = incidents().await;
    let called = |n: u32, name: &str| {
        let (sys_id, user) = (format!("{n:032x}"), format!("twin.{n}"));
        let fields = [("sys_id", sys_id.as_str()), ("user_name", user.as_str()), ("name", name)];
        world.sim.edit().insert("sys_user", &fields).expect("a user");
    };
    (1..20).for_each(|n| called(n, "twin person"));
    (20..22).for_each(|n| called(n, "Twin Person"));
    let error =
        world.db.error(&format!("UPDATE incident SET assigned_to = 'Twin Person' WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "23514");
    assert_eq!(error.detail(), Some("Table \"sys_user\" has several records of this name."));
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_several_records_have_is_refused() {
    let world = incidents().await;
    for user in ["twin.1", "twin.2"] {
        world.sim.edit().insert("sys_user", &[("user_name", user), ("name", "Twin Person")]).unwrap();
    }
    let error =
        world.db.error(&format!("UPDATE incident SET assigned_to = 'Twin Person' WHERE {KNOWN}")).await;
    assert_eq!(error.code().code(), "23514");
    assert_eq!(error.detail(), Some("Table \"sys_user\" has several records of this name."));
    assert!(error.hint().is_some_and(|hint| hint.contains("assigned_to_value")), "{:?}", error.hint());
    assert!(world.writes().is_empty());
    let twin = world.find("sys_user", "user_name=twin.2");
    assert_eq!(after!(world, format!("assigned_to_value = '{twin}'"), "assigned_to"), twin);
    let shown = format!("SELECT assigned_to FROM incident WHERE {KNOWN}");
    assert_eq!(world.db.value::<String>(&shown).await, "Twin Person");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_cannot_stand_in_a_query_is_refused_before_any_call() {
    let world = incidents().await;
    world.sim.edit().insert("sys_user", &[("user_name", "caret"), ("name", "a^active=true")]).unwrap();
    for name in ["a^active=true", "javascript:gs.getUserDisplayName()"] {
        let error =
            world.db.error(&format!("UPDATE incident SET assigned_to = '{name}' WHERE {KNOWN}")).await;
        assert_eq!(error.code().code(), "23514", "{}", error.message());
        assert!(error.hint().is_some_and(|hint| hint.contains("assigned_to_value")), "{:?}", error.hint());
    }
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn label_and_value_may_be_set_together_if_they_agree() {
    let world = incidents().await;
    assert_eq!(after!(world, "state = 'On Hold', state_value = 3", "state"), "3");
    let patches = world.writes().len();
    for contradiction in
        ["state = 'New', state_value = 2", "assigned_to = 'System Administrator', assigned_to_value = 'abc'"]
    {
        let error = world.db.error(&format!("UPDATE incident SET {contradiction} WHERE {KNOWN}")).await;
        assert_eq!(error.code().code(), "22023", "{}", error.message());
    }
    let error = world.db.error("INSERT INTO incident (state, state_value) VALUES ('New', 2)").await;
    assert_eq!(error.code().code(), "22023", "{}", error.message());
    assert_eq!(world.writes().len(), patches);
}

/// One of two columns of a field seems unchanged only because the cache has it already.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_contradicts_the_value_is_refused_although_one_of_them_is_as_it_was() {
    let world = incidents().await;
    let error = world
        .db
        .error(&format!("UPDATE incident SET state = 'In Progress', state_value = 3 WHERE {KNOWN}"))
        .await;
    assert_eq!(error.code().code(), "22023", "{}", error.message());
    assert!(world.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_stored_values_is_written_by_its_labels() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE SCHEMA labels;
             IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO labels OPTIONS (values 'false')",
        )
        .await;
    world.sync("labels.incident").await;
    let row = world
        .db
        .rows(&format!(
            "UPDATE labels.incident SET state = 'On Hold', assigned_to = 'System Administrator', subcategory = 'Disk'
             WHERE {KNOWN} RETURNING state, assigned_to, subcategory"
        ))
        .await;
    let shown: Vec<&str> = (0..3).map(|column| row[0].get(column)).collect();
    assert_eq!(shown, ["On Hold", "System Administrator", "Disk"]);
    let record = world.sim.record("incident", &known(&world)).expect("it is there");
    assert_eq!((record["state"].as_str(), record["subcategory"].as_str()), ("3", "disk"));
}

/// What a session remembers of names does not outlive what it does to them itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_looked_up_again_when_this_session_has_written_its_table() {
    let world = world_with(&["incident", "\"user\""]).await;
    let refer = "INSERT INTO incident (short_description, caller_id) VALUES ('x', 'New Guy') RETURNING caller_id_value";
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    let admin = world.session_of("boss", "admin", "admin").await;
    admin.run("INSERT INTO \"user\" (user_name, name) VALUES ('new.guy', 'New Guy')").await;
    let first: String = admin.value(refer).await;
    admin.run(&format!("DELETE FROM \"user\" WHERE sys_id = '{first}'")).await;
    let error = admin.error(refer).await;
    assert_eq!(error.code().code(), "23514", "{}", error.message());
    admin.run("INSERT INTO \"user\" (user_name, name) VALUES ('new.guy.2', 'New Guy')").await;
    assert_ne!(admin.value::<String>(refer).await, first);
    admin.run("INSERT INTO \"user\" (user_name, name) VALUES ('new.guy.3', 'New Guy')").await;
    assert_eq!(admin.error(refer).await.code().code(), "23514", "there are two");
}

/// A record of a child table is one of its parent's, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_looked_up_again_when_this_session_has_written_a_child_of_its_table() {
    let world = world_with(&["incident", "cmdb_ci_linux_server"]).await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '1h')").await;
    let admin = world.session_of("boss", "admin", "admin").await;
    admin.run("INSERT INTO cmdb_ci_linux_server (name) VALUES ('Box One')").await;
    let refer = "INSERT INTO incident (short_description, cmdb_ci) VALUES ('x', 'Box One')";
    admin.run(refer).await;
    admin.run("UPDATE cmdb_ci_linux_server SET name = 'Box Two' WHERE name = 'Box One'").await;
    assert_eq!(admin.error(refer).await.code().code(), "23514");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_looked_up_again_when_the_sync_has_brought_another_one() {
    let world = world_with(&["incident", "cmdb_ci_linux_server"]).await;
    let refer = "INSERT INTO incident (short_description, cmdb_ci) VALUES ('x', 'Box One')";
    let edit = world.sim.edit();
    let id = edit.insert("cmdb_ci_linux_server", &[("name", "Box One")]).expect("a record");
    world.db.run(refer).await;
    edit.update("cmdb_ci_linux_server", &id, &[("name", "Box Two")]).expect("it is there");
    world.sync("cmdb_ci_linux_server").await;
    assert_eq!(world.db.error(refer).await.code().code(), "23514");
}

/// Lookups of users so far.
fn lookups(world: &World) -> usize {
    let is_lookup = |r: &servicenow_sim::LoggedRequest| {
        r.method == "GET"
            && r.table.as_deref() == Some("sys_user")
            && r.query.iter().any(|(_, value)| value.contains("System Administrator"))
    };
    world.sim.requests().iter().filter(|r| is_lookup(r)).count()
}

/// What a session remembers of names may be its own work, which a rollback takes back.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_forgotten_at_a_rollback() {
    let world = incidents().await;
    world.stop_worker().await;
    let refer = format!("UPDATE incident SET assigned_to = 'System Administrator' WHERE {KNOWN}");
    let other = format!("UPDATE incident SET assigned_to_value = NULL WHERE {KNOWN}");
    world.db.run(&refer).await;
    let once = lookups(&world);
    assert!(once > 0, "{:?}", world.sim.requests());
    world.db.run(&other).await;
    world.db.run(&refer).await;
    assert_eq!(lookups(&world), once, "it is remembered");
    for end in ["ROLLBACK", "SAVEPOINT s; SELECT 1; ROLLBACK TO s; COMMIT"] {
        let before = lookups(&world);
        world.db.run(&format!("BEGIN; {other}; {end}")).await;
        world.db.run(&format!("{other}; {refer}")).await;
        assert_eq!(lookups(&world), before + 1, "{end}");
    }
}

/// What the instance was asked about users.
fn look_ups(world: &World) -> usize {
    let of_users = |r: &&servicenow_sim::LoggedRequest| r.table.as_deref() == Some("sys_user");
    world.sim.requests().iter().filter(of_users).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_names_in_a_statement_are_looked_up_in_few_calls() {
    let world = incidents().await;
    world.stop_worker().await;
    let edit = world.sim.edit();
    let user = |n: usize| {
        // Of any length, and with what addresses and queries make something else of.
        let name = format!("Nämé, {n} & {}", "x".repeat(n % 40));
        let (first, last) = name.split_once(' ').expect("two words");
        let id = edit.insert("sys_user", &[("first_name", first), ("last_name", last), ("name", &name)]);
        (name, id.expect("a user"))
    };
    let plain = |n: usize| {
        let (first, last) = (format!("Nora{n}"), "N".repeat(1 + n % 60));
        let name = format!("{first} {last}");
        let id = edit.insert("sys_user", &[("first_name", &first), ("last_name", &last), ("name", &name)]);
        (name, id.expect("a user"))
    };
    let mut users: Vec<(String, String)> = (0..150).map(plain).collect();
    users.extend((0..2).map(user));
    let values: Vec<String> = users.iter().map(|(name, _)| format!("('{name}')")).collect();
    let insert = format!("INSERT INTO incident (assigned_to) SELECT * FROM (VALUES {}) v", values.join(", "));
    let before = look_ups(&world);
    world.db.run(&insert).await;
    let made = look_ups(&world) - before;
    assert!(made <= 6, "{made} look-ups");
    let assigned = |(name, id): &(String, String)| {
        let found = world.sim.edit().find("incident", &format!("assigned_to={id}")).expect("a query");
        assert_eq!(found.len(), 1, "{name}");
    };
    users.iter().for_each(assigned);
    // Whatever else a statement has to do with them.
    world.db.run("RESET ALL").await;
    let other = world.session().await;
    let before = look_ups(&world);
    let update = format!(
        "UPDATE incident SET caller_id = name FROM (VALUES {}) v (name) WHERE assigned_to = name",
        values.join(", ")
    );
    other.run(&format!("LOAD 'servicenow_fdw'; {update}")).await;
    let made = look_ups(&world) - before;
    assert!(made <= 6, "{made} look-ups");
    for (name, id) in &users {
        let found =
            world.sim.edit().find("incident", &format!("assigned_to={id}^caller_id={id}")).expect("a query");
        assert_eq!(found.len(), 1, "{name}");
    }
    // One that is not there, and one that is there twice.
    let twin = [("first_name", "Nora7"), ("last_name", "NNNNNNNN"), ("name", "Nora7 NNNNNNNN")];
    edit.insert("sys_user", &twin).expect("a user");
    let fresh = world.session().await;
    for (name, how_many) in [("Nora7 NNNNNNNN", "several records"), ("Nobody", "no record")] {
        let writes = world.writes().len();
        let error = fresh
            .error(&format!(
                "INSERT INTO incident (assigned_to) VALUES ('{}'), ('{name}'), ('{}')",
                users[0].0, users[1].0
            ))
            .await;
        assert_eq!(error.code().code(), "23514", "{}", error.message());
        let detail = format!("Table \"sys_user\" has {how_many} of this name.");
        assert_eq!(error.detail(), Some(detail.as_str()));
        assert_eq!(world.writes().len(), writes);
    }
}

/// What needs no call comes first.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_looked_up_only_for_rows_that_may_be_written() {
    let world = incidents().await;
    world.stop_worker().await;
    world
        .db
        .run("ALTER FOREIGN TABLE incident ADD COLUMN caller_email text OPTIONS (field 'caller_id.email')")
        .await;
    let before = look_ups(&world);
    for (assignment, code) in [
        ("assigned_to = 'System Administrator', caller_email = 'x'", "0A000"),
        ("assigned_to = 'System Administrator', state = 'invalid-state'", "23514"),
    ] {
        let error = world.db.error(&format!("UPDATE incident SET {assignment} WHERE {KNOWN}")).await;
        assert_eq!(error.code().code(), code, "{}", error.message());
    }
    assert_eq!(look_ups(&world), before);
}
