//! Being told by mail.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use servicenow_sim::{Availability, Dataset};
use world::cluster::Cluster;
use world::{PATIENCE, World};

use crate::{INCIDENT, sink};

const PROBLEM: &str = "CREATE FOREIGN TABLE problem (sys_id text, number text) SERVER acme";

/// A world whose mails go to some addresses.
async fn told(addresses: &str) -> World {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| {
        let url = format!("smtp://127.0.0.1:{}?from=postgres@db.example", sink::port());
        Cluster::start(&format!("servicenow_fdw.smtp_url = '{url}'"))
    });
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up(&format!(", notify_email '{addresses}'")).await;
    world
}

/// Waits for the nth mail to an address.
async fn mail(address: &str, number: usize) -> String {
    let began = Instant::now();
    loop {
        let mails = sink::mails_to(address);
        if mails.len() >= number {
            return mails[number - 1].clone();
        }
        assert!(began.elapsed() < PATIENCE, "mails to {address}: {mails:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_filled_fail_and_recover_together_are_told_by_one_mail_each() {
    let world = told("one@dba.example, second@dba.example").await;
    world.db.run(&format!("{INCIDENT}; {PROBLEM}")).await;
    let filled = mail("one@dba.example", 1).await;
    let (incidents, problems) = (
        world.db.value::<i64>("SELECT count(*) FROM incident").await,
        world.db.value::<i64>("SELECT count(*) FROM problem").await,
    );
    assert!(filled.starts_with("<one@dba.example><second@dba.example>\n"), "{filled}");
    for part in [
        "From: servicenow_fdw <postgres@db.example>",
        "Subject: [servicenow_fdw] acme: 2 tables filled",
        &format!("Foreign server acme ({}/), database {}, host ", world.sim.url(), world.database),
        &format!("  public.incident  {incidents} rows"),
        &format!("  public.problem  {problems} rows"),
        "  20",
    ] {
        assert!(filled.contains(part), "{part}\n{filled}");
    }
    world.sim.set(|s| s.availability = Availability::Down);
    let failed = mail("one@dba.example", 2).await;
    assert!(failed.contains("Subject: [servicenow_fdw] acme: 2 tables failed"), "{failed}");
    assert!(
        failed.replace("=\n", "").contains("synchronize table \"incident\" on server \"acme\""),
        "{failed}"
    );
    world.sim.set(|s| s.availability = Availability::Up);
    let recovered = mail("one@dba.example", 3).await;
    assert!(recovered.contains("acme: 2 tables recovered"), "{recovered}");
    world.until("SELECT sent = 3 AND failed = 0 AND waiting = 0 FROM servicenow.stat_mail").await;
    assert_eq!(sink::mails_to("one@dba.example").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_is_refused_is_seen_and_tried_again_and_holds_nothing_up() {
    sink::refuse("two@dba.example", true);
    let world = told("two@dba.example").await;
    world.db.run(INCIDENT).await;
    world
        .until(
            "SELECT EXISTS (SELECT FROM servicenow.stat_mail WHERE failed > 0 AND waiting = 1 AND last_error LIKE '%no such mailbox%' AND retry_at > last_error_at)",
        )
        .await;
    world.sync("incident").await;
    assert!(world.cluster.log().contains("could not send mail about a foreign server: "));
    sink::refuse("two@dba.example", false);
    let filled = mail("two@dba.example", 1).await;
    assert!(filled.contains("Subject: [servicenow_fdw] acme: public.incident filled"), "{filled}");
    world.until("SELECT sent = 1 AND waiting = 0 AND last_error IS NULL FROM servicenow.stat_mail").await;
}

/// One who has left keeps the others from nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_for_good_does_not_keep_others_from_their_mail() {
    sink::refuse("four@dba.example", true);
    let world = told("four@dba.example, five@dba.example").await;
    world.db.run(INCIDENT).await;
    let filled = mail("five@dba.example", 1).await;
    assert!(filled.contains("Subject: [servicenow_fdw] acme: public.incident filled"), "{filled}");
    world
        .until(
            "SELECT EXISTS (SELECT FROM servicenow.stat_mail WHERE sent = 1 AND waiting = 0 AND last_error LIKE 'four@dba.example: %no such mailbox%')",
        )
        .await;
    assert!(
        world.cluster.log().contains("could not send mail about a foreign server to all: four@dba.example")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_checked_when_they_are_set() {
    let world = World::bare(Dataset::Small).await;
    world.set_up("").await;
    for address in ["", "nobody", "a@b.example, ", "a@b.example\nBcc: c@d.example"] {
        let error =
            world.db.error(&format!("ALTER SERVER acme OPTIONS (ADD notify_email '{address}')")).await;
        assert_eq!(error.code().code(), "22023", "{address}");
        assert!(error.hint().is_some_and(|hint| hint.contains("dba@example.com")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_server_that_cannot_be_used_is_told_without_its_password() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start("")));
    let configure = |url: &str| cluster.configure(&format!("servicenow_fdw.smtp_url = '{url}'"));
    configure("smtp://me:geheim@mail.example.com?colour=red");
    let world = World::on(cluster, Dataset::Small).await;
    world.set_up(", notify_email 'three@dba.example'").await;
    world.db.run(INCIDENT).await;
    let said = async |part: &str| {
        let error =
            format!("SELECT EXISTS (SELECT FROM servicenow.stat_mail WHERE last_error LIKE '%{part}%')");
        world.until(&error).await;
    };
    said("\"colour\" is none of the parameters tls, from, password_file").await;
    configure("smtp://me:geheim@mail.example.com?tls=opportunistic");
    said("a password takes smtps, or tls=required").await;
    let password = std::env::temp_dir().join(format!("snfdw-{}-password", std::process::id()));
    configure(&format!("smtp://me@127.0.0.1:{}?password_file={}", sink::port(), password.display()));
    said("No such file").await;
    std::fs::write(&password, "gehe/im\n").expect("a file");
    let filled = mail("three@dba.example", 1).await;
    let _gone = std::fs::remove_file(&password);
    // "me" and the password, as that way of logging in has them.
    assert!(filled.starts_with("AUTH PLAIN AG1lAGdlaGUvaW0="), "{filled}");
    assert!(filled.contains("From: servicenow_fdw <servicenow_fdw@"), "{filled}");
    let log = cluster.log();
    assert!(log.lines().any(|line| line.contains("could not send mail")));
    assert!(
        !log.lines().any(|line| line.contains("could not send mail") && line.contains("geheim")),
        "{log}"
    );
}
