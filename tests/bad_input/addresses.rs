//! Who may have the server connect to what is not public.

use std::net::{IpAddr, ToSocketAddrs};

use servicenow_sim::Dataset;
use world::World;

/// A database with the extension, and a role that may make servers.
async fn prepared() -> (World, world::Session) {
    let world = World::bare(Dataset::Small).await;
    world.db.run("CREATE EXTENSION servicenow_fdw").await;
    let session = world.session_as("tenant").await;
    let role = world.role("tenant");
    world
        .db
        .run(&format!(
            "GRANT USAGE ON FOREIGN DATA WRAPPER servicenow_fdw TO {role}; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
        ))
        .await;
    (world, session)
}

fn create(name: &str, options: &str) -> String {
    format!("CREATE SERVER {name} FOREIGN DATA WRAPPER servicenow_fdw OPTIONS ({options})")
}

/// A name of this host that does not say so.
fn own_name() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let names = [named.trim(), "ip6-localhost"];
    let leads_inside = |name: &&str| {
        let leads = (*name, 1).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        leads.is_ok_and(|all| !all.is_empty() && all.iter().all(|a| !is_public(a.ip())))
    };
    let name = names.into_iter().find(leads_inside);
    name.unwrap_or_else(|| panic!("none of {names:?} leads to this host: have /etc/hosts name it")).to_owned()
}

/// As far as it matters for what a host is called.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_private() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unique_local(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_not_public_is_a_superusers_to_set() {
    let (world, tenant) = prepared().await;
    tenant.run(&create("public", "instance_url 'https://acme.service-now.com'")).await;
    for address in [
        "http://127.0.0.1:5432",
        "https://127.0.0.1",
        "https://127.1",
        "https://2130706433",
        "https://localhost",
        "https://db.localhost.",
        "https://169.254.169.254",
        "https://10.1.2.3",
        "https://172.16.0.1",
        "https://192.168.0.1:8443",
        "https://100.64.0.1",
        "https://0.0.0.0",
        "https://[::1]",
        "https://[fd00:ec2::254]",
        "https://[fe80::1]",
        "https://[::ffff:10.0.0.1]",
    ] {
        let login = "auth 'password', username 'u', password 'p', client_id 'c', client_secret 's'";
        for (name, statement) in [
            ("instance_url", create("inside", &format!("instance_url '{address}'"))),
            ("instance_url", format!("ALTER SERVER public OPTIONS (SET instance_url '{address}')")),
            (
                "token_url",
                format!(
                    "CREATE USER MAPPING FOR CURRENT_USER SERVER public OPTIONS ({login}, token_url '{address}/t')"
                ),
            ),
        ] {
            let error = tenant.error(&statement).await;
            assert_eq!(error.code().code(), "42501", "{statement}: {}", error.message());
            let message =
                format!("only a superuser may set option \"{name}\" to an address that is not public");
            assert_eq!(error.message(), message, "{statement}");
            assert!(error.hint().is_some_and(|hint| hint.contains("allow_private_addresses")));
        }
        world.db.run(&create("inside", &format!("instance_url '{address}'"))).await;
        world.db.run("DROP SERVER inside").await;
    }
    let error = tenant.error("SET servicenow_fdw.allow_private_addresses = on").await;
    assert_eq!(error.code().code(), "42501");
    world
        .db
        .run(&format!("ALTER ROLE {} SET servicenow_fdw.allow_private_addresses = on", world.role("tenant")))
        .await;
    world.session_as("tenant").await.run(&create("inside", "instance_url 'https://10.0.0.1'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_a_superusers_to_set() {
    let (_world, tenant) = prepared().await;
    let error =
        tenant.error(&create("p", "instance_url 'https://acme.example', proxy_url 'http://p.example'")).await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("42501", "only a superuser may set option \"proxy_url\"")
    );
}

/// A name is looked at when it is connected to, whatever it led to when it was written down.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_inside_is_not_followed_for_those_who_are_no_superusers() {
    let name = own_name();
    let (world, tenant) = prepared().await;
    let role = world.role("tenant");
    tenant
        .run(&format!(
            "{};
             CREATE USER MAPPING FOR CURRENT_USER SERVER inside OPTIONS (auth 'basic', username 'u', password 'p');
             CREATE FOREIGN TABLE incident (sys_id text, number text) SERVER inside",
            create("inside", &format!("instance_url 'https://{name}:1', poll_interval '100ms'"))
        ))
        .await;
    let import = "IMPORT FOREIGN SCHEMA servicenow LIMIT TO (problem) FROM SERVER inside INTO public";
    let refused = format!("\"{name}:1\" is not a public address");
    let error = tenant.error(import).await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    assert!(error.message().ends_with(&refused), "{}", error.message());
    assert!(error.hint().is_some_and(|hint| hint.contains("allow_private_addresses")));
    let status = "SELECT last_error FROM servicenow.sync_status";
    world.until(&format!("SELECT last_error LIKE '%{refused}' FROM ({status}) s")).await;
    let found = "SELECT \"check\" || ': ' || detail || '. ' || hint FROM servicenow.check_server('inside') WHERE NOT ok";
    let found = world.db.value::<String>(found).await;
    assert!(found.starts_with("reachability: ") && found.contains("not a public address"), "{found}");
    assert!(found.contains("allow_private_addresses"), "{found}");
    // The owner is what counts, whoever uses the server and whoever they become.
    world.db.run(&format!("ALTER ROLE {role} SUPERUSER")).await;
    let error = tenant.error(import).await;
    assert_eq!(error.code().code(), "HV00N", "{}", error.message());
    world.until(&format!("SELECT last_error LIKE '%could not connect: %' FROM ({status}) s")).await;
    world.db.run(&format!("ALTER ROLE {role} NOSUPERUSER")).await;
    assert_eq!(tenant.error(import).await.code().code(), "42501");
    world.until(&format!("SELECT last_error LIKE '%{refused}' FROM ({status}) s")).await;
}

/// Who may use a superuser's server may have a user mapping, but not one that leads elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_superusers_server_serves_everybody_and_lends_nobody_its_reach() {
    let world = World::new().await;
    let tenant = world.session_as("tenant").await;
    let role = world.role("tenant");
    world
        .db
        .run(&format!(
            "GRANT USAGE ON FOREIGN SERVER acme TO {role}; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
        ))
        .await;
    tenant.run("IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public").await;
    tenant.run("SELECT servicenow.wait_for_sync('incident', '60 s')").await;
    assert!(tenant.value::<i64>("SELECT count(*) FROM incident").await > 10);
    let name = own_name();
    tenant
        .run(&format!(
            "CREATE USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (auth 'client_credentials', client_id 'fdw-client',
             client_secret 'fdw-client-secret', token_url 'https://{name}:1/')"
        ))
        .await;
    let error = tenant.error("UPDATE incident SET short_description = 'x' WHERE number = 'INC0012345'").await;
    assert_eq!(error.code().code(), "42501", "{}", error.message());
    assert!(
        error.message().ends_with(&format!("\"{name}:1\" is not a public address")),
        "{}",
        error.message()
    );
}
