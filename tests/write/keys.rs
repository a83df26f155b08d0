//! An instance that makes records under keys of its own: nothing is made twice, and the right records are undone.

use servicenow_sim::{Effect, Fault};
use world::World;

use crate::incidents;
use crate::rollback::{pending, until_settled};

/// A world whose instance lets administrators alone choose keys.
async fn own_keys() -> World {
    let world = incidents().await;
    let property = "glide.rest.table_api.admin_only_sys_fields";
    world.sim.edit().set_property(property, "true").expect("a property");
    world
}

fn made(world: &World, text: &str) -> usize {
    world.sim.edit().find("incident", &format!("short_description={text}")).expect("a query").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_whose_answer_is_lost_makes_no_second_record_where_keys_are_not_taken() {
    let world = own_keys().await;
    let insert = |text: &str, n: usize| {
        format!("INSERT INTO incident (short_description) SELECT '{text}' FROM generate_series(1, {n})")
    };
    // Nothing is known of the instance at first; then it is, to this session and to others.
    for round in ["first", "second", "third"] {
        let session = world.session().await;
        for n in [1, 3] {
            let text = format!("{round} {n}");
            let fault = Fault::new(Effect::ResetAfter).method("POST").path("/(batch|table/incident)");
            world.sim.fault(fault.times(1));
            let error = session.error(&insert(&text, n)).await;
            assert_eq!(error.code().code(), "08007", "{text}: {}", error.message());
            assert_eq!(made(&world, &text), n, "{text}");
            world
                .until(&format!("SELECT count(*) = {n} FROM incident WHERE short_description = '{text}'"))
                .await;
        }
        session.run(&insert(round, 2)).await;
        assert_eq!(made(&world, round), 2);
        // It is known now that a record that was not made would not be told from one that was.
        let fault = Fault::new(Effect::ResetBefore).method("POST").path("table/incident").times(1);
        world.sim.fault(fault);
        let error = session.error(&insert("not made", 1)).await;
        assert_eq!(error.code().code(), "08007", "{}", error.message());
        assert!(error.detail().is_some_and(|detail| detail.contains("the instance has chosen")), "{error:?}");
        assert_eq!(made(&world, "not made"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_under_another_key_is_undone() {
    let world = own_keys().await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate')").await;
    world.sync("incident").await;
    for statement in [
        "INSERT INTO incident (short_description) VALUES ('one')",
        "INSERT INTO incident (short_description) SELECT 'one' FROM generate_series(1, 3)",
        "INSERT INTO incident (short_description) VALUES ('none'); UPDATE incident SET short_description = 'one' WHERE short_description = 'none'",
    ] {
        world.db.run(&format!("BEGIN; {statement}")).await;
        assert!(made(&world, "one") > 0);
        world.db.run("ROLLBACK").await;
        until_settled(&world).await;
        assert_eq!((made(&world, "one"), made(&world, "none")), (0, 0), "{statement}");
    }
    // A key that was chosen and not taken is an ERROR; what was made under another one goes too.
    let chosen =
        "INSERT INTO incident (sys_id, short_description) VALUES ('0123456789abcdef0123456789abcdef', 'one')";
    assert_eq!(world.db.error(chosen).await.code().code(), "42501");
    until_settled(&world).await;
    assert_eq!(made(&world, "one"), 0);
}

/// What cannot be found is not said to be undone.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_may_have_been_made_under_another_key_is_reported() {
    let world = own_keys().await;
    world
        .db
        .run("ALTER FOREIGN TABLE incident OPTIONS (ADD on_rollback 'compensate'); ALTER SERVER acme OPTIONS (ADD request_timeout '2s')")
        .await;
    world.sync("incident").await;
    world.sim.fault(Fault::new(Effect::ResetAfter).method("POST").path("table/incident").times(1));
    let error = world.db.error("INSERT INTO incident (short_description) VALUES ('lost')").await;
    assert_eq!(error.code().code(), "08007", "{}", error.message());
    world
        .until("SELECT last_error LIKE '%was not restored after a rollback: it is not known whether the record was made%'
                FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass")
        .await;
    world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
    assert_eq!((made(&world, "lost"), pending(&world).await), (1, 0));
}

/// What waits for COMMIT was told a key that the record does not get; whatever refers to it gets the one that it has.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_at_commit_refers_to_the_keys_there_are() {
    let world = own_keys().await;
    world.import(&["problem"]).await;
    world
        .db
        .run(
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit';
             WITH parent AS (INSERT INTO problem (short_description) VALUES ('parent') RETURNING sys_id)
             INSERT INTO incident (short_description, problem_id_value) SELECT 'child ' || n, sys_id FROM parent, generate_series(1, 3) n;
             UPDATE problem SET description = 'changed' WHERE short_description = 'parent';
             UPDATE problem SET work_notes = 'noted' WHERE short_description = 'parent';
             COMMIT",
        )
        .await;
    let parents = world.sim.edit().find("problem", "short_description=parent").expect("a query");
    let [parent] = &parents[..] else { panic!("{parents:?}") };
    assert_eq!(world.remote("problem", parent, "description").as_deref(), Some("changed"));
    let children = world.sim.edit().find("incident", &format!("problem_id={parent}")).expect("a query");
    assert_eq!(children.len(), 3);
    world
        .until_like_the_instance("incident", &["number", "short_description", "problem_id_value=problem_id"])
        .await;
    world.until_like_the_instance("problem", &["number", "description"]).await;
}
