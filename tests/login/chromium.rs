//! A login as people see it: in Chromium, on the instance's pages and on the one that says what happened.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::consent::{AUTHORIZE, MAPPING, register, written_by};
use crate::{CLIENT, cluster, token_calls, world};

/// What WebDriver calls a reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Chromium without a window, which is driven as the W3C's WebDriver says. It ends with this, and so does what it leaves.
struct Chromium {
    /// The leader of a group of processes.
    driver: Child,
    directory: PathBuf,
    http: reqwest::Client,
    session: String,
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The group, in which Chromium is too.
        let group = format!("-{}", self.driver.id());
        let _has_ended = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _is_gone = self.driver.wait();
        let _removed = std::fs::remove_dir_all(&self.directory);
    }
}

impl Chromium {
    async fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("servicenow-chromium-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", &directory)
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's packages chromium and chromium-driver are installed");
        let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
        let port = lines.find_map(|line| {
            let line = line.expect("text");
            line.strip_suffix('.')?.rsplit_once("successfully on port ").map(|(_, port)| port.to_owned())
        });
        let port = port.expect("the driver says where it listens");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut chromium =
            Self { driver, directory, http, session: format!("http://127.0.0.1:{port}/session") };
        // Root has no sandbox; the pages are the tests' own.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments}, "timeouts": {"implicit": 15_000}
        }}});
        let session = chromium.call(Method::POST, "", &wanted).await;
        let session = session["sessionId"].as_str().expect("a session");
        chromium.session = format!("{}/{session}", chromium.session);
        chromium
    }

    async fn call(&self, method: Method, command: &str, body: &Value) -> Value {
        let mut request = self.http.request(method.clone(), format!("{}{command}", self.session));
        if method == Method::POST {
            request = request.body(body.to_string());
        }
        let answer = request.send().await.expect("an answer").text().await.expect("text");
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(answer["value"].get("error").is_none(), "{command} {body}: {answer}");
        answer["value"].take()
    }

    async fn post(&self, command: &str, body: Value) -> Value {
        self.call(Method::POST, command, &body).await
    }

    /// The first element that a CSS selector finds, once there is one.
    async fn element(&self, selector: &str) -> String {
        let found = self.post("/element", json!({"using": "css selector", "value": selector})).await;
        format!("/element/{}", found[ELEMENT].as_str().expect("an element"))
    }

    async fn fill_in(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("{element}/value"), json!({"text": text})).await;
    }

    async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("{element}/click"), json!({})).await;
    }

    /// What is seen of an element.
    async fn text(&self, selector: &str) -> String {
        let element = self.element(selector).await;
        let text = self.call(Method::GET, &format!("{element}/text"), &Value::Null).await;
        text.as_str().expect("text").to_owned()
    }

    /// Logs in on the instance's page, up to its question.
    async fn log_in(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
        self.fill_in("input[name=user_name]", "itil.user").await;
        self.fill_in("input[name=user_password]", "itil-secret").await;
        self.click("button").await;
        let question = self.text("form:has(input[name=decision]) p").await;
        assert_eq!(question, "fdw-client would like to act as itil.user.");
    }

    /// The page that says what happened: its heading and what is below.
    async fn page(&self) -> (String, String) {
        // It has a style, the instance's have none.
        self.element("head > style").await;
        (self.text("h1").await, self.text("p").await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_logs_in_with_chromium_and_reads_what_happened() {
    let (_, address) = cluster();
    let world = world().await;
    register(&world, &format!("http://{address}/oauth/callback")).await;
    world.db.run(&format!("{MAPPING}{CLIENT})")).await;
    let chromium = Chromium::start().await;

    chromium.log_in(&world.db.value::<String>(AUTHORIZE).await).await;
    chromium.click("input[value=Deny]").await;
    let (heading, text) = chromium.page().await;
    assert_eq!(heading, "Not logged in");
    assert!(text.starts_with("ServiceNow says: access_denied. Begin again"), "{text}");
    assert_eq!(token_calls(&world), 0);

    chromium.log_in(&world.db.value::<String>(AUTHORIZE).await).await;
    chromium.click("input[value=Allow]").await;
    let (heading, text) = chromium.page().await;
    assert_eq!(heading, "Logged in");
    assert!(text.starts_with("PostgreSQL role postgres uses server acme as you from now on."), "{text}");
    world.sync("incident").await;
    assert_eq!(written_by(&world).await, "itil.user");

    // The page is loaded again: nothing happens twice.
    chromium.post("/refresh", json!({})).await;
    let (heading, text) = chromium.page().await;
    assert_eq!(heading, "Not logged in");
    assert!(text.contains("was used already"), "{text}");
    assert_eq!(written_by(&world).await, "itil.user");
    assert_eq!(token_calls(&world), 1);
}
