//! Filling: beside everything else that goes on.

use std::time::Duration;

use servicenow_sim::Dataset;
use world::World;

use crate::{COLUMNS, INCIDENT, MANY, lists, until_under_way};

/// A table under way, on the shared cluster.
async fn under_way() -> World {
    let world = World::with(Dataset::Incidents(MANY), ", page_size '100', max_concurrency '2'").await;
    world.sim.set(|s| s.latency_ms = 30);
    world.db.run(INCIDENT).await;
    until_under_way(&world).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_may_be_written_while_a_table_is_filled() {
    let world = under_way().await;
    let numbers = world.db.rows("SELECT number FROM incident ORDER BY sys_id LIMIT 40").await;
    for (n, row) in numbers.iter().enumerate() {
        let number: &str = row.get(0);
        let statement = match n % 4 {
            0 => format!("DELETE FROM incident WHERE number = '{number}'"),
            1 => format!("UPDATE incident SET reopen_count = 17 WHERE number = '{number}'"),
            2 => format!("UPDATE incident SET short_description = 'written' WHERE number = '{number}'"),
            _ => format!("INSERT INTO incident (short_description) VALUES ('instead of {number}')"),
        };
        world.db.run(&statement).await;
    }
    world.sim.set(|s| s.latency_ms = 0);
    world.sync("incident").await;
    world.until_like_the_instance("incident", &["number", "short_description", "reopen_count"]).await;
    let counted = "SELECT rows = (SELECT count(*) FROM incident) FROM servicenow.sync_status";
    world.until(counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_locked_while_it_is_filled_anew_is_settled_afterwards() {
    let world = World::with(Dataset::Small, "").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let (gone, silent) =
        (world.find("incident", "number=INC0012345"), world.find("incident", "number=INC0010002"));
    let holder = world.session().await;
    holder.run("BEGIN; SELECT FROM incident WHERE number IN ('INC0012345', 'INC0010002') FOR UPDATE").await;
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    edit.update("incident", &silent, &[("short_description", "silently")]).expect("it is there");
    edit.delete("incident", &gone).expect("it is there");
    world.db.run("SELECT servicenow.resync('incident')").await;
    world.until("SELECT phase = 'synced' AND rows_hidden = 0 FROM servicenow.sync_status").await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM servicenow.recheck").await, 2);
    holder.run("COMMIT").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    world.until("SELECT count(*) = 0 FROM servicenow.recheck").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_while_it_goes_on() {
    let world = under_way().await;
    let told = "SELECT rows_total = 4500 AND rows BETWEEN 1 AND 4499 AND percent BETWEEN 1 AND 99.9 AND rows_per_second > 0
                       AND eta > interval '0' AND lag IS NULL AND last_error IS NULL AND phase = 'backfill'
                FROM servicenow.sync_status";
    assert!(world.db.value::<bool>(told).await);
    world.sim.set(|s| s.latency_ms = 0);
    world.sync("incident").await;
    let told = "SELECT phase = 'synced' AND rows = rows_total AND percent = 100 AND eta IS NULL AND lag < interval '1 minute'
                FROM servicenow.sync_status";
    world.until(told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_table_that_is_not_filled_in_time_says_how_far_it_is() {
    let world = under_way().await;
    let error = world.db.error("SELECT servicenow.wait_for_sync('incident', '100 ms')").await;
    assert_eq!(error.code().code(), "55000");
    assert!(error.message().contains(" of 4500 rows"), "{}", error.message());
}

/// Everything the dictionary has is asked for, and the cache has it, in every type.
#[tokio::test(flavor = "multi_thread")]
async fn resync_mends_what_changed_without_a_trace_and_disturbs_nobody() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    world.db.run("CREATE INDEX by_number ON servicenow_cache.incident (number)").await;
    let edit = world.sim.edit().without_workflow().without_auto_sys_fields();
    edit.update_where("incident", "", &[("short_description", "silently")]).expect("a query");
    let gone = world.find("incident", "number=INC0012345");
    edit.delete("incident", &gone).expect("it is there");
    world.sim.set(|s| s.latency_ms = 200);
    let reader = world.session().await;
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM incident LIMIT 1").await;
    let before = reader.value::<i64>("SELECT count(*) FROM incident").await;
    world.db.run("SELECT servicenow.resync('incident')").await;
    while !world.db.value::<bool>("SELECT phase = 'synced' FROM servicenow.sync_status").await {
        assert!(world.db.value::<i64>("SELECT count(*) FROM incident").await >= before - 1, "never empty");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.sim.set(|s| s.latency_ms = 0);
    assert_eq!(reader.value::<i64>("SELECT count(*) FROM incident").await, before);
    world.until_like_the_instance("incident", &["number", "short_description"]).await;
    let kept = "SELECT count(*) = 1 FROM pg_indexes WHERE indexname = 'by_number'";
    assert!(world.db.value::<bool>(kept).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_added_later_is_filled_by_itself() {
    let world = World::new().await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    let changes = "SELECT count(*) FROM servicenow._sync_cdc";
    world.sim.clear_requests();
    world
        .db
        .run("ALTER FOREIGN TABLE incident ADD category text OPTIONS (show 'label'), ADD priority bigint")
        .await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", &["number", "short_description", "priority"]).await;
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident WHERE category IS NULL").await, 0);
    let fields: Vec<String> = lists(&world, "incident", 0)
        .iter()
        .filter(|list| list.parameter("sysparm_query").is_some_and(|query| !query.contains("sys_updated_on")))
        .filter_map(|list| list.parameter("sysparm_fields").map(str::to_owned))
        .collect();
    let narrow = "sys_id,sys_updated_on,sys_mod_count,category,priority";
    assert!(fields.iter().any(|f| f == narrow), "{fields:?}");
    assert!(!fields.iter().any(|f| f.contains("short_description") && f.contains("priority")), "{fields:?}");
    assert_eq!(world.db.value::<i64>(changes).await, 0, "the records have not changed");
    // What changes meanwhile is read as a whole.
    let id = world.find("incident", "number=INC0012345");
    world
        .sim
        .edit()
        .update("incident", &id, &[("short_description", "x"), ("urgency", "3")])
        .expect("it is there");
    world.db.run("ALTER FOREIGN TABLE incident ADD urgency bigint").await;
    world.sync("incident").await;
    world.until_like_the_instance("incident", &["number", "short_description", "priority", "urgency"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_schema_adds_what_the_table_does_not_show() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    assert_eq!(world.db.value::<i64>("SELECT servicenow.refresh_schema('incident')").await, 0);
    world.sim.edit().add_column("incident", "u_site", "Site", "string").expect("a column");
    world.sim.edit().add_column("incident", "u_since", "Since", "glide_date_time").expect("a column");
    let id = world
        .sim
        .edit()
        .insert("incident", &[("u_site", "here"), ("u_since", "2026-01-02 03:04:05")])
        .expect("a record");
    world.until("SELECT count(*) = 2 FROM servicenow.schema_drift").await;
    assert_eq!(world.db.value::<i64>("SELECT servicenow.refresh_schema('incident')").await, 2);
    assert_eq!(world.db.value::<i64>("SELECT count(*) FROM servicenow.schema_drift").await, 0);
    let there = format!(
        "SELECT count(*) = 1 FROM incident WHERE sys_id = '{id}' AND u_site = 'here' AND u_since = '2026-01-02 03:04:05Z'"
    );
    world.until(&there).await;
    let comment = "SELECT col_description('incident'::regclass, attnum) FROM pg_attribute
                   WHERE attrelid = 'incident'::regclass AND attname = 'u_site'";
    assert_eq!(world.db.value::<String>(comment).await, "Site");
    let somebody = world.session_as("somebody").await;
    let error = somebody.error("SELECT servicenow.refresh_schema('incident')").await;
    assert_eq!(error.code().code(), "42501");
}
