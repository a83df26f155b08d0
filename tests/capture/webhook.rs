//! Changes arrive by requests to a listener.

use std::net::TcpListener;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use servicenow_sim::{Dataset, Simulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use world::World;
use world::cluster::Cluster;
use world::random::Random;

use crate::{
    COLUMNS, INCIDENT, capture_incidents, lists, looked_up, name, rules, until, until_captured, until_state,
    world_on,
};

/// A port that is free at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// A cluster that listens, and where.
fn listening() -> (&'static Cluster, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let settings = format!("servicenow_fdw.listen_address = '{address}'");
    (Box::leak(Box::new(Cluster::start(&settings))), address)
}

/// Sends bytes to the listener; gives back the status of its answer, 0 without one.
async fn send(address: &str, bytes: &[u8]) -> u16 {
    send_and_wait(address, bytes, Duration::from_secs(20)).await
}

async fn send_and_wait(address: &str, bytes: &[u8], patience: Duration) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    // The listener may have seen enough before it has seen all.
    let _cut_off = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _closed = tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await;
    let status = String::from_utf8_lossy(&answer);
    status.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

fn request(path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// What a rule of the instance signs: made by the instance's own script.
struct Signed {
    path: String,
    time: String,
    signature: String,
    body: String,
}

/// Has the instance post to the test instead of to the listener, and gives back what it has posted.
async fn overhear(world: &World, change: impl FnOnce(&Simulator)) -> Signed {
    let name = name(world).await;
    let (rule, _) = rules(world, &name).pop().expect("a rule");
    let script = world.remote("sys_script", &rule, "script").expect("a script");
    let endpoint =
        script.split("setEndpoint(\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an address");
    let path = format!("/{}", endpoint.rsplit('/').next().expect("a path"));
    let here = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}{path}", here.local_addr().expect("an address"));
    let edit = world.sim.edit();
    edit.update("sys_script", &rule, &[("script", &script.replace(endpoint, &address))])
        .expect("it is there");
    change(&world.sim);
    let (mut stream, _) = here.accept().await.expect("the instance posts");
    let mut bytes = vec![0; 64 << 10];
    let mut length = 0;
    let text = loop {
        length += stream.read(&mut bytes[length..]).await.expect("a request");
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        if text.contains("\r\n\r\n") && text.trim_end().ends_with('}') {
            break text;
        }
    };
    stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.expect("it listens");
    edit.update("sys_script", &rule, &[("script", &script)]).expect("it is there");
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':')).expect("a header").1.trim().to_owned()
    };
    Signed {
        path,
        time: header("x-servicenow-fdw-time"),
        signature: header("x-servicenow-fdw-signature"),
        body: body.to_owned(),
    }
}

impl Signed {
    fn request(&self) -> Vec<u8> {
        self.with(&self.time, &self.signature, &self.body)
    }

    fn with(&self, time: &str, signature: &str, body: &str) -> Vec<u8> {
        let headers = [("X-Servicenow-Fdw-Time", time), ("X-Servicenow-Fdw-Signature", signature)];
        request(&self.path, &headers, body)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_every_kind_arrive_at_once() {
    let (cluster, _) = listening();
    let world = world_on(cluster, "webhook").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '30 s')").await;
    let world = capture_incidents(world).await;
    let from = world.sim.requests().len();
    let edit = world.sim.edit();
    let id = edit.insert("incident", &[("short_description", "made")]).expect("a record");
    world.until(&format!("SELECT EXISTS (SELECT FROM incident WHERE sys_id = '{id}')")).await;
    edit.update("incident", &id, &[("short_description", "changed")]).expect("it is there");
    world.until(&format!("SELECT short_description = 'changed' FROM incident WHERE sys_id = '{id}'")).await;
    edit.delete("incident", &id).expect("it is there");
    world.until(&format!("SELECT NOT EXISTS (SELECT FROM incident WHERE sys_id = '{id}')")).await;
    let sources =
        format!("SELECT bool_and(source = 'capture') FROM servicenow._sync_cdc WHERE sys_id = '{id}'");
    assert!(world.db.value::<bool>(&sources).await);
    let polls = lists(&world, "incident", from);
    let is_poll = |query: &str| query.contains("sys_updated_on");
    assert!(!polls.iter().any(|list| list.parameter("sysparm_query").is_some_and(is_poll)));
    world.until("SELECT events = 3 AND lag < '5 s' AND refused = 0 FROM servicenow.stat_capture").await;
    // What we write ourselves comes back, and costs nothing.
    let from = world.sim.requests().len();
    world.db.run("UPDATE incident SET short_description = 'ours' WHERE number = 'INC0012345'").await;
    world.until("SELECT events = 4 FROM servicenow.stat_capture").await;
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
    assert_eq!(looked_up(&world, from), Vec::<String>::new());
    world.until_like_the_instance("incident", COLUMNS).await;
    assert_eq!(world.sim.script_errors(), Vec::<String>::new());
}

/// Whoever lacks the rights is told what to do by hand, without the key; then that is used.
#[tokio::test(flavor = "multi_thread")]
async fn rules_can_be_made_by_hand() {
    let (cluster, address) = listening();
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up(", capture 'webhook'").await;
    world.db.run(INCIDENT).await;
    world.db.run("CREATE FOREIGN TABLE x_acme_app_thing (sys_id text) SERVER acme").await;
    world.sync("incident").await;
    let error = world.db.error("SELECT servicenow.install_capture('acme')").await;
    assert_eq!(error.code().code(), "42501");
    assert!(error.message().starts_with("could not create"), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("the role admin")), "{:?}", error.hint());
    let (steps, name) = (error.detail().expect("the steps").to_owned(), name(&world).await);
    let key = world.db.value::<String>("SELECT signing_key FROM servicenow.capture").await;
    for part in [name.as_str(), &address, "incident, x_acme_app_thing", "after (async on x_acme_app_thing)"] {
        assert!(steps.contains(part), "{part}\n{steps}");
    }
    assert!(!steps.contains(&key) && !steps.contains("u_sequence"), "{steps}");
    until_state(&world, "silent").await;
    for (table, when) in [("incident", "after"), ("x_acme_app_thing", "async")] {
        let script = format!("SELECT servicenow.capture_script('{table}')");
        let script = world.db.value::<String>(&script).await;
        let hidden = script.replace(&key, "the key, see servicenow.capture_script()");
        assert!(table != "incident" || steps.contains(hidden.trim()), "{steps}");
        let on =
            ["active", "advanced", "action_insert", "action_update", "action_delete"].map(|f| (f, "true"));
        let rule = [
            ("name", &*name),
            ("collection", table),
            ("when", when),
            ("order", "10000"),
            ("script", &script),
        ];
        let rule: Vec<_> = rule.into_iter().chain(on).collect();
        world.sim.edit().insert("sys_script", &rule).expect("a rule");
    }
    let edit = world.sim.edit();
    edit.update(
        "incident",
        &world.find("incident", "number=INC0012345"),
        &[("short_description", "by hand")],
    )
    .expect("it is there");
    edit.insert("x_acme_app_thing", &[]).expect("a record");
    world.until("SELECT short_description = 'by hand' FROM incident WHERE number = 'INC0012345'").await;
    world.until("SELECT events = 2 AND refused = 0 FROM servicenow.stat_capture").await;
    until_state(&world, "active").await;
    assert_eq!(world.sim.script_errors(), Vec::<String>::new());
}

/// A rule posts while its transaction is open: a look at the record comes too early then.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_before_their_changes_are_not_lost() {
    let (cluster, _) = listening();
    let world = world_on(cluster, "webhook").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '120 s')").await;
    let world = capture_incidents(world).await;
    let from = world.sim.requests().len();
    let edit = world.sim.edit();
    let ids = edit.find("incident", "ORDERBYsys_id").expect("a query");
    world.sim.set(|s| (s.commit_delay_ms, s.posts_before_commit) = (1_500, true));
    edit.update("incident", &ids[0], &[("short_description", "changed")]).expect("it is there");
    edit.delete("incident", &ids[1]).expect("it is there");
    let made = edit.insert("incident", &[("short_description", "made")]).expect("a record");
    for here in [
        format!("SELECT short_description = 'changed' FROM incident WHERE sys_id = '{}'", ids[0]),
        format!("SELECT NOT EXISTS (SELECT FROM incident WHERE sys_id = '{}')", ids[1]),
        format!("SELECT EXISTS (SELECT FROM incident WHERE sys_id = '{made}')"),
    ] {
        world.until(&here).await;
    }
    world.until("SELECT events = 3 FROM servicenow.stat_capture").await;
    let others = "SELECT count(*) FROM servicenow._sync_cdc WHERE source NOT IN ('capture', 'backfill')";
    assert_eq!(world.db.value::<i64>(others).await, 0, "no poll has brought them");
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
    let looks = looked_up(&world, from).len();
    assert!(looks <= 12, "{looks} looks");
    world.sim.set(|s| s.commit_delay_ms = 0);
    world.until_like_the_instance("incident", COLUMNS).await;
}

/// Nor are those that say no version, so that no look at the record shows whether it was too early.
#[tokio::test(flavor = "multi_thread")]
async fn events_without_a_version_that_come_before_their_changes_are_not_lost() {
    let (cluster, _) = listening();
    let world = world_on(cluster, "webhook").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '120 s')").await;
    let world = capture_incidents(world).await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.set(|s| (s.commit_delay_ms, s.posts_before_commit) = (1_500, true));
    let edit = world.sim.edit().without_auto_sys_fields();
    edit.update("incident", &id, &[("short_description", "no version")]).expect("it is there");
    world
        .until(&format!("SELECT short_description = 'no version' FROM incident WHERE sys_id = '{id}'"))
        .await;
    world.until("SELECT NOT EXISTS (SELECT FROM servicenow.recheck)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_from_a_rule_is_refused_and_counted() {
    let (cluster, address) = listening();
    let world = capture_incidents(world_on(cluster, "webhook").await).await;
    let id = world.find("incident", "number=INC0012345");
    let real = overhear(&world, |sim| {
        sim.edit().update("incident", &id, &[("short_description", "overheard")]).expect("it is there");
    })
    .await;
    let refused = "SELECT refused FROM servicenow.stat_capture";
    let before = world.db.value::<i64>(refused).await;
    let forged = real.body.replace(&id, "00000000000000000000000000000000");
    let old = (real.time.parse::<i64>().expect("a number") - 3_600_000).to_string();
    let announced = real.request();
    let announced = String::from_utf8_lossy(&announced).replace("Content-Length: ", "Content-Length: 9999");
    let announced = announced.split_inclusive("\r\n\r\n").next().expect("a head").as_bytes().to_vec();
    let wrong: [(u16, Vec<u8>); 8] = [
        (401, request(&real.path, &[], &real.body)),
        (401, real.with(&real.time, &real.signature, &forged)),
        (401, real.with(&old, &real.signature, &real.body)),
        (401, real.with(&real.time, "bm9uc2Vuc2U=", &real.body)),
        (401, real.with("soon", &real.signature, &real.body)),
        (401, real.with(&real.time, &real.signature, "")),
        (413, announced),
        (405, format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", real.path).into_bytes()),
    ];
    let count = wrong.len() as i64;
    for (status, bytes) in wrong {
        assert_eq!(
            send(&address, &bytes).await,
            status,
            "{}",
            String::from_utf8_lossy(&bytes[..200.min(bytes.len())])
        );
    }
    world.until(&format!("SELECT refused = {before} + {count} FROM servicenow.stat_capture")).await;
    // Those that are for nobody.
    for path in ["/", "/nobody", "/000000000000", "/../../etc/passwd", "/%2e%2e"] {
        assert_eq!(send(&address, &request(path, &[], "{}")).await, 404, "{path}");
    }
    world.until("SELECT turned_away >= 5 FROM servicenow.stat_capture").await;
    // The real one is believed, once.
    assert_eq!(send(&address, &real.request()).await, 202);
    assert_eq!(send(&address, &real.request()).await, 409);
    world.until("SELECT short_description = 'overheard' FROM incident WHERE number = 'INC0012345'").await;
    // Too large, which it does not say before.
    let chunked = request(&real.path, &[], "");
    let chunked =
        String::from_utf8_lossy(&chunked).replace("Content-Length: 0", "Transfer-Encoding: chunked");
    let chunked = [chunked.as_bytes(), b"4100\r\n", &[b'a'; 0x4100], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(send(&address, &chunked).await, 413);
    // Nonsense, and more at a time than there is room for.
    for bytes in [&b"\x16\x03\x01 nonsense\r\n\r\n"[..], b"POST / HTTP/9.9\r\n\r\n", &vec![b'a'; 100_000]] {
        assert!(matches!(send(&address, bytes).await, 0 | 400 | 431 | 505));
    }
    let before = world.db.value::<i64>("SELECT turned_away FROM servicenow.stat_capture").await;
    let mut crowd = Vec::new();
    for _ in 0..MOST_CONNECTIONS + 50 {
        crowd.push(TcpStream::connect(&address).await.expect("somebody listens"));
    }
    world.until(&format!("SELECT turned_away >= {before} + 50 FROM servicenow.stat_capture")).await;
    let mut closed = 0;
    for stream in &mut crowd {
        let read = tokio::time::timeout(Duration::from_millis(1), stream.read_u8()).await;
        closed += usize::from(read.is_ok());
    }
    assert!((50..100).contains(&closed), "{closed} of them are closed at once");
    drop(crowd);
    world.sim.edit().update("incident", &id, &[("short_description", "meanwhile")]).expect("it is there");
    world.until("SELECT short_description = 'meanwhile' FROM incident WHERE number = 'INC0012345'").await;
}

/// Connections that the listener has at a time.
const MOST_CONNECTIONS: usize = 256;

/// Somebody who is slow to say what they want, and a worker that does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_waited_for_for_ever() {
    let (cluster, address) = listening();
    let world = capture_incidents(world_on(cluster, "webhook").await).await;
    let subscription = world.db.value::<String>("SELECT subscription FROM servicenow.stat_capture").await;
    // The worker counts what is for it and has not come whole, the listener the others.
    let counts = "SELECT turned_away = 21 AND refused = 1 FROM servicenow.stat_capture";
    let socket = cluster.data().join("servicenow_fdw/webhooks/ffffffffffff");
    let _mute = std::os::unix::net::UnixListener::bind(&socket).expect("nobody else is there");
    let writable = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&socket, writable).expect("it is ours");
    let began = Instant::now();
    let cut_off =
        String::from_utf8_lossy(&request(&format!("/{subscription}"), &[], "{}")).replace("{}", "{");
    let pending = [request("/ffffffffffff", &[], "{}"), cut_off.into_bytes()].map(|bytes| {
        let address = address.clone();
        tokio::spawn(async move { send(&address, &bytes).await })
    });
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&address).await.expect("somebody listens");
        stream.write_all(b"POST /").await.expect("it listens");
        slow.push(stream);
    }
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "meanwhile")]).expect("it is there");
    world.until("SELECT short_description = 'meanwhile' FROM incident WHERE number = 'INC0012345'").await;
    for mut stream in slow {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "it does not wait for ever");
    }
    let [unanswered, cut_off] = pending;
    assert_eq!((unanswered.await.expect("no panic"), cut_off.await.expect("no panic")), (504, 408));
    assert!(began.elapsed() < Duration::from_secs(20));
    world.until(counts).await;
}

/// Where rules post to must be an address of the listener as the instance sees it.
#[tokio::test(flavor = "multi_thread")]
async fn rules_post_to_no_address_that_cannot_be_right() {
    let settings = format!("servicenow_fdw.listen_address = '0.0.0.0:{}'", free_port());
    let world = world_on(Box::leak(Box::new(Cluster::start(&settings))), "webhook").await;
    let error = world.db.error("SELECT servicenow.install_capture('acme')").await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("55000", "the instance of server \"acme\" cannot post to \"0.0.0.0\"")
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("webhook_url")));
    let found = "SELECT detail || '. ' || hint FROM servicenow.check_server('acme') WHERE \"check\" = 'capture' AND NOT ok";
    let found = world.db.value::<String>(found).await;
    assert!(found.contains("cannot post to \"0.0.0.0\"") && found.contains("webhook_url"), "{found}");
    world.db.run("ALTER SERVER acme OPTIONS (ADD webhook_url 'https://localhost/hooks')").await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    // An instance elsewhere cannot come here.
    world.db.run("ALTER SERVER acme OPTIONS (SET instance_url 'https://acme.example.com')").await;
    let error = world.db.error("SELECT servicenow.install_capture('acme')").await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("55000", "the instance of server \"acme\" cannot post to \"localhost\"")
    );
}

/// Another program has the address: that is said, polls go on, and when it has gone events come.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_has_the_address_already_is_waited_for() {
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = stranger.local_addr().expect("an address").to_string();
    let settings = format!("servicenow_fdw.listen_address = '{address}'");
    let world = world_on(Box::leak(Box::new(Cluster::start(&settings))), "webhook").await;
    world.db.run(INCIDENT).await;
    world.sync("incident").await;
    world.db.run("SELECT servicenow.install_capture('acme')").await;
    until_state(&world, "silent").await;
    let why = world.db.value::<String>("SELECT capture_error FROM servicenow.sync_status").await;
    assert!(why.starts_with(&format!("could not listen on \"{address}\": ")), "{why}");
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "polled")]).expect("it is there");
    world.until("SELECT short_description = 'polled' FROM incident WHERE number = 'INC0012345'").await;
    drop(stranger);
    until_captured(&world).await;
    world.sim.edit().update("incident", &id, &[("short_description", "told")]).expect("it is there");
    world.until("SELECT short_description = 'told' FROM incident WHERE number = 'INC0012345'").await;
    world.until("SELECT events >= 1 FROM servicenow.stat_capture").await;
}

/// Requests that are signed and come from another time are said to be about clocks.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_are_named() {
    let (cluster, _) = listening();
    let world = capture_incidents(world_on(cluster, "webhook").await).await;
    world.sim.clock().step(chrono::TimeDelta::hours(-1));
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "late")]).expect("it is there");
    until_state(&world, "silent").await;
    let why = world.db.value::<String>("SELECT capture_error FROM servicenow.sync_status").await;
    assert!(why.contains("clock"), "{why}");
}

/// A request, bent in some places: cut off, bytes changed, doubled, or something put in between.
fn bend(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    const WORDS: &[&[u8]] = &[
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"Transfer-Encoding: chunked\r\n",
        b"ffffffffffffffff\r\n",
        b"Content-Length: 18446744073709551616\r\n",
        b"Content-Length: -1\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"http://x/",
        b"%00",
        b"/../",
        "\u{202e}é".as_bytes(),
    ];
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.get_mut(at).into_iter().for_each(|place| *place = random.any() as u8),
            2 => bytes.extend_from_within(at..),
            3 => drop(bytes.splice(at..at, random.pick(WORDS).iter().copied())),
            _ => {
                let some: Vec<u8> = (0..1 + random.below(40)).map(|_| random.any() as u8).collect();
                drop(bytes.splice(at..at, some));
            }
        }
    }
    bytes
}

/// `WEBHOOK_SEED` repeats what was printed.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_however_bent_makes_the_listener_stop_or_believe() {
    let (cluster, address) = listening();
    let world = capture_incidents(world_on(cluster, "webhook").await).await;
    let id = world.find("incident", "number=INC0012345");
    let real = overhear(&world, |sim| {
        sim.edit().update("incident", &id, &[("short_description", "overheard")]).expect("it is there");
    })
    .await;
    // Signed by nobody: whatever becomes of it, it must not be accepted.
    let unsigned = real.with(&real.time, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", &real.body);
    let worker = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'servicenow_fdw worker'";
    let before = world.db.value::<i32>(worker).await;
    let given = std::env::var("WEBHOOK_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed =
        given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs());
    eprintln!("WEBHOOK_SEED={seed}");
    let mut random = Random(seed);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..400 {
        if requests.len() >= 32 {
            let status = requests.join_next().await.expect("one is under way").expect("it is sent");
            assert_ne!(status, 202);
        }
        let (bytes, address) = (bend(unsigned.clone(), &mut random), address.clone());
        // Some announce more than they send: those are given up.
        let patience = Duration::from_millis(500);
        requests.spawn(async move { send_and_wait(&address, &bytes, patience).await });
    }
    assert!(requests.join_all().await.iter().all(|status| *status != 202));
    assert_eq!(world.db.value::<i64>("SELECT events FROM servicenow.stat_capture").await, 0);
    world.until("SELECT refused > 0 FROM servicenow.stat_capture").await;
    assert_eq!(send(&address, &real.request()).await, 202);
    world.until("SELECT events = 1 FROM servicenow.stat_capture").await;
    assert_eq!(world.db.value::<i32>(worker).await, before, "it is the same worker");
}

/// Makes a certificate for this machine, and its key, in place of those that are there.
fn certify(certificate: &str, key: &str) {
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-keyout", key, "-out", certificate])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(key, readable).expect("it is ours");
}

/// The certificate that is shown at an address, in PEM form; nothing if nobody listens.
fn shown_at(address: &str) -> String {
    let shown = std::process::Command::new("openssl")
        .args(["s_client", "-connect", address])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let (begin, end) = (shown.find("-----BEGIN"), shown.find("-----END"));
    begin.zip(end).map(|(begin, end)| shown[begin..end].to_owned()).unwrap_or_default()
}

/// With a certificate the listener speaks TLS and nothing else; without one it stays at home.
#[tokio::test(flavor = "multi_thread")]
async fn the_listener_speaks_tls() {
    let (directory, port) =
        (std::env::temp_dir().join(format!("snfdw-tls-{}", std::process::id())), free_port());
    std::fs::create_dir_all(&directory).expect("a directory");
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| directory.join(name).display().to_string());
    certify(&certificate, &key);
    let settings = format!(
        "servicenow_fdw.listen_address = 'localhost:{port}'
         servicenow_fdw.listen_cert_file = '{certificate}'
         servicenow_fdw.listen_key_file = '{key}'"
    );
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(&settings)));
    let world = capture_incidents(world_on(cluster, "webhook").await).await;
    let id = world.find("incident", "number=INC0012345");
    world.sim.edit().update("incident", &id, &[("short_description", "over TLS")]).expect("it is there");
    world.until(&format!("SELECT short_description = 'over TLS' FROM incident WHERE sys_id = '{id}'")).await;
    world.until("SELECT events = 1 FROM servicenow.stat_capture").await;
    assert_eq!(
        send(&format!("localhost:{port}"), &request("/", &[], "{}")).await,
        0,
        "plain http is not understood"
    );
    world.until("SELECT turned_away >= 1 FROM servicenow.stat_capture").await;
    // A certificate is renewed under its name, and nobody tells the server.
    let before = shown_at(&format!("localhost:{port}"));
    assert!(before.contains("CERTIFICATE"), "{before}");
    certify(&certificate, &key);
    until(|| ![String::new(), before.clone()].contains(&shown_at(&format!("localhost:{port}")))).await;
    until_state(&world, "active").await;
    world.sim.edit().update("incident", &id, &[("short_description", "renewed")]).expect("it is there");
    world.until(&format!("SELECT short_description = 'renewed' FROM incident WHERE sys_id = '{id}'")).await;
    cluster.configure(&format!(
        "servicenow_fdw.listen_address = '0.0.0.0:{port}'\nservicenow_fdw.listen_cert_file = ''\nservicenow_fdw.listen_key_file = ''"
    ));
    let began = Instant::now();
    while !cluster.log().contains("are needed but for a loopback address") {
        assert!(began.elapsed() < world::PATIENCE, "it is said");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "nobody listens");
    std::fs::remove_dir_all(&directory).expect("it is ours");
}

/// One worker listens for the whole cluster, and another one when that has gone.
#[tokio::test(flavor = "multi_thread")]
async fn databases_share_the_listener() {
    let (cluster, _) = listening();
    let one = capture_incidents(world_on(cluster, "webhook").await).await;
    let other = capture_incidents(world_on(cluster, "webhook").await).await;
    let arrives = async |world: &World, text: &str| {
        let id = world.find("incident", "number=INC0012345");
        world.sim.edit().update("incident", &id, &[("short_description", text)]).expect("it is there");
        world
            .until(&format!("SELECT short_description = '{text}' FROM incident WHERE sys_id = '{id}'"))
            .await;
    };
    arrives(&one, "to the one").await;
    arrives(&other, "to the other").await;
    one.stop_worker().await;
    // Somebody else takes the address over.
    until_captured(&other).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    arrives(&other, "after that").await;
    one.db.run("SELECT servicenow.start_worker()").await;
    until_state(&one, "active").await;
    arrives(&one, "and back again").await;
}

/// Lost, doubled and late events, while much is changed: the cache converges, and it is said that events are missing.
#[tokio::test(flavor = "multi_thread")]
async fn the_cache_converges_whatever_happens_to_events() {
    let (cluster, _) = listening();
    let world = world_on(cluster, "webhook").await;
    world.db.run("ALTER SERVER acme OPTIONS (SET poll_interval '500 ms')").await;
    let world = capture_incidents(world).await;
    world.sim.set(|s| (s.posts_drop, s.posts_duplicate, s.posts_jitter_ms) = (200, 300, 300));
    let edit = world.sim.edit();
    let ids = edit.find("incident", "").expect("a query");
    for round in 0..10 {
        for id in ids.iter().step_by(3) {
            let text = format!("round {round}");
            // Unless it was deleted.
            edit.update("incident", id, &[("short_description", &text)]).ok();
        }
        edit.insert("incident", &[("short_description", "new")]).expect("a record");
        edit.delete("incident", &ids[ids.len() - 2 - 3 * round]).ok();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until_state(&world, "silent").await;
    world.until_like_the_instance("incident", COLUMNS).await;
    assert!(world.sim.posts().dropped > 0);
    assert_eq!(world.sim.script_errors(), Vec::<String>::new());
}
