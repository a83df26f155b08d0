//! Answers that never come: nothing is made twice, and what cannot be known is said.

use servicenow_sim::{Cut, Effect, Fault};
use world::World;

use crate::{KNOWN, incidents, known};

/// A fault that strikes the next write with a method.
fn next(world: &World, method: &str, effect: Effect) {
    world.sim.fault(Fault::new(effect).method(method).times(1));
}

fn made(world: &World) -> usize {
    world.sim.edit().find("incident", "short_description=once").expect("a query").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_whose_answer_is_lost_makes_one_record() {
    let world = incidents().await;
    for (n, effect) in [
        Effect::ResetAfter,
        Effect::ResetBefore,
        Effect::NullBody,
        Effect::EmptyBody,
        Effect::Truncate { bytes: 20 },
        Effect::Cut { rows: 0, cut: Cut::Broken },
        Effect::Status { status: 503, html: true },
        Effect::LoginPage,
        Effect::Discard,
    ]
    .into_iter()
    .enumerate()
    {
        next(&world, "POST", effect.clone());
        let number: String =
            world.db.value("INSERT INTO incident (short_description) VALUES ('once') RETURNING number").await;
        assert_eq!(made(&world), n + 1, "{effect:?}");
        assert_eq!(world.find("incident", &format!("number={number}")).len(), 32);
    }
}

/// The record with this identity is somebody else's: finding it does not mean that the insert was carried out.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_with_a_taken_sys_id_fails_also_if_its_answer_is_lost() {
    let world = incidents().await;
    next(&world, "POST", Effect::ResetBefore);
    let statement =
        format!("INSERT INTO incident (sys_id, short_description) VALUES ('{}', 'x')", known(&world));
    let error = world.db.error(&statement).await;
    assert!(["23505", "08007"].contains(&error.code().code()), "{} {}", error.code().code(), error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_whose_answer_is_lost_succeeds() {
    let world = incidents().await;
    for effect in [
        Effect::ResetAfter,
        Effect::ResetBefore,
        Effect::Status { status: 502, html: true },
        Effect::LoginPage,
        Effect::Hibernating,
    ] {
        let id: String =
            world.db.value("INSERT INTO incident (short_description) VALUES ('once') RETURNING sys_id").await;
        next(&world, "DELETE", effect.clone());
        let rows =
            world.db.rows(&format!("DELETE FROM incident WHERE sys_id = '{id}' RETURNING number")).await;
        assert_eq!(rows.len(), 1, "{effect:?}");
        assert!(world.sim.record("incident", &id).is_none(), "{effect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_whose_answer_is_lost_is_sent_again() {
    let world = incidents().await;
    for (n, effect) in [Effect::ResetAfter, Effect::ResetBefore, Effect::NullBody].into_iter().enumerate() {
        next(&world, "PATCH", effect.clone());
        let text = format!("text {n}");
        world.db.run(&format!("UPDATE incident SET short_description = '{text}' WHERE {KNOWN}")).await;
        assert_eq!(world.remote("incident", &known(&world), "short_description"), Some(text), "{effect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_a_journal_whose_answer_is_lost_is_not_sent_again() {
    let world = incidents().await;
    let id = known(&world);
    let entries = || {
        let query = format!("element_id={id}^element=work_notes^value=note");
        world.sim.edit().find("sys_journal_field", &query).expect("a query").len()
    };
    let statement = format!("UPDATE incident SET work_notes = 'note', impact_value = 3 WHERE {KNOWN}");
    next(&world, "PATCH", Effect::ResetAfter);
    let error = world.db.error(&statement).await;
    assert_eq!(error.code().code(), "08007", "{}", error.message());
    let what = format!(
        "outcome of the attempt to update record \"{id}\" of table \"incident\" on server \"acme\" is unknown"
    );
    assert!(error.message().starts_with(&what), "{}", error.message());
    assert!(error.hint().is_some());
    assert_eq!(entries(), 1);
    // What was carried out arrives by itself.
    world.until(&format!("SELECT impact_value = 3 FROM incident WHERE {KNOWN}")).await;
    next(&world, "PATCH", Effect::ResetBefore);
    assert_eq!(world.db.error(&statement).await.code().code(), "08007");
    assert_eq!(entries(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_stays_unknown_is_said() {
    let world = incidents().await;
    for (method, statement) in [
        ("PATCH", format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")),
        ("POST", "INSERT INTO incident (short_description) VALUES ('once')".to_owned()),
        ("DELETE", format!("DELETE FROM incident WHERE {KNOWN}")),
    ] {
        let fault = Fault::new(Effect::ResetBefore).method(method);
        let fault = world.sim.fault(fault);
        let error = world.db.error(&statement).await;
        assert_eq!(error.code().code(), "08007", "{statement}: {}", error.message());
        world.sim.remove_fault(fault);
    }
    assert_eq!(made(&world), 0);
    assert_eq!(world.db.value::<i64>(&format!("SELECT count(*) FROM incident WHERE {KNOWN}")).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_under_way_is_renewed() {
    let world = incidents().await;
    for (method, statement) in [
        ("PATCH", format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")),
        ("POST", "INSERT INTO incident (short_description) VALUES ('once')".to_owned()),
        ("DELETE", "DELETE FROM incident WHERE short_description = 'once'".to_owned()),
    ] {
        next(&world, method, Effect::ExpireTokens);
        world.db.run(&statement).await;
    }
    assert_eq!(made(&world), 0);
    assert_eq!(world.remote("incident", &known(&world), "impact").as_deref(), Some("2"));
}

fn patches(world: &World) -> usize {
    world.writes().iter().filter(|write| write.method == "PATCH").count()
}

/// The version that the record was tells a lost answer from a lost request.
#[tokio::test(flavor = "multi_thread")]
async fn with_optimistic_lock_a_lost_update_is_repeated_only_if_nothing_has_changed() {
    let world = incidents().await;
    let id = known(&world);
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD optimistic_lock 'true')").await;
    world.sync("incident").await;
    let both = "number IN ('INC0012345', 'INC0010001')";
    for (n, (effect, whom, attempts)) in
        [(Effect::ResetAfter, KNOWN, 1), (Effect::ResetBefore, KNOWN, 2), (Effect::ResetAfter, both, 2)]
            .into_iter()
            .enumerate()
    {
        let before = patches(&world);
        let fault = Fault::new(effect.clone()).times(1);
        world.sim.fault(if whom == both { fault.path("/batch") } else { fault.method("PATCH") });
        world.db.run(&format!("UPDATE incident SET short_description = 'text {n}' WHERE {whom}")).await;
        assert_eq!(patches(&world) - before, attempts, "{effect:?} {whom}");
        assert_eq!(world.remote("incident", &id, "short_description"), Some(format!("text {n}")));
        world.sync("incident").await; // the records' new versions
    }
    // An entry of a journal arrives once, and that is known.
    next(&world, "PATCH", Effect::ResetAfter);
    world.db.run(&format!("UPDATE incident SET work_notes = 'note' WHERE {KNOWN}")).await;
    let query = format!("element_id={id}^element=work_notes^value=note");
    assert_eq!(world.sim.edit().find("sys_journal_field", &query).expect("a query").len(), 1);
    // Somebody else has changed it since.
    world.db.run("ALTER SERVER acme OPTIONS (ADD request_timeout '2s')").await;
    world.sync("incident").await;
    let before = patches(&world);
    next(&world, "PATCH", Effect::HangAfter);
    let statement = format!("UPDATE incident SET short_description = 'ours' WHERE {KNOWN}");
    let theirs = async {
        while world.remote("incident", &id, "short_description").as_deref() != Some("ours") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        world.sim.edit().update("incident", &id, &[("short_description", "theirs")]).expect("a change");
    };
    let (error, ()) = tokio::join!(world.db.error(&statement), theirs);
    assert_eq!(error.code().code(), "08007", "{}", error.message());
    assert_eq!(
        (patches(&world) - before, world.remote("incident", &id, "short_description").as_deref()),
        (1, Some("theirs"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_may_have_been_made_is_named() {
    let world = incidents().await;
    world.sim.fault(Fault::new(Effect::ResetBefore).method("POST").table("incident"));
    let error = world.db.error("INSERT INTO incident (short_description) VALUES ('once')").await;
    assert_eq!(error.code().code(), "08007", "{}", error.message());
    let sent = world.writes()[0].body.clone().expect("a body");
    let detail = format!("If it was made, the record has the sys_id {}.", sent["sys_id"]);
    assert_eq!(error.detail(), Some(detail.as_str()));
}

/// The column has a type that the record's value does not have: it was made nevertheless, and is undone.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_cannot_be_read_may_have_been_carried_out() {
    let world = incidents().await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE odd (sys_id text, number integer, short_description text)
             SERVER acme OPTIONS (table 'incident', on_rollback 'compensate');
             ALTER SERVER acme OPTIONS (ADD request_timeout '2s')",
        )
        .await;
    for (n, keys) in ["", ", ('once')"].into_iter().enumerate() {
        let error =
            world.db.error(&format!("INSERT INTO odd (short_description) VALUES ('once'){keys}")).await;
        assert_eq!(error.code().code(), "08007", "{n}: {}", error.message());
        assert!(error.message().contains("is not a valid whole number"), "{}", error.message());
        assert!(error.hint().is_some_and(|hint| hint.contains("look at it before you repeat")), "{error:?}");
        world.until("SELECT sum(pending_writes) = 0 FROM servicenow.sync_status").await;
        assert_eq!(made(&world), 0, "{n}");
    }
}

/// That a second attempt is turned away says nothing about the first one.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_lost_is_not_forgotten_when_the_next_one_is_turned_away() {
    let world = incidents().await;
    world.db.run("ALTER FOREIGN TABLE incident OPTIONS (ADD optimistic_lock 'true')").await;
    world.sync("incident").await;
    for (method, statement) in [
        ("POST", "INSERT INTO incident (short_description) VALUES ('once')".to_owned()),
        ("PATCH", format!("UPDATE incident SET impact_value = 2 WHERE {KNOWN}")),
    ] {
        let session = world.session().await;
        next(&world, method, Effect::ResetBefore);
        let limited = Effect::RateLimited { headers: true, retry_after: Some(1_800), json: true };
        world.sim.fault(Fault::new(limited).method(method).after(1));
        let error = session.error(&statement).await;
        assert_eq!(error.code().code(), "08007", "{statement}: {}", error.message());
        world.sim.clear_faults();
    }
}
