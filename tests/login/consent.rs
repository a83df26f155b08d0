//! Logins in a browser, which parses the instance's pages and follows them as people do.

use futures_util::future::join_all;
use reqwest::header::CONTENT_TYPE;
use servicenow_sim::Dataset;
use url::Url;
use world::World;
use world::cluster::Cluster;

use crate::{CLIENT, INCIDENT, KNOWN, cluster, token_calls, world};

pub const MAPPING: &str =
    "CREATE USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (auth 'authorization_code', ";
pub const AUTHORIZE: &str = "SELECT servicenow.authorize_url('acme')";

/// A browser without a window.
struct Browser(reqwest::Client);

impl Browser {
    fn new() -> Self {
        let policy = reqwest::redirect::Policy::none();
        Self(reqwest::Client::builder().no_proxy().redirect(policy).build().expect("a browser"))
    }

    async fn head(&self, url: &str) -> reqwest::Response {
        self.0.head(url).send().await.expect("an answer")
    }

    async fn get(&self, url: &str) -> reqwest::Response {
        self.0.get(url).send().await.expect("an answer")
    }

    /// Fills in the form of a page and sends it.
    async fn submit(&self, url: &str, page: &str, filled_in: &[(&str, &str)]) -> reqwest::Response {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        for input in page.split("<input ").skip(1) {
            let input = input.split('>').next().unwrap_or_default();
            let attribute = |name: &str| {
                input.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next())
            };
            let name = attribute("name").expect("a named input");
            let given = filled_in.iter().find(|(input, _)| *input == name).map(|(_, value)| *value);
            match (attribute("type"), given, attribute("value")) {
                // One button is pressed.
                (Some("submit"), given, value) if given != value => {}
                (_, given, value) => {
                    form.append_pair(name, given.or(value).unwrap_or_default());
                }
            }
        }
        let request = self.0.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        request.body(form.finish()).send().await.expect("an answer")
    }

    /// Logs in at an address and answers the question; gives back where the instance sends the browser.
    async fn log_in(&self, url: &str, user: &str, decision: &str) -> Url {
        let page = self.get(url).await.text().await.expect("a page");
        let password = format!("{}-secret", user.split('.').next().unwrap_or_default());
        let question = self.submit(url, &page, &[("user_name", user), ("user_password", &password)]).await;
        let question = question.text().await.expect("a page");
        let answer = self.submit(url, &question, &[("decision", decision)]).await;
        assert_eq!(answer.status(), 302);
        answer.headers()["location"].to_str().expect("text").parse().expect("an address")
    }
}

fn parameter(url: &Url, name: &str) -> String {
    let mut pairs = url.query_pairs();
    pairs.find(|(n, _)| n == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// Registers where the instance may send browsers to, and has the worker be there by then.
pub async fn register(world: &World, address: &str) {
    world.until("SELECT bool_and(last_error IS NOT NULL) FROM servicenow.sync_status").await;
    let edit = world.sim.edit();
    let id = edit.find("oauth_entity", "client_id=fdw-client").expect("a query").remove(0);
    edit.update("oauth_entity", &id, &[("redirect_url", address)]).expect("it is there");
}

pub async fn written_by(world: &World) -> String {
    world
        .db
        .run(&format!("UPDATE incident SET short_description = short_description || '.' WHERE {KNOWN}"))
        .await;
    let id = world.find("incident", "number=INC0012345");
    world.remote("incident", &id, "sys_updated_by").expect("it is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_not_logged_in_is_told_how() {
    let world = world().await;
    world.db.run(&format!("{MAPPING}{CLIENT})")).await;
    world.until("SELECT last_error LIKE '%nobody has logged in yet%' FROM servicenow.sync_status").await;
    let error = world.db.error("INSERT INTO incident (short_description) VALUES ('x')").await;
    assert_eq!(error.code().code(), "28000");
    assert!(error.hint().is_some_and(|hint| hint.contains("servicenow.authorize_url('acme')")));
    assert_eq!(token_calls(&world), 0);
    world
        .db
        .run("ALTER USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (SET auth 'client_credentials')")
        .await;
    let error = world.db.error(AUTHORIZE).await;
    assert_eq!(error.code().code(), "55000", "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_takes_a_browser_in_and_everybody_is_logged_in() {
    let (_, address) = cluster();
    let world = world().await;
    register(&world, &format!("http://{address}/oauth/callback")).await;
    world.db.run(&format!("{MAPPING}{CLIENT})")).await;
    // What is rolled back was asked for all the same.
    world.db.run("BEGIN").await;
    let url: String = world.db.value(AUTHORIZE).await;
    world.db.run("ROLLBACK").await;
    assert!(url.starts_with(&format!("{}/oauth_auth.do?response_type=code", world.sim.url())), "{url}");
    assert!(url.contains("code_challenge_method=S256"), "{url}");
    let browser = Browser::new();
    let back = browser.log_in(&url, "itil.user", "Allow").await;
    // What looks at addresses without following them uses nothing up.
    assert_eq!(browser.head(back.as_str()).await.status(), 405);
    let answer = browser.get(back.as_str()).await;
    let headers = answer.headers().clone();
    assert_eq!(
        (answer.status().as_u16(), &headers["cache-control"]),
        (200, &"no-store".parse().expect("text"))
    );
    assert!(headers["content-security-policy"].to_str().expect("text").contains("default-src 'none'"));
    let page = answer.text().await.expect("a page");
    assert!(page.contains("Logged in") && page.contains("role postgres uses server acme"), "{page}");
    world.sync("incident").await;
    assert_eq!(written_by(&world).await, "itil.user");
    assert_eq!(token_calls(&world), 1);
    // Once is enough.
    let again = browser.get(back.as_str()).await;
    assert_eq!(again.status(), 400);
    assert!(again.text().await.expect("a page").contains("was used already"));
    // The token ends, the refresh token does not.
    world.sim.edit().expire_tokens(false);
    assert_eq!(written_by(&world).await, "itil.user");
}

/// Who has agreed must not be told that nothing came of it while something may.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_takes_long_is_not_said_to_have_failed() {
    let (_, address) = cluster();
    let world = world().await;
    register(&world, &format!("http://{address}/oauth/callback")).await;
    world.db.run(&format!("{MAPPING}{CLIENT})")).await;
    let browser = Browser::new();
    let back = browser.log_in(&world.db.value::<String>(AUTHORIZE).await, "itil.user", "Allow").await;
    world.sim.set(|s| s.latency_ms = 16_000);
    let answer = browser.get(back.as_str()).await;
    let status = answer.status();
    let page = answer.text().await.expect("a page");
    assert_eq!(status, 504, "{page}");
    assert!(page.contains("Maybe logged in") && page.contains("revoke the token"), "{page}");
    world.sim.set(|s| s.latency_ms = 0);
    world.sync("incident").await;
    assert_eq!(written_by(&world).await, "itil.user");
    assert_eq!(token_calls(&world), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_brings_back_anything_else_is_told_what_is_wrong() {
    let (_, address) = cluster();
    let world = world().await;
    register(&world, &format!("http://{address}/oauth/callback")).await;
    world.db.run(&format!("{MAPPING}{CLIENT})")).await;
    let url: String = world.db.value(AUTHORIZE).await;
    let browser = Browser::new();
    let refused = browser.log_in(&url, "itil.user", "Deny").await;
    let back = browser.log_in(&url, "itil.user", "Allow").await;
    let callback = format!("http://{address}/oauth/callback");
    let state = parameter(&back, "state");
    let database = state.split('.').next().expect("a prefix");
    for (url, why) in [
        (refused.to_string(), "access_denied"),
        (callback.clone(), "the state is not known"),
        (format!("{callback}?state={database}.x&code=x"), "the state is not known"),
        (format!("{callback}?state=1.x&code=x"), "the state is not known"),
        (format!("{callback}?state=../../x&code=x"), "the state is not known"),
        (format!("{callback}?state={database}.x"), "there is no code"),
        (format!("{callback}?state={database}.x&error=%3Cscript%3E"), "ServiceNow has refused it"),
    ] {
        let answer = browser.get(&url).await;
        assert_eq!(answer.status(), 400, "{url}");
        let page = answer.text().await.expect("a page");
        assert!(page.contains("Not logged in") && page.contains(why) && !page.contains("<script"), "{page}");
    }
    // However many make states up.
    let made_up = (0..40).map(|n| {
        let (browser, url) = (&browser, format!("{callback}?state={database}.{n}&code=x"));
        async move { browser.get(&url).await.text().await.expect("a page") }
    });
    for page in join_all(made_up).await {
        assert!(page.contains("the state is not known"), "{page}");
    }
    assert_eq!(token_calls(&world), 0);
    // Somebody has altered the user mapping meanwhile.
    world
        .db
        .run("ALTER USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (SET client_id 'fdw-client')")
        .await;
    let page = browser.get(back.as_str()).await.text().await.expect("a page");
    assert!(page.contains("the user mapping was altered meanwhile"), "{page}");
}

/// What a role may do when it begins may be taken from it before the browser is back.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_logs_in_who_may_not_use_the_server_any_more() {
    let (_, address) = cluster();
    let world = world().await;
    register(&world, &format!("http://{address}/oauth/callback")).await;
    let role = world.role("ivy");
    let ivy = world.session_as("ivy").await;
    world
        .db
        .run(&format!(
            "CREATE USER MAPPING FOR {role} SERVER acme OPTIONS (auth 'authorization_code', {CLIENT});
             GRANT USAGE ON FOREIGN SERVER acme TO {role}"
        ))
        .await;
    let url: String = ivy.value(AUTHORIZE).await;
    let browser = Browser::new();
    let back = browser.log_in(&url, "pacific.user", "Allow").await;
    world.db.run(&format!("REVOKE USAGE ON FOREIGN SERVER acme FROM {role}")).await;
    let page = browser.get(back.as_str()).await.text().await.expect("a page");
    assert!(page.contains("may not log in to server acme any more"), "{page}");
    assert_eq!(token_calls(&world), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_can_be_brought_back_by_hand_once_and_by_nobody_else() {
    let (_, address) = cluster();
    let world = world().await;
    register(&world, &format!("http://{address}/oauth/callback")).await;
    let role = world.role("ivy");
    let ivy = world.session_as("ivy").await;
    world
        .db
        .run(&format!(
            "{MAPPING}{CLIENT});
             CREATE USER MAPPING FOR {role} SERVER acme OPTIONS (auth 'authorization_code', {CLIENT})"
        ))
        .await;
    let error = ivy.error(AUTHORIZE).await;
    assert_eq!(error.code().code(), "42501", "without USAGE");
    world.db.run(&format!("GRANT USAGE ON FOREIGN SERVER acme TO {role}")).await;
    let url: String = ivy.value(AUTHORIZE).await;
    let back = Browser::new().log_in(&url, "pacific.user", "Allow").await;
    let (code, state) = (parameter(&back, "code"), parameter(&back, "state"));
    let exchange =
        |code: &str, state: &str| format!("SELECT servicenow.exchange_code('acme', '{code}', '{state}')");
    for (session, state) in [(&world.db, state.as_str()), (&ivy, "nonsense")] {
        let error = session.error(&exchange(&code, state)).await;
        assert_eq!(error.code().code(), "22023", "{}", error.message());
        assert!(error.message().starts_with("cannot exchange the code: the state is"), "{}", error.message());
    }
    ivy.run(&format!("BEGIN; {}; ROLLBACK", exchange(&code, &state))).await;
    assert_eq!(ivy.error(&exchange(&code, &state)).await.code().code(), "22023");
    assert_eq!(token_calls(&world), 1);
    // A wrong code uses the state up, too.
    let url: String = ivy.value(AUTHORIZE).await;
    let state = parameter(&url.parse().expect("an address"), "state");
    let error = ivy.error(&exchange("wrong", &state)).await;
    assert_eq!(error.code().code(), "28000", "{}", error.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_has_the_refresh_token_and_nobody_sees_it() {
    // Where nobody listens, and all plans are logged, from 16 on with the statements' parameters.
    let logged = "shared_preload_libraries = 'auto_explain'
        auto_explain.log_min_duration = 0
        auto_explain.log_nested_statements = on
        auto_explain.log_verbose = on";
    let world = World::on(Box::leak(Box::new(Cluster::start(logged))), Dataset::Small).await;
    world.set_up("").await;
    world.db.run(&format!("DROP USER MAPPING FOR PUBLIC SERVER acme; {INCIDENT}")).await;
    world.db.run(&format!("{MAPPING}{CLIENT})")).await;
    let url: String = world.db.value(AUTHORIZE).await;
    let back = Browser::new().log_in(&url, "itil.user", "Allow").await;
    assert!(back.as_str().starts_with("http://localhost/oauth/callback?"), "{back}");
    let (code, state) = (parameter(&back, "code"), parameter(&back, "state"));
    world.db.run(&format!("SELECT servicenow.exchange_code('acme', '{code}', '{state}')")).await;
    world.until("SELECT count(*) = 1 FROM servicenow.token").await;
    let nobody = world.session_as("nobody").await;
    for closed in ["SELECT * FROM servicenow.token", "SELECT servicenow._secret()"] {
        assert_eq!(nobody.error(closed).await.code().code(), "42501");
    }
    assert_eq!(world.db.value::<Option<String>>("SELECT servicenow._secret()").await, None);
    world.db.run("SELECT servicenow.capture_script('incident')").await;
    let secrets = "SELECT ARRAY[refresh_token, signing_key] FROM servicenow.token, servicenow.capture";
    let secrets = world.db.value::<Vec<String>>(secrets).await;
    for part in ["INSERT INTO servicenow.token", "INSERT INTO servicenow.capture"] {
        assert!(world.cluster.log().contains(part), "{part} is logged");
    }
    assert!(secrets.iter().all(|secret| secret.len() > 20 && !world.cluster.log().contains(secret)));
    // As there: no files.
    world.stop_worker().await;
    let database: u32 =
        world.db.value("SELECT oid FROM pg_database WHERE datname = current_database()").await;
    let files = world.cluster.data().join(format!("servicenow_fdw/{database}/logins"));
    std::fs::remove_dir_all(files).expect("they are there");
    let session = world.session().await;
    session.run("INSERT INTO incident (short_description) VALUES ('after the failover')").await;
    assert_eq!(token_calls(&world), 2);
    // A mapping that was altered has nothing to do with it.
    world
        .db
        .run("ALTER USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (SET client_id 'fdw-client')")
        .await;
    let error = session.error("INSERT INTO incident (short_description) VALUES ('x')").await;
    assert_eq!(error.code().code(), "28000");
    world.db.run("SELECT servicenow.start_worker()").await;
    world.until("SELECT count(*) = 0 FROM servicenow.token").await;
}
