//! Every way in which a write fails: SQLSTATE, message, DETAIL and HINT, compared with a file. `SNFDW_ACCEPT=1` takes the output
//! over as expected; look at the difference before you commit it.

use std::fmt::Write;
use std::path::Path;

use servicenow_sim::{AclRule, Effect, Fault, Operation};
use tokio_postgres::error::DbError;
use world::{INTEGRATION, Session, World, deaf_address};

use crate::disk::{Disk, give};

/// A way to fail.
struct Case {
    what: &'static str,
    /// What goes before, here.
    setup: &'static str,
    /// What goes before, in the instance.
    arrange: fn(&World),
    /// What goes wrong on the way.
    fault: Option<Fault>,
    statement: &'static str,
}

fn nothing(_: &World) {}

fn case(what: &'static str, statement: &'static str) -> Case {
    Case { what, setup: "", arrange: nothing, fault: None, statement }
}

fn refuse(world: &World, operation: Operation) {
    world.sim.edit().add_acl(AclRule::Table {
        table: "incident".to_owned(),
        user: Some(INTEGRATION.to_owned()),
        operation,
        refuse: true,
    });
}

fn cases() -> Vec<Case> {
    vec![
        case(
            "a value that is no choice",
            "UPDATE incident SET state = 'invalid-state' WHERE number = 'INC0012345'",
        ),
        case(
            "a stored value that is no choice",
            "UPDATE incident SET state_value = 99 WHERE number = 'INC0012345'",
        ),
        case(
            "a name that no record has",
            "UPDATE incident SET assigned_to = 'Nobody Here' WHERE number = 'INC0012345'",
        ),
        Case {
            arrange: |world| {
                for user in ["twin1", "twin2"] {
                    let fields = [("user_name", user), ("name", "Twin")];
                    world.sim.edit().insert("sys_user", &fields).expect("a record");
                }
            },
            ..case(
                "a name that several records have",
                "UPDATE incident SET assigned_to = 'Twin' WHERE number = 'INC0012345'",
            )
        },
        case(
            "a label that several choices have",
            "UPDATE incident SET category = 'Network' WHERE number = 'INC0012345'",
        ),
        case(
            "a label and a stored value that contradict each other",
            "UPDATE incident SET state = 'On Hold', state_value = 2 WHERE number = 'INC0012345'",
        ),
        case("a sys_id that is none", "INSERT INTO incident (sys_id, short_description) VALUES ('..', 'x')"),
        case("a data policy", "UPDATE incident SET state = 'Resolved' WHERE number = 'INC0012345'"),
        case(
            "a row of many that is refused",
            "INSERT INTO x_acme_app_thing (sys_id, name, code) VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'forbidden', 'N-1'), ('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'forbidden', 'N-2')",
        ),
        case("a unique key", "UPDATE x_acme_app_thing SET code = 'T-0001' WHERE code = 'T-0002'"),
        case(
            "a sys_id that is taken",
            "INSERT INTO incident (sys_id, short_description) SELECT sys_id, 'x' FROM incident WHERE number = 'INC0012345'",
        ),
        case("a business rule", "UPDATE x_acme_app_thing SET name = 'forbidden' WHERE code = 'T-0001'"),
        case("a right to write", "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'")
            .arranged(|world| refuse(world, Operation::Write)),
        case("a right to make records", "INSERT INTO incident (short_description) VALUES ('x')")
            .arranged(|world| refuse(world, Operation::Create)),
        case("a right to delete", "DELETE FROM incident WHERE number = 'INC0012345'")
            .arranged(|world| refuse(world, Operation::Delete)),
        case(
            "a field that the instance ignores",
            "UPDATE incident SET description = 'new' WHERE number = 'INC0012345'",
        )
        .arranged(|world| {
            world.sim.edit().add_acl(AclRule::FieldWrite {
                table: "incident".to_owned(),
                field: "description".to_owned(),
                user: Some(INTEGRATION.to_owned()),
            });
        }),
        case(
            "a record that is gone",
            "UPDATE incident SET impact_value = 2 WHERE short_description = 'gone'",
        )
        .arranged(|world| {
            let id = world.find("incident", "short_description=gone");
            world.sim.edit().delete("incident", &id).expect("it is there");
        }),
        Case {
            setup: "ALTER FOREIGN TABLE incident OPTIONS (ADD optimistic_lock 'true')",
            arrange: |world| {
                let id = world.find("incident", "number=INC0012345");
                world.sim.edit().update("incident", &id, &[("description", "theirs")]).expect("it is there");
            },
            ..case(
                "a record that somebody has changed",
                "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'",
            )
        },
        case("a table that the instance does not have", "INSERT INTO nothing (name) VALUES ('x')"),
        case("a field that the table does not have", "INSERT INTO typo (shrot_description) VALUES ('x')"),
        case(
            "a field of another table",
            "UPDATE caller SET email = 'x@example.com' WHERE number = 'INC0012345'",
        ),
        case(
            "a field that is computed",
            "UPDATE u_pg_widget SET u_calculated = 1 WHERE u_name = 'Widget ordinary'",
        ),
        case(
            "a field that is closed to the interface",
            "UPDATE u_pg_widget SET u_strict = 'x' WHERE u_name = 'Widget ordinary'",
        ),
        case(
            "a table that is not to be written",
            "UPDATE fixed SET number = 'x' WHERE number = 'INC0012345'",
        ),
        case(
            "a row that would move into a foreign table",
            "UPDATE every SET place = 'software' WHERE place = 'here'",
        ),
        case(
            "a row that would move out of a foreign table",
            "UPDATE every SET place = 'here' WHERE number = 'INC0012345'",
        ),
        case(
            "a row that the statement changes twice",
            "UPDATE incident SET short_description = touch(sys_id) WHERE number = 'INC0012345'",
        ),
        case("a key that is changed", "UPDATE incident SET sys_id = 'another' WHERE number = 'INC0012345'"),
        case("TRUNCATE", "TRUNCATE incident"),
        case(
            "PREPARE TRANSACTION",
            "BEGIN; UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'; PREPARE TRANSACTION 'p'",
        ),
        case("a transaction that only reads", "BEGIN READ ONLY; DELETE FROM incident"),
        case("MERGE", "MERGE INTO incident i USING fixed f ON f.sys_id = i.sys_id WHEN MATCHED THEN DELETE"),
        case(
            "ON CONFLICT DO UPDATE",
            "INSERT INTO incident (sys_id) VALUES ('x') ON CONFLICT (sys_id) DO UPDATE SET impact_value = 2",
        ),
        case(
            "a commit that is refused",
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit'; UPDATE incident SET state = 'Resolved' WHERE number = 'INC0012345'; COMMIT",
        ),
        case(
            "a table for which writes wait",
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit'; UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'; DROP FOREIGN TABLE incident CASCADE",
        ),
        case(
            "more writes than may wait",
            "BEGIN; SET LOCAL servicenow_fdw.push = 'commit'; SET LOCAL servicenow_fdw.push_memory = '64kB'; INSERT INTO incident (description) VALUES (repeat('x', 100000))",
        ),
        case("an answer that is lost", "UPDATE incident SET work_notes = 'x' WHERE number = 'INC0012345'")
            .faulty(Fault::new(Effect::ResetAfter).method("PATCH")),
        case(
            "the answer to one of many that is lost",
            "UPDATE incident SET work_notes = 'x' WHERE number IN ('INC0012345', 'INC0010001')",
        )
        .faulty(Fault::new(Effect::ResetAfter).path("/(batch|incident/)")),
        case("an answer that cannot be read", "DELETE FROM incident WHERE number = 'INC0012345'")
            .faulty(Fault::new(Effect::LoginPage).method("DELETE")),
        case(
            "a connection that breaks before anything is sent",
            "UPDATE incident SET assigned_to = 'Gurney' WHERE number = 'INC0012345'",
        )
        .faulty(Fault::new(Effect::ResetBefore).method("GET").table("sys_user")),
        case(
            "a login page before anything is sent",
            "UPDATE incident SET assigned_to = 'Gurney' WHERE number = 'INC0012345'",
        )
        .faulty(Fault::new(Effect::LoginPage).method("GET").table("sys_user")),
        case(
            "an instance that is down",
            "INSERT INTO incident (sys_id, short_description) VALUES (md5('down'), 'x')",
        )
        .faulty(Fault::new(Effect::Status { status: 503, html: true }).method("POST")),
        case("a rate limit", "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'").faulty(
            Fault::new(Effect::RateLimited { headers: true, retry_after: Some(3_000), json: true })
                .method("PATCH"),
        ),
        case(
            "requests that are discarded",
            "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'",
        )
        .faulty(Fault::new(Effect::Discard).method("PATCH")),
        case(
            "a request that is too large for what stands before the instance",
            "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'",
        )
        .faulty(Fault::new(Effect::Status { status: 413, html: true }).method("PATCH")),
        Case {
            setup: "ALTER SERVER acme OPTIONS (ADD max_calls_per_hour '1')",
            ..case(
                "a budget of calls that is used up",
                "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'; UPDATE incident SET impact_value = 3 WHERE number = 'INC0012345'",
            )
        },
        case("another refusal", "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'")
            .faulty(Fault::new(Effect::Status { status: 400, html: false }).method("PATCH")),
        case(
            "credentials that are refused",
            "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'",
        )
        .faulty(Fault::new(Effect::Unauthorized).method("PATCH")),
    ]
}

impl Case {
    fn arranged(self, arrange: fn(&World)) -> Self {
        Self { arrange, ..self }
    }

    fn faulty(self, fault: Fault) -> Self {
        Self { fault: Some(fault), ..self }
    }
}

/// An error as the file has it: without what differs from run to run.
fn show(out: &mut String, world: &World, what: &str, statement: &str, error: &DbError) {
    let address = world.sim.url().trim_start_matches("http://");
    let mut line = |label: &str, text: &str| {
        let mut text = text.replace(address, "INSTANCE").replace('\n', "\n         ");
        // Numbers that are others in each run.
        for name in ["room in ", "/pgsql_tmp."] {
            if let Some((before, after)) = text.split_once(name) {
                let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
                text = format!("{before}{name}N{rest}");
            }
        }
        writeln!(out, "{label}{text}").expect("a String can be written to");
    };
    line("-- ", what);
    line("", &format!("{statement};"));
    line("ERROR:   ", &format!("{}: {}", error.code().code(), error.message()));
    for (label, text) in [("DETAIL:  ", error.detail()), ("HINT:    ", error.hint())] {
        if let Some(text) = text {
            line(label, text);
        }
    }
    line("", "");
}

async fn fails(out: &mut String, world: &World, session: &Session, what: &str, statement: &str) {
    let error = session.error(statement).await;
    show(out, world, what, statement, &error);
    session.run("ROLLBACK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_fail_as_the_file_of_errors_says() {
    let world = World::new().await;
    let relabelled = world.sim.edit().relabel_choice("incident", "category", "software", "Network");
    assert_eq!(relabelled, Ok(1));
    world.import(&["incident", "x_acme_app_thing", "u_pg_widget"]).await;
    world
        .db
        .run(
            "CREATE FOREIGN TABLE caller (sys_id text, number text, email text OPTIONS (field 'caller_id.email'))
                 SERVER acme OPTIONS (\"table\" 'incident');
             CREATE FOREIGN TABLE nothing (sys_id text, name text) SERVER acme;
             CREATE FOREIGN TABLE typo (sys_id text, shrot_description text) SERVER acme OPTIONS (\"table\" 'incident');
             CREATE FOREIGN TABLE fixed (sys_id text, number text) SERVER acme
                 OPTIONS (\"table\" 'incident', updatable 'false');
             CREATE TABLE every (sys_id text, number text, place text) PARTITION BY LIST (place);
             CREATE TABLE here PARTITION OF every FOR VALUES IN ('here');
             INSERT INTO here VALUES ('x', 'x', 'here');
             CREATE FOREIGN TABLE there (sys_id text, number text, place text OPTIONS (field 'category')) SERVER acme
                 OPTIONS (\"table\" 'incident');
             ALTER TABLE every ATTACH PARTITION there DEFAULT;
             CREATE FUNCTION touch(id text) RETURNS text LANGUAGE plpgsql AS
                 $$ BEGIN UPDATE incident SET description = 'inner' WHERE sys_id = id; RETURN 'outer'; END $$;
             INSERT INTO incident (short_description) VALUES ('gone')",
        )
        .await;
    for table in ["caller", "fixed", "there"] {
        world.sync(table).await;
    }
    world.stop_worker().await;
    let mut out = String::new();
    for case in cases() {
        let Case { what, setup, arrange, fault, statement } = case;
        world.db.run(setup).await;
        arrange(&world);
        if let Some(fault) = fault {
            world.sim.fault(fault);
        }
        // One of its own: what an instance asks for, as to wait, holds for a session's other calls too.
        fails(&mut out, &world, &world.session().await, what, statement).await;
        world.sim.clear_faults();
        world.sim.edit().clear_acls();
        let undo = setup.replace("ADD optimistic_lock 'true'", "DROP optimistic_lock");
        world.db.run(&undo.replace("ADD max_calls_per_hour '1'", "DROP max_calls_per_hour")).await;
    }
    let update = "UPDATE incident SET impact_value = 2 WHERE number = 'INC0012345'";
    let wrong = world.session_of("wrong", "itil.user", "not-the-password").await;
    fails(&mut out, &world, &wrong, "a wrong password", update).await;
    world
        .db
        .run(&format!(
            "ALTER USER MAPPING FOR {} SERVER acme
             OPTIONS (SET auth 'password', ADD client_id 'fdw-client', ADD client_secret 'no')",
            world.role("wrong")
        ))
        .await;
    fails(&mut out, &world, &wrong, "a login that is refused", update).await;
    let nobody = world.session_as("nobody").await;
    fails(&mut out, &world, &nobody, "no right to the foreign table", update).await;
    let directory = world.cluster.data().join("servicenow_fdw");
    let database: u32 =
        world.db.value("SELECT oid FROM pg_database WHERE datname = current_database()").await;
    let directory = directory.join(database.to_string());
    let _maybe_there = std::fs::remove_dir_all(&directory);
    std::fs::write(&directory, "").expect("a file");
    let fresh = world.session().await;
    fails(&mut out, &world, &fresh, "a write that cannot be noted", update).await;
    std::fs::remove_file(&directory).expect("a file");
    std::fs::create_dir(&directory).expect("a directory");
    give(&directory, &world.cluster.data());
    let what = "a write that cannot be noted because the disk is full";
    let disk = Disk::mount(&directory, 64 << 10);
    match &disk {
        Some(disk) => {
            disk.fill(0);
            fails(&mut out, &world, &world.session().await, what, update).await;
        }
        None => eprintln!("NOT TESTED: {what}, as this user may not mount one"),
    }
    let is_tested = disk.is_some();
    drop(disk);
    let (free, _socket) = deaf_address();
    world.db.run(&format!("ALTER SERVER acme OPTIONS (SET instance_url 'http://{free}')")).await;
    fails(&mut out, &world, &world.db, "an instance that is not there", update).await;
    world
        .db
        .run(&format!(
            "DROP USER MAPPING FOR PUBLIC SERVER acme; GRANT SELECT, UPDATE ON incident TO {}",
            world.role("nobody")
        ))
        .await;
    fails(&mut out, &world, &nobody, "a role without a user mapping", update).await;
    let out = out
        .replace(&world.role("nobody"), "nobody")
        // As Postgres 18 says it.
        .replace("user \"nobody\", server \"acme\"", "\"nobody\"")
        .replace(&format!("servicenow_fdw/{database}"), "servicenow_fdw/DATABASE")
        .replace(&free.to_string(), "NOBODY");

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("write/errors.out");
    if std::env::var_os("SNFDW_ACCEPT").is_some() {
        std::fs::write(&path, &out).expect("the file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let block = |text: &str| text.split("\n\n").map(str::to_owned).collect::<Vec<_>>();
    let (out, mut expected) = (block(&out), block(&expected));
    expected.retain(|expected| is_tested || !expected.starts_with(&format!("-- {what}\n")));
    for (out, expected) in out.iter().zip(&expected) {
        assert_eq!(out, expected, "if that is better, take it over with SNFDW_ACCEPT=1");
    }
    assert_eq!(out.len(), expected.len(), "errors are missing or new");
}
