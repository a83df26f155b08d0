//! What capture needs in the instance: made, taken away, and done by hand.

use servicenow_sim::Dataset;
use world::{INTEGRATION, World};

use crate::{INCIDENT, captured, name, rules, until_state};

#[tokio::test(flavor = "multi_thread")]
async fn it_is_installed_once_however_often_it_is_asked_for_and_taken_away_whole() {
    let world = captured().await;
    let name = name(&world).await;
    let before = rules(&world, &name);
    world
        .db
        .run("SELECT servicenow.install_capture('acme'); SELECT servicenow.install_capture('acme')")
        .await;
    assert_eq!(rules(&world, &name), before);
    let tables = world.sim.edit().find("sys_db_object", &format!("label={name}")).expect("a query");
    assert_eq!(tables.len(), 1);
    // What an interrupted transaction has made is met again.
    world.db.run("BEGIN; SELECT servicenow.install_capture('acme'); ROLLBACK").await;
    assert_eq!(rules(&world, &name), before);
    let others = world.sim.edit().find("sys_script", "").expect("a query").len();
    world.db.run("SELECT servicenow.uninstall_capture('acme')").await;
    assert!(rules(&world, &name).is_empty());
    assert!(world.sim.edit().find("sys_db_object", &format!("label={name}")).expect("a query").is_empty());
    assert_eq!(world.sim.edit().find("sys_script", "").expect("a query").len(), others - before.len());
    until_state(&world, "absent").await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "polled")]).expect("it is there");
    world.until("SELECT short_description = 'polled' FROM incident WHERE number = 'INC0012345'").await;
}

/// Somebody gives rules another name, order or table; by hand they may have another end of their condition.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_were_renamed_are_known_all_the_same() {
    let world = captured().await;
    let name = name(&world).await;
    let edit = world.sim.edit();
    let before = rules(&world, &name);
    let (rule, _) = before[0].clone();
    for change in [("name", "mine"), ("collection", "problem"), ("active", "false")] {
        edit.update("sys_script", &rule, &[change]).expect("it is there");
        world.db.run("SELECT servicenow.install_capture('acme')").await;
        assert_eq!(rules(&world, &name), before, "{change:?}");
        assert_eq!(world.remote("sys_script", &rule, "active").as_deref(), Some("true"));
    }
    edit.update("sys_script", &rule, &[("filter_condition", "^EQ")]).expect("it is there");
    assert!(findings(&world).await.iter().all(|(_, ok, ..)| *ok));
    edit.update("sys_script", &rule, &[("name", "mine")]).expect("it is there");
    world.db.run("SELECT servicenow.uninstall_capture('acme')").await;
    assert_eq!(world.remote("sys_script", &rule, "name"), None);
    assert_eq!(world.sim.script_errors(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_capture_says_how_to() {
    let world = World::new().await;
    let error = world.db.error("SELECT servicenow.install_capture('acme')").await;
    assert_eq!((error.code().code(), error.message()), ("55000", "server \"acme\" does not capture changes"));
    assert_eq!(error.hint(), Some("ALTER SERVER acme OPTIONS (ADD capture 'queue');"));
    let error = world.db.error("SELECT servicenow.install_capture('nowhere')").await;
    assert_eq!(error.code().code(), "42704");
    let error = world.db.error("ALTER SERVER acme OPTIONS (ADD capture 'magic')").await;
    assert_eq!(
        (error.code().code(), error.hint()),
        ("22023", Some("Valid values are: poll, queue, webhook"))
    );
    world.db.run("ALTER SERVER acme OPTIONS (ADD capture 'webhook')").await;
    let error = world.db.error("SELECT servicenow.install_capture('acme')").await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("55000", "nobody listens for the webhooks of server \"acme\"")
    );
    let stranger = world.session_as("stranger").await;
    for call in ["install_capture('acme')", "uninstall_capture('acme')"] {
        let error = stranger.error(&format!("SELECT servicenow.{call}")).await;
        assert_eq!(error.code().code(), "42501");
    }
    let role = world.role("stranger");
    world.db.run(&format!("GRANT EXECUTE ON FUNCTION servicenow.install_capture(name) TO {role}")).await;
    let error = stranger.error("SELECT servicenow.install_capture('acme')").await;
    assert_eq!((error.code().code(), error.message()), ("42501", "must be owner of foreign server acme"));
}

/// Whoever lacks the rights is told what to do by hand; then that is found and used.
#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_installed_by_hand() {
    let world = World::with(Dataset::Small, ", capture 'queue'").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let error = world.db.error("SELECT servicenow.install_capture('acme')").await;
    assert_eq!(error.code().code(), "42501");
    assert!(
        error.message().starts_with("could not create the queue table on server \"acme\": "),
        "{error:?}"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("the role admin")), "{:?}", error.hint());
    let steps = error.detail().expect("the steps");
    let id = world.db.value::<String>("SELECT subscription FROM servicenow.stat_capture").await;
    let (name, queue) = (format!("servicenow_fdw {id}"), format!("u_servicenow_fdw_{id}"));
    for part in [&name, &queue, "u_sequence (40 characters)", "executeRule(current, previous", "incident"] {
        assert!(steps.contains(part), "{part}\n{steps}");
    }
    let status = "SELECT capture_state = 'absent' AND phase = 'synced' FROM servicenow.sync_status";
    assert!(world.db.value::<bool>(status).await, "it is polled");
    // An administrator follows them.
    let script = world.db.value::<String>("SELECT servicenow.capture_script('incident')").await;
    assert!(steps.contains(script.trim()), "{script}");
    let edit = world.sim.edit();
    let rule = [
        ("name", name.as_str()),
        ("collection", "incident"),
        ("when", "after"),
        ("order", "10000"),
        ("active", "true"),
        ("advanced", "true"),
        ("action_insert", "true"),
        ("action_update", "true"),
        ("action_delete", "true"),
        ("script", script.as_str()),
    ];
    edit.insert("sys_script", &rule).expect("a rule");
    edit.insert("sys_db_object", &[("name", &queue), ("label", &name)]).expect("a table");
    for column in ["u_table", "u_record", "u_operation", "u_mod_count", "u_updated_on", "u_sequence"] {
        let column = [("name", queue.as_str()), ("element", column), ("internal_type", "string")];
        edit.insert("sys_dictionary", &column).expect("a column");
    }
    // It is found by the worker, who may not see the rule and believes in it when it has told of something.
    until_state(&world, "silent").await;
    let id = world.find("incident", "number=INC0012345");
    edit.update("incident", &id, &[("short_description", "by hand")]).expect("it is there");
    world.until("SELECT short_description = 'by hand' FROM incident WHERE number = 'INC0012345'").await;
    until_state(&world, "active").await;
}

/// What `check_server` finds: check, whether it is fine, detail and hint.
async fn findings(world: &World) -> Vec<(String, bool, String, Option<String>)> {
    let rows = world.db.rows("SELECT \"check\", ok, detail, hint FROM servicenow.check_server('acme')").await;
    for row in &rows {
        assert_eq!(
            row.get::<_, bool>(1),
            row.get::<_, Option<String>>(3).is_none(),
            "what is wrong has a hint"
        );
    }
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_what_is_wrong_and_what_to_do() {
    let world = captured().await;
    let all = findings(&world).await;
    assert!(all.iter().all(|(_, ok, ..)| *ok), "{all:?}");
    // Another database's, or nobody's.
    let stray = [("name", "servicenow_fdw 0123456789ab"), ("collection", "problem")];
    world.sim.edit().insert("sys_script", &stray).expect("a rule");
    let all = findings(&world).await;
    let (_, ok, detail, _) =
        all.iter().find(|(check, ..)| check == "other subscriptions").expect("it is listed");
    assert!(*ok && detail.contains("\"servicenow_fdw 0123456789ab\""), "{detail}");
    let wrong = async || {
        let all = findings(&world).await;
        let (check, _, detail, hint) = all.into_iter().find(|(_, ok, ..)| !ok).expect("something is wrong");
        assert_eq!(check, "capture", "{detail}");
        (detail, hint.expect("what to do"))
    };
    let fine = async || findings(&world).await.iter().all(|(_, ok, ..)| *ok);
    // The worker would mend it.
    world.stop_worker().await;
    let edit = world.sim.edit();
    edit.revoke_role(INTEGRATION, "admin").expect("a role");
    let (detail, hint) = wrong().await;
    assert!(
        detail.contains("may not see Business Rules") && hint.contains("the role admin"),
        "{detail} {hint}"
    );
    edit.grant_role(INTEGRATION, "admin").expect("a role");
    assert!(fine().await, "the hint helps");
    let name = name(&world).await;
    let (rule, _) = rules(&world, &name).remove(0);
    let queue = edit.find("sys_db_object", &format!("label={name}")).expect("a query").remove(0);
    for (found, break_it) in [
        (
            "field \"script\" of the Business Rule",
            ("sys_script", rule.as_str(), Some(("script", "gs.info(1)"))),
        ),
        ("no Business Rule on incident", ("sys_script", rule.as_str(), None)),
        ("there is no queue table", ("sys_db_object", queue.as_str(), None)),
    ] {
        match break_it {
            (table, record, Some(field)) => edit.update(table, record, &[field]),
            (table, record, None) => edit.delete(table, record),
        }
        .expect("it is there");
        let (detail, hint) = wrong().await;
        assert!(detail.contains(found), "{detail}");
        world.db.run(&hint).await;
        assert!(fine().await, "the hint helps: {found}");
    }
    world.db.run("SELECT servicenow.uninstall_capture('acme')").await;
    edit.revoke_role(INTEGRATION, "admin").expect("a role");
    let (detail, hint) = wrong().await;
    assert!(detail.contains("\"sys_script\"") && hint.contains("the role admin"), "{detail} {hint}");
    edit.grant_role(INTEGRATION, "admin").expect("a role");
    let (_, hint) = wrong().await;
    world.db.run(&hint).await;
    assert!(fine().await, "the hint helps");
    world.db.run("ALTER SERVER acme OPTIONS (SET capture 'webhook')").await;
    let (detail, hint) = wrong().await;
    assert!(detail.contains("nobody listens") && hint.contains("listen_address"), "{detail} {hint}");
    let first = async || findings(&world).await.into_iter().find(|(_, ok, ..)| !ok).map(|(check, ..)| check);
    world.sim.clock().step(chrono::TimeDelta::hours(1));
    assert_eq!(first().await.as_deref(), Some("clock"));
    world.sim.set(|s| s.availability = servicenow_sim::Availability::Unreachable);
    assert_eq!(first().await.as_deref(), Some("reachability"));
    world.db.run("DROP USER MAPPING FOR PUBLIC SERVER acme").await;
    assert_eq!(first().await.as_deref(), Some("user mapping"));
}
