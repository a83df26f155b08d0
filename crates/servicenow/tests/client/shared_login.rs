//! One login of several processes: each client here is one, with a connection of its own and the same file.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use servicenow::Error;
use servicenow::client::auth::consent::Consent;
use servicenow::client::auth::vault::{Vault, VaultFile, refresh_token_in};
use servicenow::client::auth::{Credentials, OauthClient, Secret, SecretSource};
use servicenow::client::retry::Urgency;
use servicenow_sim::{Effect, Fault, Simulator};

use crate::{HttpClient, calls, instance, logins, page, set_up};

/// An instance and the file of a login.
struct Shared {
    sim: Simulator,
    path: PathBuf,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _nothing_there = self.path.ancestors().nth(2).map(std::fs::remove_dir_all);
    }
}

impl Shared {
    async fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("servicenow-login-{}-{number}", std::process::id());
        Self { sim: instance().await, path: std::env::temp_dir().join(name).join("deeper/login") }
    }

    /// A process.
    fn process(&self, credentials: Credentials) -> HttpClient {
        self.process_with(credentials, Urgency::Statement, None)
    }

    fn process_with(&self, credentials: Credentials, urgency: Urgency, spare: Option<Secret>) -> HttpClient {
        let clock = self.sim.clock().clone();
        set_up(self.sim.url(), credentials, |instance, _| {
            instance.patience.attempts = 1;
            instance.patience.urgency = urgency;
            let file = VaultFile { path: self.path.clone(), syncs: true, spare };
            instance.vault = Vault::shared(file).with_clock(move || clock.now().into());
        })
        .expect("a client")
    }

    /// A process that uses a version of a user mapping, one of several of an account.
    fn mapping(&self, name: &str, version: &str, credentials: &Credentials) -> HttpClient {
        let clock = || {
            let clock = self.sim.clock().clone();
            move || clock.now().into()
        };
        let path = |name: &str| self.path.with_file_name(name);
        let vault = |path| Vault::shared(VaultFile { path, syncs: false, spare: None }).with_clock(clock());
        let own = vault(path(&format!("{name}.{version}")));
        let own = own.of_account(vault(path("account")), name.to_owned(), version.to_owned());
        set_up(self.sim.url(), credentials.clone(), |instance, _| {
            instance.patience.attempts = 1;
            instance.vault = own;
        })
        .expect("a client")
    }

    /// How many calls were not let in.
    fn refused(&self) -> usize {
        self.sim.requests().iter().filter(|request| request.status == 401).count()
    }

    fn processes(&self, number: usize, credentials: &Credentials) -> Vec<HttpClient> {
        (0..number).map(|_| self.process(credentials.clone())).collect()
    }
}

/// Has all of them make a call at once; gives back how many were let in.
async fn call(processes: &[HttpClient]) -> usize {
    let calls = join_all(processes.iter().map(|client| page(client, "incident", "", 1))).await;
    calls.iter().filter(|answer| answer.is_ok()).count()
}

fn oauth_client() -> OauthClient {
    OauthClient::new("fdw-client", Secret::new("fdw-client-secret"))
}

fn client_credentials() -> Credentials {
    Credentials::ClientCredentials { client: oauth_client() }
}

fn password_grant(password: &str) -> Credentials {
    Credentials::Password {
        client: oauth_client(),
        username: "itil.user".to_owned(),
        password: Secret::new(password).into(),
    }
}

fn basic(password: &str) -> Credentials {
    Credentials::Basic { username: "itil.user".to_owned(), password: Secret::new(password).into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_processes_that_begin_at_once_make_one_token_call() {
    let shared = Shared::new().await;
    let processes = shared.processes(50, &client_credentials());
    assert_eq!(call(&processes).await, 50);
    assert_eq!(logins(&shared.sim), 1);
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode();
    assert_eq!(mode(&shared.path) & 0o777, 0o600);
    assert_eq!(mode(shared.path.parent().expect("a directory")) & 0o777, 0o700);
    // A token that was revoked is replaced once for all of them.
    shared.sim.edit().expire_tokens(true);
    assert_eq!(call(&processes).await, 50);
    assert_eq!(logins(&shared.sim), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_busy_processes_make_at_most_three_token_calls_an_hour() {
    for credentials in [client_credentials(), password_grant("itil-secret")] {
        let shared = Shared::new().await;
        let mut processes = shared.processes(49, &credentials);
        processes.push(shared.process_with(credentials, Urgency::Background, None));
        let (hours, steps_an_hour) = (2, 10);
        for _ in 0..hours * steps_an_hour {
            assert_eq!(call(&processes).await, 50);
            shared.sim.clock().advance(Duration::from_secs(3_600 / steps_an_hour));
        }
        let an_hour = logins(&shared.sim) as f64 / hours as f64;
        assert!(an_hour <= 3.0, "{an_hour}");
    }
}

#[tokio::test]
async fn whoever_begins_later_uses_the_token_that_is_there() {
    let shared = Shared::new().await;
    for _ in 0..3 {
        assert_eq!(call(&[shared.process(client_credentials())]).await, 1);
    }
    assert_eq!(logins(&shared.sim), 1);
}

#[tokio::test]
async fn what_cannot_be_kept_in_a_file_is_kept_in_the_process() {
    let shared = Shared::new().await;
    std::fs::create_dir_all(shared.path.parent().and_then(|p| p.parent()).expect("a path")).expect("made");
    std::fs::write(shared.path.parent().expect("a path"), "no directory").expect("a file");
    let process = shared.process(client_credentials());
    for _ in 0..3 {
        assert_eq!(call(std::slice::from_ref(&process)).await, 1);
    }
    assert_eq!(logins(&shared.sim), 1);
    // Neither does nonsense in the file do any harm.
    let shared = Shared::new().await;
    std::fs::create_dir_all(shared.path.parent().expect("a path")).expect("made");
    std::fs::write(&shared.path, "{\"token\":17").expect("a file");
    assert_eq!(call(&shared.processes(5, &client_credentials())).await, 5);
    assert_eq!(logins(&shared.sim), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_tried_by_one_process_and_rests_for_all() {
    for credentials in
        [password_grant("wrong"), basic("wrong"), Credentials::ApiKey { key: Secret::new("wrong").into() }]
    {
        let shared = Shared::new().await;
        let processes = shared.processes(30, &credentials);
        let tries = || logins(&shared.sim) + calls(&shared.sim, "GET").len();
        assert_eq!(call(&processes).await, 0);
        assert_eq!(tries(), 1, "{credentials:?}");
        assert_eq!(call(&shared.processes(5, &credentials)).await, 0);
        assert_eq!(tries(), 1, "whoever begins later knows: {credentials:?}");
        shared.sim.clock().advance(Duration::from_secs(31));
        assert_eq!(call(&processes).await, 0);
        assert_eq!(tries(), 2, "{credentials:?}");
        shared.sim.clock().advance(Duration::from_secs(31));
        assert_eq!(call(&processes).await, 0);
        assert_eq!(tries(), 2, "the second rest is longer: {credentials:?}");
        // Others are tried at once.
        shared.sim.edit().set_password("itil.user", "itil-secret");
        assert_eq!(call(&shared.processes(5, &password_grant("itil-secret"))).await, 5);
    }
}

/// An account is not locked by tries that nobody has asked for.
#[tokio::test]
async fn a_password_that_was_refused_three_times_rests_until_it_is_another_or_somebody_says_so() {
    for credentials in [password_grant, basic] {
        let shared = Shared::new().await;
        let tries = || logins(&shared.sim) + calls(&shared.sim, "GET").len();
        for _ in 0..20 {
            assert_eq!(call(&shared.processes(3, &credentials("wrong"))).await, 0);
            shared.sim.clock().advance(Duration::from_secs(3_600));
        }
        assert_eq!(tries(), 3);
        shared.sim.edit().set_password("itil.user", "wrong");
        assert_eq!(call(&[shared.process(credentials("wrong"))]).await, 0, "it is not tried");
        shared.process(credentials("wrong")).forgive_refusal().await;
        assert_eq!(call(&shared.processes(3, &credentials("wrong"))).await, 3);
        shared.sim.edit().set_password("itil.user", "right");
        shared.sim.edit().expire_tokens(true);
        assert_eq!(call(&[shared.process(credentials("wrong"))]).await, 0);
        assert_eq!(call(&[shared.process(credentials("right"))]).await, 1, "another one is tried at once");
    }
    // No account is behind a client's secret: what was wrong over there may be right by now.
    let shared = Shared::new().await;
    let client =
        Credentials::ClientCredentials { client: OauthClient::new("fdw-client", Secret::new("wrong")) };
    for _ in 0..5 {
        assert_eq!(call(&[shared.process(client.clone())]).await, 0);
        shared.sim.clock().advance(Duration::from_secs(901));
    }
    assert_eq!(logins(&shared.sim), 5);
}

/// On a full disk a process remembers what it cannot write.
#[tokio::test]
async fn what_could_not_be_written_is_not_forgotten_by_its_process() {
    let shared = Shared::new().await;
    std::fs::create_dir_all(shared.path.with_added_extension("new")).expect("in the way of the file");
    let process = shared.process(basic("wrong"));
    for _ in 0..5 {
        assert_eq!(call(std::slice::from_ref(&process)).await, 0);
    }
    assert_eq!(calls(&shared.sim, "GET").len(), 1, "a refusal");
    let process = shared.process(password_grant("itil-secret"));
    assert_eq!(call(std::slice::from_ref(&process)).await, 1);
    shared.sim.edit().expire_tokens(true);
    shared.sim.edit().set_password("itil.user", "another");
    assert_eq!(call(std::slice::from_ref(&process)).await, 0);
    assert_eq!(logins(&shared.sim), 3, "the refresh token was there, and is not taken for the password");
    // There is room again: what others write is seen.
    std::fs::remove_dir_all(shared.path.with_added_extension("new")).expect("it is there");
    shared.sim.edit().set_password("itil.user", "itil-secret");
    shared.sim.clock().advance(Duration::from_secs(31));
    assert_eq!(call(&[shared.process(password_grant("itil-secret"))]).await, 1);
    assert_eq!(call(std::slice::from_ref(&process)).await, 1);
    assert_eq!(logins(&shared.sim), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_were_accepted_hold_nobody_up() {
    let shared = Shared::new().await;
    let processes = shared.processes(10, &basic("itil-secret"));
    assert_eq!(call(&processes).await, 10);
    shared.sim.set(|s| s.latency_ms = 200);
    let began = std::time::Instant::now();
    assert_eq!(call(&processes).await, 10);
    assert!(began.elapsed() < Duration::from_millis(200 * 9), "one after the other");
}

#[tokio::test]
async fn a_dead_refresh_token_is_replaced_by_the_first_grant_once() {
    let shared = Shared::new().await;
    assert_eq!(call(&[shared.process(password_grant("itil-secret"))]).await, 1);
    shared.sim.edit().expire_tokens(true);
    let processes = shared.processes(10, &password_grant("itil-secret"));
    assert_eq!(call(&processes).await, 10);
    assert_eq!(logins(&shared.sim), 3, "the refresh token, then the password");
    // If both are refused that is one try for all.
    shared.sim.edit().expire_tokens(true);
    shared.sim.edit().set_password("itil.user", "another");
    assert_eq!(call(&processes).await, 0);
    assert_eq!(logins(&shared.sim), 5);
    assert_eq!(call(&processes).await, 0);
    assert_eq!(logins(&shared.sim), 5);
}

#[tokio::test]
async fn refresh_tokens_that_change_with_every_use_are_followed() {
    let shared = Shared::new().await;
    shared.sim.set(|s| s.rotate_refresh_tokens = true);
    let first = shared.process(password_grant("itil-secret"));
    assert_eq!(call(std::slice::from_ref(&first)).await, 1);
    let token = || refresh_token_in(&shared.path).expect("a refresh token");
    let given = token();
    // The password is of no use any more: the refresh tokens are all there is.
    shared.sim.edit().set_password("itil.user", "another");
    for _ in 0..5 {
        let before = token();
        shared.sim.clock().advance(Duration::from_secs(1_790));
        assert_eq!(call(&[shared.process(password_grant("itil-secret")), first.clone()]).await, 2);
        assert_ne!(token(), before);
    }
    assert_eq!(logins(&shared.sim), 6);
    // The one that is written into credentials is the first of many.
    let credentials = Credentials::RefreshToken { client: oauth_client(), token: given.into() };
    assert_eq!(call(&[shared.process(credentials)]).await, 1);
}

#[tokio::test]
async fn a_token_is_used_to_its_end_while_there_is_no_other() {
    let shared = Shared::new().await;
    let process = shared.process(password_grant("itil-secret"));
    assert_eq!(call(std::slice::from_ref(&process)).await, 1);
    for effect in [Effect::Status { status: 503, html: true }, Effect::Unauthorized] {
        let fault = shared.sim.fault(Fault::new(effect).path("oauth_token"));
        shared.sim.clock().advance(Duration::from_secs(888));
        assert_eq!(call(std::slice::from_ref(&process)).await, 1);
        shared.sim.remove_fault(fault);
    }
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_the_login_to_others() {
    let shared = Shared::new().await;
    let hanging = shared.sim.fault(Fault::new(Effect::HangAfter).path("oauth_token").times(1));
    let process = shared.process(client_credentials());
    let given_up = tokio::time::timeout(Duration::from_millis(300), page(&process, "incident", "", 1)).await;
    assert!(given_up.is_err());
    shared.sim.remove_fault(hanging);
    assert_eq!(call(&[process, shared.process(client_credentials())]).await, 2);
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_when_it_is_used() {
    let shared = Shared::new().await;
    let file = std::env::temp_dir().join(format!("servicenow-client-secret-{}", std::process::id()));
    let client = OauthClient { id: "fdw-client".to_owned(), secret: Some(SecretSource::File(file.clone())) };
    let credentials = Credentials::ClientCredentials { client };
    let process = shared.process(credentials.clone());
    std::fs::write(&file, "wrong").expect("a file");
    assert!(matches!(page(&process, "incident", "", 1).await, Err(Error::Login)));
    // It was another secret that was refused.
    std::fs::write(&file, "fdw-client-secret\n").expect("a file");
    assert_eq!(call(&[process]).await, 1);
    std::fs::remove_file(&file).expect("it is there");
    shared.sim.edit().expire_tokens(true);
    let error = page(&shared.process(credentials), "incident", "", 1).await.expect_err("there is no file");
    assert!(matches!(&error, Error::Setup(_)) && error.to_string().contains("servicenow-client-secret"));
}

/// Logs in and agrees as a user's browser does; gives back the code.
async fn agree(sim: &Simulator, consent: &Consent) -> String {
    let url = consent.url(&sim.url().parse().expect("an address"), "fdw-client").expect("an address");
    let policy = reqwest::redirect::Policy::none();
    let browser = reqwest::Client::builder().no_proxy().redirect(policy).build().expect("a browser");
    let send = async |form: String| {
        let kind = "application/x-www-form-urlencoded";
        let request = browser.post(url.as_str()).header("content-type", kind).body(form);
        request.send().await.expect("an answer")
    };
    let question = send("user_name=itil.user&user_password=itil-secret".to_owned()).await;
    let question = question.text().await.expect("a page");
    let session = question.split("name=\"session\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let answer = send(format!("session={}&decision=Allow", session.expect("a form"))).await;
    let address =
        answer.headers()["location"].to_str().expect("text").parse::<url::Url>().expect("an address");
    let parameter = |name: &str| {
        address
            .query_pairs()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.into_owned())
            .expect("it is there")
    };
    assert_eq!(parameter("state"), consent.state.reveal());
    parameter("code")
}

#[tokio::test]
async fn a_consent_in_a_browser_logs_everybody_in_for_as_long_as_the_refresh_token_lives() {
    let shared = Shared::new().await;
    let credentials = || Credentials::AuthorizationCode { client: oauth_client() };
    let first = shared.process(credentials());
    assert!(matches!(page(&first, "incident", "", 1).await, Err(Error::NoConsent)));
    let consent = Consent::new("", "http://localhost/oauth/callback".parse().expect("an address"));
    let code = agree(&shared.sim, &consent).await;
    first.exchange_code(&code, &consent).await.expect("a token");
    assert!(matches!(first.exchange_code(&code, &consent).await, Err(Error::Login)), "a code is good once");
    assert_eq!(call(&[first.clone(), shared.process(credentials())]).await, 2);
    // Another consent is used by whoever has the first one still.
    let before = logins(&shared.sim);
    let second = Consent::new("", "http://localhost/oauth/callback".parse().expect("an address"));
    shared.sim.edit().expire_tokens(true);
    let code = agree(&shared.sim, &second).await;
    shared.process(credentials()).exchange_code(&code, &second).await.expect("a token");
    let asked = calls(&shared.sim, "GET").len();
    assert_eq!(call(&[first]).await, 1);
    assert_eq!((logins(&shared.sim), calls(&shared.sim, "GET").len()), (before + 1, asked + 1));
    shared.sim.clock().advance(Duration::from_secs(90 * 86_400));
    assert_eq!(call(&[shared.process(credentials())]).await, 1);
    // Without the file, by the refresh token that was kept elsewhere.
    let spare = refresh_token_in(&shared.path);
    std::fs::remove_file(&shared.path).expect("it is there");
    assert_eq!(call(&[shared.process_with(credentials(), Urgency::Statement, spare)]).await, 1);
    // A refusal is not taken for the end of the consent: it may be the client that is not let in for a while.
    shared.sim.edit().expire_tokens(false);
    shared.sim.edit().set_client_secret("fdw-client", "another").expect("a client");
    assert!(matches!(page(&shared.process(credentials()), "incident", "", 1).await, Err(Error::Login)));
    shared.sim.edit().set_client_secret("fdw-client", "fdw-client-secret").expect("a client");
    shared.sim.clock().advance(Duration::from_secs(31));
    assert_eq!(call(&[shared.process(credentials())]).await, 1);
}

/// Instances lock accounts, whichever user mapping has tried.
#[tokio::test(flavor = "multi_thread")]
async fn logins_of_one_account_have_three_tries_together_and_an_altered_one_is_tried_at_once() {
    for (wrong, other) in
        [(basic("wrong"), password_grant("wrong")), (password_grant("wrong"), basic("wrong"))]
    {
        let shared = Shared::new().await;
        let mapping =
            |name: &str, version: &str, credentials: &Credentials| shared.mapping(name, version, credentials);
        let refused = || shared.refused();
        let try_often = async |clients: &[HttpClient]| {
            for _ in 0..4 {
                assert_eq!(call(clients).await, 0);
                shared.sim.clock().advance(Duration::from_secs(1_000));
            }
        };
        // However it is sent.
        try_often(&[mapping("a", "1", &wrong), mapping("b", "1", &other), mapping("c", "1", &wrong)]).await;
        assert_eq!(refused(), 3);
        // Somebody says of one that it is right now.
        try_often(&[mapping("c", "2", &wrong), mapping("b", "1", &other), mapping("a", "1", &wrong)]).await;
        assert_eq!(refused(), 6);
        // Another password is tried at once, if nobody has said anything of the mapping, too.
        let right = match &wrong {
            Credentials::Basic { .. } => basic("itil-secret"),
            _ => password_grant("itil-secret"),
        };
        assert_eq!(call(&[mapping("d", "1", &right)]).await, 1);
    }
}

/// Who has a token, or gets one by a refresh token, has not shown a password.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_accepted_gives_no_more_tries_of_a_password() {
    let shared = Shared::new().await;
    let (right, wrong) = (password_grant("itil-secret"), password_grant("wrong"));
    assert_eq!(call(&[shared.mapping("a", "1", &right)]).await, 1);
    for _ in 0..4 {
        assert_eq!(call(&["b", "c"].map(|name| shared.mapping(name, "1", &wrong))).await, 0);
        assert_eq!(call(&[shared.mapping("a", "1", &right)]).await, 1);
        shared.sim.clock().advance(Duration::from_secs(1_000));
    }
    assert_eq!(shared.refused(), 3);
}

/// An instance may have looked at a password whose answer is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_not_sent_again_and_again_while_nobody_says_anything_of_it() {
    let status = |status| Effect::Status { status, html: true };
    let both = [basic("itil-secret"), password_grant("itil-secret")];
    for (effect, logins) in [
        (status(500), &both[..]),
        (Effect::ResetAfter, &both),
        (Effect::LoginPage, &both),
        (status(404), &both[1..]),
    ] {
        for credentials in logins {
            let shared = Shared::new().await;
            let processes = shared.processes(3, credentials);
            let fault = shared.sim.fault(Fault::new(effect.clone()));
            for _ in 0..4 {
                assert_eq!(call(&processes).await, 0);
            }
            assert_eq!(shared.sim.fault_count(fault), 8, "{effect:?}");
            for _ in 0..10 {
                shared.sim.clock().advance(Duration::from_secs(60));
                assert_eq!(call(&processes).await, 0);
            }
            assert!(shared.sim.fault_count(fault) <= 18, "once a minute: {effect:?}");
            assert!(matches!(page(&processes[0], "incident", "", 1).await, Err(Error::Unheard { .. })));
            // It was not refused, so that it is tried as soon as it may be.
            shared.sim.remove_fault(fault);
            shared.sim.clock().advance(Duration::from_secs(61));
            assert_eq!(call(&processes).await, 3, "{effect:?}");
        }
    }
}

#[tokio::test]
async fn what_turns_a_password_away_without_having_looked_at_it_takes_no_tries() {
    let shared = Shared::new().await;
    let fault = shared.sim.fault(Fault::new(Effect::Status { status: 403, html: true }).path("oauth_token"));
    let process = shared.mapping("a", "1", &password_grant("itil-secret"));
    for tries in 1..6 {
        for _ in 0..3 {
            assert!(matches!(page(&process, "incident", "", 1).await, Err(Error::Login)), "it rests");
        }
        assert_eq!(logins(&shared.sim), tries);
        shared.sim.clock().advance(Duration::from_secs(901));
    }
    shared.sim.remove_fault(fault);
    assert_eq!(call(&[process, shared.mapping("b", "1", &basic("itil-secret"))]).await, 2);
}

/// A file may have another password by the time that the answer to the one before comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_counts_against_what_was_sent() {
    let shared = Shared::new().await;
    let file = std::env::temp_dir().join(format!("servicenow-password-{}", std::process::id()));
    std::fs::write(&file, "itil-secret").expect("a file");
    let password = SecretSource::File(file.clone());
    let process = shared.process(Credentials::Basic { username: "itil.user".to_owned(), password });
    assert_eq!(call(std::slice::from_ref(&process)).await, 1);
    shared.sim.edit().set_password("itil.user", "another");
    shared.sim.set(|s| s.latency_ms = 300);
    let altered = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::fs::write(&file, "another").expect("a file");
    };
    let (refused, ()) = tokio::join!(call(std::slice::from_ref(&process)), altered);
    assert_eq!(refused, 0);
    assert_eq!(call(&[process]).await, 1, "nothing was said of this one");
    std::fs::remove_file(&file).expect("it is there");
}
