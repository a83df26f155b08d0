//! What changes the rows of a table without touching them: names of referenced records, choices, the dictionary.

use world::World;

use crate::COLUMNS;

const INCIDENT: &str = "CREATE FOREIGN TABLE incident (
    sys_id text, number text, short_description text,
    state text OPTIONS (show 'label'), state_value text OPTIONS (field 'state'),
    caller_id text OPTIONS (show 'label'), caller_id_value text OPTIONS (field 'caller_id'),
    assigned_to text OPTIONS (show 'label'), sys_updated_on timestamptz, sys_updated_by text) SERVER acme";

async fn filled() -> World {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_user_is_renamed_wherever_somebody_refers_to_them() {
    let world = filled().await;
    let (caller, name, count): (String, String, i64) = {
        let row = &world
            .db
            .rows("SELECT caller_id_value, caller_id, count(*) FROM incident WHERE caller_id IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 1")
            .await[0];
        (row.get(0), row.get(1), row.get(2))
    };
    assert!(count > 1, "{name} has called once only");
    // Somebody holds one of the rows: that one follows when they are done.
    let holder = world.session().await;
    holder.run(&format!(
        "BEGIN; SELECT FROM incident WHERE sys_id = (SELECT min(sys_id) FROM incident WHERE caller_id_value = '{caller}') FOR UPDATE"
    ))
    .await;
    world.sim.edit().update("sys_user", &caller, &[("name", "Somebody Else")]).expect("a user");
    let renamed = format!(
        "SELECT count(*) FROM incident WHERE caller_id_value = '{caller}' AND caller_id = 'Somebody Else'"
    );
    world.until(&format!("SELECT ({renamed}) = {count} - 1")).await;
    holder.run("COMMIT").await;
    world.until(&format!("SELECT ({renamed}) = {count}")).await;
    let logged = "SELECT count(*) FROM servicenow._sync_cdc WHERE changed -> 'caller_id' ->> 'after' = 'Somebody Else'";
    assert_eq!(world.db.value::<i64>(logged).await, count);
    // When and by whom the row itself was changed.
    let stamped =
        "SELECT bool_and((c.sys_updated_on, c.sys_updated_by) = (i.sys_updated_on, i.sys_updated_by))
                   FROM servicenow._sync_cdc c JOIN incident i USING (sys_id) WHERE c.changed ? 'caller_id'";
    assert!(world.db.value::<bool>(stamped).await);
    // An unnamed record is shown as nothing.
    world.sim.edit().update("sys_user", &caller, &[("name", "")]).expect("a user");
    world
        .until(&format!(
            "SELECT bool_and(caller_id IS NULL) FROM incident WHERE caller_id_value = '{caller}'"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relabelled_choice_is_shown_by_its_new_label() {
    let world = filled().await;
    let count: i64 = world.db.value("SELECT count(*) FROM incident WHERE state = 'In Progress'").await;
    assert!(count > 0);
    world.sim.edit().relabel_choice("incident", "state", "2", "Under Way").expect("a choice");
    world
        .until(&format!(
            "SELECT count(*) = {count} FROM incident WHERE state = 'Under Way' AND state_value = '2'"
        ))
        .await;
    let drift =
        "SELECT string_agg(field || ' ' || change || ': ' || detail, ', ') FROM servicenow.schema_drift
                 WHERE foreign_table = 'incident'::regclass AND field = 'state'";
    assert_eq!(
        world.db.value::<Option<String>>(drift).await.as_deref(),
        Some("state choices: new: Under Way (2); gone: In Progress (2)")
    );
    // The new label is what a write says.
    world.db.run("UPDATE incident SET state = 'Under Way' WHERE number = 'INC0012345'").await;
    let id = world.find("incident", "number=INC0012345");
    assert_eq!(world.remote("incident", &id, "state").as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_come_and_go_are_told() {
    let world = filled().await;
    let drift =
        "SELECT coalesce(string_agg(format('%s %s %s', field, change, detail), ', ' ORDER BY field), '')
                 FROM servicenow.schema_drift WHERE foreign_table = 'incident'::regclass AND server = 'acme'";
    world.until("SELECT metadata_watermark IS NOT NULL FROM servicenow.sync_server").await;
    assert_eq!(world.db.value::<String>(drift).await, "");
    world.sim.edit().add_column("incident", "u_site", "Site", "string").expect("a column");
    world.until(&format!("SELECT ({drift}) = 'u_site added string (Site)'")).await;
    world.db.run("ALTER FOREIGN TABLE incident ADD u_site text").await;
    assert_eq!(world.db.value::<String>(drift).await, "");
    world.sync("incident").await;
    let id = world.sim.edit().insert("incident", &[("u_site", "here")]).expect("a record");
    world
        .until(&format!("SELECT count(*) = 1 FROM incident WHERE sys_id = '{id}' AND u_site = 'here'"))
        .await;
}

/// Its column has no values any more, which is said; the other columns go on. What never was there is a mistake.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_removed_does_not_stop_its_table() {
    let world = World::new().await;
    world.sim.edit().add_column("incident", "u_site", "Site", "string").expect("a column");
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("u_site", "here")]).expect("it is there");
    let columns = "sys_id text, number text, short_description text, state bigint, u_site text";
    world.db.run(&format!("CREATE FOREIGN TABLE incident ({columns}) SERVER acme")).await;
    world.sync("incident").await;
    assert!(world.db.value::<bool>("SELECT count(*) = 1 FROM incident WHERE u_site = 'here'").await);
    world.until("SELECT metadata_watermark IS NOT NULL FROM servicenow.sync_server").await;
    world.sim.edit().remove_column("incident", "u_site").expect("it is there");
    let removed = "SELECT bool_and(field = 'u_site' AND change = 'removed') FROM servicenow.schema_drift
                   WHERE foreign_table = 'incident'::regclass";
    // Once the worker knows the field from before, then it does not.
    for round in ["first", "second"] {
        world.stop_worker().await;
        world.db.run("SELECT servicenow.start_worker()").await;
        world.until(removed).await;
        world.sim.edit().update("incident", &id, &[("short_description", round)]).expect("it is there");
        world.sync("incident").await;
        world.until_like_the_instance("incident", COLUMNS).await;
        assert!(world.db.value::<bool>("SELECT last_error IS NULL FROM servicenow.sync_status").await);
    }
    assert!(world.db.value::<bool>("SELECT count(u_site) = 0 FROM incident").await);
    // Everything can be read again, and with another column.
    world.db.run("SELECT servicenow.resync('incident')").await;
    world.sync("incident").await;
    world.db.run("ALTER FOREIGN TABLE incident ADD reopen_count bigint").await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", &["number", "reopen_count"]).await;
    // A column, table or condition made for it now cannot have what it is for.
    let fails = |table: &str| {
        format!(
            "SELECT last_error LIKE '%has no field \"u_site\"%' FROM servicenow.sync_status
             WHERE foreign_table = '{table}'::regclass"
        )
    };
    world
        .db
        .run(&format!("CREATE FOREIGN TABLE other ({columns}) SERVER acme OPTIONS (table 'incident')"))
        .await;
    world.until(&fails("other")).await;
    world.db.run("ALTER FOREIGN TABLE incident ADD again text OPTIONS (field 'u_site')").await;
    world.until(&fails("incident")).await;
    world.db.run("ALTER FOREIGN TABLE incident DROP again").await;
    world.sync("incident").await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD query 'u_site=here')").await;
    world.until(&fails("incident")).await;
}

/// A cache that somebody has locked follows when they are done, and keeps no other from following.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_cache_holds_no_other_ones_names_back() {
    let world = filled().await;
    let other = INCIDENT.replace("FOREIGN TABLE incident", "FOREIGN TABLE locked");
    world.db.run(&other.replace("SERVER acme", "SERVER acme OPTIONS (table 'incident')")).await;
    world.sync("locked").await;
    let caller = world.find("incident", "number=INC0012345");
    let caller = world.remote("incident", &caller, "caller_id").expect("it has one");
    let holder = world.session().await;
    holder.run("BEGIN; LOCK TABLE servicenow_cache.locked IN ACCESS EXCLUSIVE MODE").await;
    world.sim.edit().update("sys_user", &caller, &[("name", "Somebody Else")]).expect("a user");
    let renamed = |table: &str| {
        format!(
            "SELECT bool_and(caller_id = 'Somebody Else') FROM {table} WHERE caller_id_value = '{caller}'"
        )
    };
    world.until(&renamed("incident")).await;
    // Nor a table of other choices or fields.
    world.sim.edit().relabel_choice("incident", "state", "2", "Under Way").expect("a choice");
    let relabelled = |table: &str| {
        format!("SELECT count(*) > 0 AND bool_and(state = 'Under Way') FROM {table} WHERE state_value = '2'")
    };
    world.until(&relabelled("incident")).await;
    world.sim.edit().add_column("incident", "u_site", "Site", "string").expect("a column");
    world.until("SELECT count(*) = 2 FROM servicenow.schema_drift WHERE field = 'u_site'").await;
    holder.run("COMMIT").await;
    world.until(&renamed("locked")).await;
    world.until(&relabelled("locked")).await;
}

/// A record that stops matching leaves, whoever has locked another cache.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_cache_holds_no_other_ones_polls_back() {
    let world = World::new().await;
    world.db.run("CREATE FOREIGN TABLE locked (sys_id text) SERVER acme OPTIONS (table 'problem')").await;
    let active = "CREATE FOREIGN TABLE active (sys_id text, number text) SERVER acme OPTIONS (table 'incident', query 'active=true')";
    world.db.run(active).await;
    for table in ["locked", "active"] {
        world.sync(table).await;
    }
    let holder = world.session().await;
    holder.run("BEGIN; LOCK TABLE servicenow_cache.locked IN ACCESS EXCLUSIVE MODE").await;
    let id: String = world.db.value("SELECT min(sys_id) FROM active").await;
    let watermark = "SELECT watermark FROM servicenow.sync_table WHERE foreign_table = 'active'::regclass";
    let before: i64 = world.db.value(watermark).await;
    world.sim.edit().update("incident", &id, &[("active", "false")]).expect("it is there");
    world.until(&format!("SELECT count(*) = 0 FROM active WHERE sys_id = '{id}'")).await;
    world.until(&format!("SELECT ({watermark}) > {before} + 1")).await;
    holder.run("COMMIT").await;
}

/// A field at the end of a dot-walk may go like one of the table itself; what never was there is a mistake.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_removed_deeper_in_a_dot_walk_does_not_stop_its_table() {
    let world = World::new().await;
    world.sim.edit().add_column("sys_user", "u_site", "Site", "string").expect("a column");
    let id = world.find("incident", "number=INC0012345");
    let caller = world.remote("incident", &id, "caller_id").expect("it has one");
    world.sim.edit().update("sys_user", &caller, &[("u_site", "here")]).expect("a user");
    let columns = "sys_id text, number text, short_description text, state bigint, u_site text OPTIONS (field 'caller_id.u_site')";
    world.db.run(&format!("CREATE FOREIGN TABLE incident ({columns}) SERVER acme")).await;
    world.sync("incident").await;
    assert!(world.db.value::<bool>("SELECT count(*) > 0 FROM incident WHERE u_site = 'here'").await);
    world.stop_worker().await;
    world.sim.edit().remove_column("sys_user", "u_site").expect("it is there");
    world.db.run("SELECT servicenow.start_worker()").await;
    let drift =
        "SELECT bool_and(field = 'caller_id.u_site' AND change = 'removed') FROM servicenow.schema_drift
                 WHERE foreign_table = 'incident'::regclass";
    world.until(drift).await;
    world.sim.edit().update("incident", &id, &[("short_description", "changed")]).expect("it is there");
    world.sync("incident").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.db.run("SELECT servicenow.resync('incident')").await;
    world.sync("incident").await;
    assert!(world.db.value::<bool>("SELECT last_error IS NULL FROM servicenow.sync_status").await);
    assert!(world.db.value::<bool>("SELECT count(u_site) = 0 FROM incident").await);
    world.db.run("ALTER FOREIGN TABLE incident ADD again text OPTIONS (field 'caller_id.u_site2')").await;
    world.until("SELECT last_error LIKE '%has no field \"u_site2\"%' FROM servicenow.sync_status").await;
}

/// Columns that show something of a user without saying of which, by several ways.
const WITHOUT_TWINS: &str = "CREATE FOREIGN TABLE shown (
    sys_id text, number text, caller_id text OPTIONS (show 'label'), state text OPTIONS (show 'label'),
    caller_name text OPTIONS (field 'caller_id.name'), caller_email text OPTIONS (field 'caller_id.email'),
    caller_manager text OPTIONS (field 'caller_id.manager', show 'label'),
    manager_active boolean OPTIONS (field 'caller_id.manager.active'),
    watch_list text OPTIONS (show 'label')) SERVER acme OPTIONS (table 'incident')";

/// A label is true again after whatever it says has changed elsewhere, also where the row does not say of which record.
#[tokio::test(flavor = "multi_thread")]
async fn columns_without_their_record_at_hand_follow_it_too() {
    let world = World::new().await;
    let incident = world.find("incident", "number=INC0012345");
    let caller = world.remote("incident", &incident, "caller_id").expect("it has one");
    let manager =
        world.sim.edit().insert("sys_user", &[("name", "The Manager"), ("active", "true")]).expect("a user");
    let edit = || world.sim.edit();
    edit()
        .update("sys_user", &caller, &[("manager", &manager), ("email", "old@example.com")])
        .expect("a user");
    edit()
        .update("incident", &incident, &[("watch_list", &format!("{manager},{caller}"))])
        .expect("it is there");
    world.db.run(WITHOUT_TWINS).await;
    world.sync("shown").await;
    let shown = |column: &str| format!("SELECT {column} FROM shown WHERE number = 'INC0012345'");
    let name: String = world.db.value(&shown("caller_name")).await;
    assert_eq!(
        world.db.value::<String>(&shown("watch_list")).await.replace(", ", ","),
        format!("The Manager,{name}")
    );
    world.until("SELECT metadata_watermark IS NOT NULL FROM servicenow.sync_server").await;
    edit()
        .update("sys_user", &caller, &[("name", "Somebody Else"), ("email", "new@example.com")])
        .expect("a user");
    world
        .until(&shown(
            "(caller_id, caller_name, caller_email) = ('Somebody Else', 'Somebody Else', 'new@example.com')
             AND replace(watch_list, ', ', ',') = 'The Manager,Somebody Else'",
        ))
        .await;
    edit().update("sys_user", &manager, &[("name", "Another Manager"), ("active", "false")]).expect("a user");
    world
        .until(&shown(
            "caller_manager = 'Another Manager' AND NOT manager_active
             AND replace(watch_list, ', ', ',') = 'Another Manager,Somebody Else'",
        ))
        .await;
    edit().relabel_choice("incident", "state", "2", "Under Way").expect("a choice");
    world.until("SELECT count(*) > 0 FROM shown WHERE state = 'Under Way'").await;
    world.until("SELECT count(*) = 0 FROM shown WHERE state = 'In Progress'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_records_are_named_by_another_field_shows_that() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.db.run(WITHOUT_TWINS).await;
    for table in ["incident", "shown"] {
        world.sync(table).await;
    }
    world.until("SELECT count(*) > 1 FROM servicenow.dictionary").await;
    for (element, display) in [("name", "false"), ("email", "true")] {
        let field = world.find("sys_dictionary", &format!("name=sys_user^element={element}"));
        world.sim.edit().update("sys_dictionary", &field, &[("display", display)]).expect("a field");
    }
    let shown = "SELECT count(*) > 0 AND bool_and(caller_id IS NOT DISTINCT FROM caller_email) FROM shown WHERE caller_name <> ''";
    world.until(shown).await;
    let emails = "SELECT count(*) > 0 AND bool_and(i.caller_id IS NOT DISTINCT FROM s.caller_email)
                  FROM incident i JOIN shown s USING (sys_id) WHERE s.caller_name <> ''";
    world.until(emails).await;
    let logged = "SELECT count(*) > 0 FROM servicenow._sync_cdc
                  WHERE changed -> 'caller_id' ->> 'before' <> '' AND changed -> 'caller_id' ->> 'after' LIKE '%@%'";
    assert!(world.db.value::<bool>(logged).await, "it is a change like any");
}

/// The instance clears references to a record that is deleted, or leaves them as they are, and does not stamp who
/// referred to it.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_referred_to_a_deleted_record_are_looked_up() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.db.run(WITHOUT_TWINS).await;
    let incident = world.find("incident", "number=INC0012345");
    for dangling in [false, true] {
        let user = world.sim.edit().insert("sys_user", &[("name", "Not For Long")]).expect("a user");
        world.sim.edit().update("incident", &incident, &[("caller_id", &user)]).expect("it is there");
        for table in ["incident", "shown"] {
            world.sync(table).await;
            world
                .until(&format!("SELECT caller_id = 'Not For Long' FROM {table} WHERE number = 'INC0012345'"))
                .await;
        }
        if dangling {
            let field = world.find("sys_dictionary", "name=incident^element=caller_id");
            let rule = [("reference_cascade_rule", "none")];
            world.sim.edit().update("sys_dictionary", &field, &rule).expect("a field");
        }
        world.until("SELECT count(*) > 1 FROM servicenow.dictionary").await;
        world.sim.edit().delete("sys_user", &user).expect("a user");
        let value = world.remote("incident", &incident, "caller_id").expect("it is there");
        assert_eq!(value.is_empty(), !dangling);
        world
            .until(&format!(
                "SELECT caller_id IS NULL AND coalesce(caller_id_value, '') = '{value}'
                 FROM incident WHERE number = 'INC0012345'"
            ))
            .await;
        world
            .until("SELECT caller_id IS NULL AND caller_name IS NULL FROM shown WHERE number = 'INC0012345'")
            .await;
    }
}
