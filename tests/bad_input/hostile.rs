//! An instance that means harm to one table: it is said there, the others go on, and no memory is lost to it.

use servicenow_sim::{Effect, Fault};
use world::World;

use crate::{GOOD, follows, last_error, recovers};

/// The most memory the worker has taken so far, in KiB.
async fn peak(world: &World) -> u64 {
    let pid = world
        .db
        .value::<i32>(
            "SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND backend_type = 'servicenow_fdw worker'",
        )
        .await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs on this host");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("its peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_answers_mean_harm_leaves_the_others_alone() {
    let world = World::new().await;
    world.db.run(GOOD).await;
    world.sync("good").await;
    world.sim.set(|s| s.gzip = false);
    let record = |fields: &str| {
        format!("{{\"result\":[{{\"sys_id\":\"0123456789abcdef0123456789abcdef\",{fields}}}]}}")
    };
    let body = |text: String| Effect::Body { text, hex: false };
    for (effect, said) in [
        (Effect::Endless { bytes: 70 << 20 }, "answer is larger than"),
        (Effect::Headers { count: 5_000, bytes: 10 }, "connection broke"),
        (body(record(&format!("\"x\":{}", "[".repeat(1 << 20)))), "cut the answer short"),
        (
            Effect::Body { text: "ff7b22726573756c74223a5b5d7d".to_owned(), hex: true },
            "could not read the answer",
        ),
        (
            body(record("\"state\":\"1e400\"")),
            "value of field \"state\" in record \"0123456789abcdef0123456789abcdef\"",
        ),
        (body(record("\"opened_at\":\"99999-99-99 99:99:99\"")), "value of field \"opened_at\" in record"),
        (body(format!("{{\"error\":{{\"message\":[{}0]}}}}", "0,".repeat(31 << 20))), "could not"),
        (body("{\"result\":[{\"number\":\"INC1\"}]}".to_owned()), "a record has no readable \"sys_id\""),
        (body("{\"result\":{\"sys_id\":\"1\"}}".to_owned()), "could not"),
    ] {
        let fault = world.sim.fault(Fault::new(effect.clone()).table("incident").path("/api/now/table/"));
        world
            .db
            .run("CREATE FOREIGN TABLE incident (sys_id text, number text, state int, opened_at timestamptz) SERVER acme")
            .await;
        let error = last_error(&world, "incident").await;
        assert!(error.contains(said), "{said}: {error}");
        assert!(error.contains("incident"), "the table is named: {error}");
        assert_eq!(world.db.value::<i64>("SELECT count(*) FROM incident").await, 0);
        follows(&world, "good", "problem").await;
        world.sim.remove_fault(fault);
        world.db.run("SELECT servicenow.resync('incident')").await;
        recovers(&world, "incident").await;
        world.db.run("DROP FOREIGN TABLE incident").await;
    }
    let peak = peak(&world).await;
    assert!(peak < 1 << 19, "{peak} KiB");
}

/// Odd, and no harm: the last of two values counts, NUL is left out, and what is large is large.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_odd_are_mirrored() {
    let world = World::new().await;
    world.import(&["incident"]).await;
    let id = world.find("incident", "number=INC0012345");
    let long = "ä".repeat(5 << 20);
    world.sim.edit().update("incident", &id, &[("description", &long)]).expect("it is there");
    world
        .until(&format!("SELECT length(description) = {} FROM incident WHERE number = 'INC0012345'", 5 << 20))
        .await;
    let text = format!(
        "{{\"result\":[{{\"sys_id\":\"{id}\",\"number\":\"first\",\"number\":\"a\\u0000b\",\"sys_updated_on\":\"2038-01-19 03:14:08\",\"sys_mod_count\":\"99999\"}}]}}"
    );
    world.sim.fault(Fault::new(Effect::Body { text, hex: false }).table("incident").path("/api/now/table/"));
    world.until(&format!("SELECT number = 'ab' FROM incident WHERE sys_id = '{id}'")).await;
}

/// Postgres allows 1,600 columns.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_table_with_more_fields_than_columns_are_allowed_the_rest_is_said_to_be_left_out() {
    let world = World::new().await;
    for n in 0..5_000 {
        world.sim.edit().add_column("problem", &format!("u_many_{n:04}"), "", "string").expect("a column");
    }
    world.db.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (problem) FROM SERVER acme INTO public").await;
    let log = world.cluster.log();
    let (said, _) = log.split_once(" columns more than a foreign table can have").expect("it is said");
    let (_, left_out) = said.rsplit_once("table \"problem\" has ").expect("of which table");
    let left_out: i64 = left_out.parse().expect("how many");
    world.sync("problem").await;
    let columns = |which: &str| {
        format!(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'problem'::regclass AND attnum > 0{which}"
        )
    };
    assert_eq!(world.db.value::<i64>(&columns("")).await, 1_400);
    let taken = world.db.value::<i64>(&columns(" AND attname LIKE 'u_many_%'")).await;
    assert!(left_out >= 5_000 - taken && left_out < 5_200 - taken, "{left_out} of {taken}");
    assert!(world.db.value::<i64>("SELECT count(number) FROM problem").await > 0);
}
