//! sqlx, as docs/sqlx.md has it.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::desk::Desk;

#[derive(sqlx::FromRow)]
struct Incident {
    sys_id: String,
    number: Option<String>,
    state: Option<String>,
}

async fn report(pool: &sqlx::PgPool, what: &str) -> sqlx::Result<Incident> {
    sqlx::query_as("INSERT INTO incident (short_description) VALUES ($1) RETURNING sys_id, number, state")
        .bind(what)
        .fetch_one(pool)
        .await
}

async fn set_state(pool: &sqlx::PgPool, number: &str, state: &str) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    let incident: Incident =
        sqlx::query_as("SELECT sys_id, number, state FROM incident WHERE number = $1 FOR UPDATE")
            .bind(number)
            .fetch_one(&mut *transaction)
            .await?;
    sqlx::query("UPDATE incident SET state = $1 WHERE sys_id = $2")
        .bind(state)
        .bind(incident.sys_id)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

async fn report_all(pool: &sqlx::PgPool, what: &[String]) -> sqlx::Result<u64> {
    let insert = "INSERT INTO incident (short_description) SELECT * FROM unnest($1::text[])";
    Ok(sqlx::query(insert).bind(what).execute(pool).await?.rows_affected())
}

async fn works(desk: &Desk, pool: &sqlx::PgPool) {
    let incident = report(pool, "Printer on fire").await.expect("a record");
    let number = incident.number.expect("ServiceNow numbers it");
    assert_eq!(incident.state.as_deref(), Some("New"));
    assert_eq!(desk.world.remote("incident", &incident.sys_id, "number").as_ref(), Some(&number));

    set_state(pool, &number, "In Progress").await.expect("a state");
    assert_eq!(desk.world.remote("incident", &incident.sys_id, "state").as_deref(), Some("2"));
    let refused = set_state(pool, &number, "No such state").await.expect_err("no such state");
    assert_eq!(refused.as_database_error().and_then(|e| e.code()).as_deref(), Some("23514"));

    let calls = desk.calls();
    let many: Vec<String> = (0..100).map(|n| format!("Plotter {n}")).collect();
    assert_eq!(report_all(pool, &many).await.expect("records"), 100);
    assert!(desk.calls() - calls < 20, "many rows go in batches");
    let deleted = sqlx::query("DELETE FROM incident WHERE short_description LIKE 'Plotter%'");
    assert_eq!(deleted.execute(pool).await.expect("they go").rows_affected(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_the_page_works() {
    let desk = Desk::open().await;
    let through = desk.direct();
    let options = PgConnectOptions::new_without_pgpass()
        .socket(&through.host)
        .username(&desk.role)
        .database(&desk.world.database);
    works(&desk, &PgPoolOptions::new().max_connections(2).connect_with(options).await.expect("a pool")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_work_through_a_pooler_without_prepared_statements() {
    let desk = Desk::open().await;
    let through = desk.pooled();
    let options = PgConnectOptions::new_without_pgpass()
        .socket(&through.host)
        .port(through.port)
        .username(&desk.role)
        .database(&desk.world.database);
    let pool = PgPoolOptions::new().max_connections(4).connect_with(options).await.expect("a pool");
    for n in 0..8 {
        let mut transaction = pool.begin().await.expect("a transaction");
        let insert = sqlx::query_as(
            "INSERT INTO incident (short_description) VALUES ($1) RETURNING sys_id, number, state",
        );
        let incident: Incident = insert
            .bind(format!("pooled {n}"))
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await
            .expect("a record");
        let update = sqlx::query("UPDATE incident SET state = $1 WHERE sys_id = $2").persistent(false);
        update.bind("In Progress").bind(&incident.sys_id).execute(&mut *transaction).await.expect("a state");
        transaction.commit().await.expect("it is kept");
        assert_eq!(desk.world.remote("incident", &incident.sys_id, "state").as_deref(), Some("2"));
    }
}

#[test]
fn the_page_has_this_code() {
    let page = include_str!("../../docs/sqlx.md");
    let blocks: Vec<&str> =
        page.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        for item in block.split("\n\n") {
            assert!(include_str!("sqlx.rs").contains(item.trim_end()), "{item}");
        }
    }
}
