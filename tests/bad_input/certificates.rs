//! An instance whose certificate proves nothing.

use servicenow_sim::{Certificate, Simulator};
use world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_proves_nothing_is_said_with_what_to_do() {
    let world = World::new().await;
    world.db.run("SELECT servicenow.stop_worker(); ALTER SERVER acme OPTIONS (ADD ca_file '/')").await;
    for (certificate, said, hint) in [
        (Certificate::Good, "", ""),
        (Certificate::Expired, "certificate has expired", "renewed"),
        (Certificate::OtherHost, "certificate is not for this host name", "instance_url"),
        (Certificate::SelfSigned, "certificate is signed by nobody who is trusted", "ca_file"),
    ] {
        let sim = Simulator::builder().certificate(certificate).start().await.expect("a simulator");
        let file =
            std::env::temp_dir().join(format!("servicenow-{}-{certificate:?}.pem", std::process::id()));
        std::fs::write(&file, sim.ca_pem().expect("an authority")).expect("a file");
        let url = sim.https_url().expect("a listener");
        let options = format!("SET instance_url '{url}', SET ca_file '{}'", file.display());
        world.db.run(&format!("ALTER SERVER acme OPTIONS ({options})")).await;
        let import = "IMPORT FOREIGN SCHEMA servicenow LIMIT TO (incident) FROM SERVER acme INTO public";
        if said.is_empty() {
            world.db.run(import).await;
        } else {
            let error = world.db.error(import).await;
            assert_eq!(error.code().code(), "HV00N", "{}", error.message());
            let whole =
                format!("could not read the dictionary on server \"acme\": could not connect: {said}");
            assert_eq!(error.message(), whole);
            assert!(error.hint().is_some_and(|text| text.contains(hint)), "{:?}", error.hint());
        }
        std::fs::remove_file(&file).expect("it is there");
    }
}
