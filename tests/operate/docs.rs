//! What the page about monitoring and the dashboard ask is what the views have.

use servicenow_sim::Dataset;
use world::World;

use crate::INCIDENT;

const VIEWS: [&str; 7] =
    ["sync_status", "sync_error", "progress", "stat_requests", "stat_capture", "stat_mail", "schema_drift"];

/// The blocks of SQL of the page, in their order.
fn blocks() -> Vec<&'static str> {
    let page = include_str!("../../docs/monitoring.md");
    page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// The queries of the dashboard.
fn panels() -> Vec<String> {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../docs/grafana-dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels.map(|panel| panel["targets"][0]["rawSql"].as_str().expect("a query").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_page_and_the_dashboard_runs() {
    let world = World::bare(Dataset::Small).await;
    world.set_up("").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.until("SELECT count(*) > 0 FROM servicenow.stat_requests").await;
    let role = world.role("exporter");
    let (page, dashboard) = (blocks(), panels());
    for view in VIEWS {
        let name = format!("servicenow.{view}");
        assert!(page.iter().any(|block| block.contains(&name)), "the page asks {view}");
        assert!(dashboard.iter().any(|query| query.contains(&name)), "the dashboard asks {view}");
    }
    let mut alerts = 0;
    let (_, after) = include_str!("../../docs/monitoring.md").split_once("## Alerts").expect("a section");
    for block in &page {
        let sql = block.replace("CREATE ROLE exporter", &format!("CREATE ROLE {role}"));
        if !sql.trim_start().starts_with("SELECT") && !sql.starts_with("-- ") {
            world.db.run(&sql).await;
            continue;
        }
        let rows = world.db.rows(&sql).await;
        let is_alert = after.split("## ").next().is_some_and(|section| section.contains(block));
        if is_alert {
            assert!(rows.is_empty(), "no alert while all is well: {sql}");
            alerts += 1;
        } else if sql.contains("FROM servicenow.sync_status") || sql.contains("servicenow.stat_requests") {
            assert!(!rows.is_empty(), "{sql}");
        }
    }
    assert!(alerts >= 5);
    // A member of pg_monitor may ask all of it.
    let exporter = world.session_as("exporter").await;
    for query in dashboard {
        let query =
            query.replace("$__timeFrom()", "now() - interval '1 day'").replace("$__timeTo()", "now()");
        let rows = exporter.rows(&query).await;
        assert!(!rows.is_empty() || !query.contains("FROM servicenow.sync_status"), "{query}");
    }
}
