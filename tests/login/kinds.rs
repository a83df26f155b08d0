//! Every way to log in that needs no browser.

use servicenow_sim::PRIVATE_KEY;

use crate::{CLIENT, KNOWN, world};

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_log_in_fills_tables_and_writes_as_its_user() {
    let world = world().await;
    world.sim.edit().add_api_key("itil-key", "itil.user");
    for (login, user) in [
        ("auth 'basic', username 'itil.user', password 'itil-secret'".to_owned(), "itil.user"),
        ("auth 'api_key', api_key 'itil-key'".to_owned(), "itil.user"),
        (format!("auth 'client_credentials', {CLIENT}"), "fdw.integration"),
        (
            format!("auth 'password', {CLIENT}, username 'pacific.user', password 'pacific-secret'"),
            "pacific.user",
        ),
        (
            format!(
                "auth 'jwt_bearer', {CLIENT}, subject 'itil.user', key_id 'fdw-key', private_key '{PRIVATE_KEY}'"
            ),
            "itil.user",
        ),
    ] {
        world.db.run(&format!("CREATE USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS ({login})")).await;
        world.db.run("SELECT servicenow.resync('incident')").await;
        world.sync("incident").await;
        world
            .db
            .run(&format!("UPDATE incident SET short_description = short_description || '.' WHERE {KNOWN}"))
            .await;
        let id = world.find("incident", "number=INC0012345");
        assert_eq!(world.remote("incident", &id, "sys_updated_by").as_deref(), Some(user), "{login}");
        world.db.run("DROP USER MAPPING FOR CURRENT_USER SERVER acme").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_may_be_in_a_file_of_the_servers() {
    let world = world().await;
    let file = world.cluster.socket().join(format!("secret_{}", world.database));
    let mapping = format!(
        "CREATE USER MAPPING FOR CURRENT_USER SERVER acme OPTIONS (auth 'client_credentials', client_id 'fdw-client',
         client_secret_file '{}')",
        file.display()
    );
    world.db.run(&mapping).await;
    let update = format!("UPDATE incident SET short_description = 'x' WHERE {KNOWN}");
    let check = "SELECT detail FROM servicenow.check_server('acme') WHERE NOT ok";
    let detail: String = world.db.value(check).await;
    assert!(detail.contains("could not read file") && detail.contains("secret_"), "{detail}");
    std::fs::write(&file, "fdw-client-secret\n").expect("a file");
    world.sync("incident").await;
    world.db.run(&update).await;
}
