//! Secrets are shown to nobody: not in the server's log, not to other roles, not in what a statement says.

use std::path::Path;

use servicenow_sim::{Effect, Fault, PRIVATE_KEY};
use world::{Session, World};

use crate::{KNOWN, world};

/// What is planted, and what was got with it.
struct Planted(Vec<String>);

impl Planted {
    /// Fails if a text has any of it.
    fn are_not_in(&self, text: &str, what: &str) {
        for secret in &self.0 {
            if let Some(at) = text.find(secret.as_str()) {
                let from = text[..at].char_indices().rev().nth(200).map_or(0, |(at, _)| at);
                panic!("a secret in {what}: {}", &text[from..at]);
            }
        }
    }
}

/// What statements say, and how they fail.
async fn said(session: &Session, sql: &str) -> String {
    match session.client().simple_query(sql).await {
        Ok(messages) => format!("{messages:?}"),
        Err(e) => format!("{:?}", e.as_db_error()),
    }
}

/// The relations that have any of it, as far as a session may read them, and those that cannot be read.
async fn who_has(session: &Session, planted: &Planted, except: &[&str]) -> (Vec<String>, Vec<String>) {
    let relations = session
        .rows(
            "SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
             WHERE relkind IN ('r', 'v', 'm', 'f', 'p') AND has_schema_privilege(n.oid, 'USAGE')
             AND has_table_privilege(pg_class.oid, 'SELECT')",
        )
        .await;
    assert!(relations.len() > 150, "{}", relations.len());
    let patterns: Vec<String> = planted.0.iter().map(|secret| format!("%{secret}%")).collect();
    let (mut having, mut unread) = (Vec::new(), Vec::new());
    for relation in relations.iter().map(|row| row.get::<_, String>(0)) {
        if except.contains(&relation.as_str()) {
            continue;
        }
        // Parameters are in no statement's text. One look at each row is enough.
        let sql = format!("SELECT FROM {relation} r WHERE r::text LIKE ANY ($1::text[]) LIMIT 1");
        match session.client().query(&sql, &[&patterns]).await {
            Ok(rows) if rows.is_empty() => {}
            Ok(_) => having.push(relation),
            Err(e) => unread.push(format!("{relation}: {}", e.as_db_error().map_or("", |e| e.message()))),
        }
    }
    (having, unread)
}

/// The tokens in the files of a world's logins.
async fn tokens(world: &World) -> Vec<String> {
    let database: u32 =
        world.db.value("SELECT oid FROM pg_database WHERE datname = current_database()").await;
    let directory = world.cluster.data().join(format!("servicenow_fdw/{database}/logins"));
    let mut found = Vec::new();
    for path in std::fs::read_dir(directory).expect("there are some").flatten().map(|entry| entry.path()) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let Ok(state) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
        found.extend(
            [&state["token"]["access"], &state["refresh"]]
                .iter()
                .filter_map(|v| v.as_str())
                .map(str::to_owned),
        );
    }
    found
}

fn is_ours(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o077 == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_anybody_else_may_read_has_a_secret_in_it() {
    let world = world().await;
    let (password, key, wrong) = ("s3cret-password-of-feyd", "s3cret-key-of-feyd", "s3cret-but-wrong");
    let edit = world.sim.edit();
    edit.add_user("feyd", password, &["itil", "admin"]).expect("a user");
    edit.add_api_key(key, "feyd");
    edit.set_client_secret("fdw-client", "s3cret-of-the-client").expect("a client");
    let client = "client_id 'fdw-client', client_secret 's3cret-of-the-client'";
    let pem = PRIVATE_KEY.lines().nth(3).expect("a key of many lines").to_owned();
    let mut planted =
        Planted(vec![password.to_owned(), key.to_owned(), wrong.to_owned(), "s3cret-of".to_owned(), pem]);
    let role = world.role("plain");
    let plain = world.session_as("plain").await;
    world
        .db
        .run(&format!(
            "ALTER SERVER acme OPTIONS (ADD capture 'queue');
             GRANT USAGE ON FOREIGN SERVER acme TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON incident TO {role};
             SET log_statement = 'all'; SET log_min_messages = 'debug5'; SET statement_timeout = '10s'"
        ))
        .await;
    plain.run("SET client_min_messages = 'debug5'; SET statement_timeout = '10s'").await;
    let mut seen = String::new();
    for login in [
        format!("auth 'basic', username 'feyd', password '{wrong}'"),
        format!("auth 'basic', username 'feyd', password '{password}'"),
        format!("auth 'api_key', api_key '{wrong}'"),
        format!("auth 'api_key', api_key '{key}'"),
        "auth 'client_credentials', client_id 'fdw-client', client_secret 's3cret-but-wrong'".to_owned(),
        format!("auth 'client_credentials', {client}"),
        format!("auth 'password', {client}, username 'feyd', password '{wrong}'"),
        format!("auth 'password', {client}, username 'feyd', password '{password}'"),
        format!("auth 'refresh_token', {client}, refresh_token '{wrong}'"),
        format!("auth 'jwt_bearer', {client}, subject 'feyd', key_id 'wrong', private_key '{PRIVATE_KEY}'"),
        format!("auth 'jwt_bearer', {client}, subject 'feyd', key_id 'fdw-key', private_key '{PRIVATE_KEY}'"),
        format!("auth 'authorization_code', {client}"),
    ] {
        // A statement with a secret in it is logged by whoever has all statements logged; README says so.
        world.db.run("SET log_statement = 'none'").await;
        world.db.run(&format!("CREATE USER MAPPING FOR PUBLIC SERVER acme OPTIONS ({login})")).await;
        world.db.run("SET log_statement = 'all'").await;
        // A statement whose outcome nobody knows.
        let breaks = login.contains("api_key");
        let broken = Fault::new(Effect::ResetAfter).method("PATCH").times(u64::from(breaks));
        let broken = world.sim.fault(broken);
        for sql in [
            "SELECT * FROM servicenow.check_server('acme')",
            "SELECT servicenow.install_capture('acme')",
            "SELECT servicenow.authorize_url('acme')",
            "EXPLAIN (VERBOSE) UPDATE incident SET short_description = 'x'",
            &format!("UPDATE incident SET short_description = short_description || '.' WHERE {KNOWN}"),
            "INSERT INTO incident (sys_id, short_description) VALUES ('x', 'y')",
        ] {
            let (ours, theirs) = tokio::join!(said(&world.db, sql), said(&plain, sql));
            seen += &(ours + &theirs);
        }
        world.sim.remove_fault(broken);
        planted.0.extend(tokens(&world).await);
        let status = "SELECT s::text FROM servicenow.sync_status s";
        seen += &said(&plain, status).await;
        world.db.run("DROP USER MAPPING FOR PUBLIC SERVER acme").await;
    }
    world.db.run("SET log_statement = 'none'").await;
    world
        .db
        .run(&format!(
            "CREATE USER MAPPING FOR PUBLIC SERVER acme OPTIONS (auth 'client_credentials', {client})"
        ))
        .await;
    world.db.run("RESET log_min_messages").await;
    world.sync("incident").await;
    let mappings = [
        "pg_catalog.pg_user_mapping",
        "pg_catalog.pg_user_mappings",
        "information_schema.user_mapping_options",
        "information_schema._pg_user_mappings",
        "servicenow.token",
    ];
    plain.run("RESET client_min_messages").await;
    let nobody = || (Vec::<String>::new(), Vec::<String>::new());
    assert_eq!(who_has(&plain, &planted, &[]).await, nobody());
    assert_eq!(who_has(&world.db, &planted, &mappings).await, nobody());
    assert!(planted.0.len() > 10, "tokens were got: {}", planted.0.len());
    planted.are_not_in(&seen, "what sessions see");
    planted.are_not_in(&world.cluster.log(), "the server log");
    // A dump has what is in user mappings, of those that one may see; nobody's has a token.
    let dump = |user: &str| {
        let mut program = world.cluster.program("pg_dump", &world.database);
        let output = program.args(["-U", user]).output().expect("pg_dump");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    planted.are_not_in(&dump(&role), "an ordinary role's dump");
    let tokens = Planted(planted.0.split_off(5));
    tokens.are_not_in(&dump("postgres"), "a superuser's dump");
    assert!(is_ours(&world.cluster.data().join("servicenow_fdw")));
}
