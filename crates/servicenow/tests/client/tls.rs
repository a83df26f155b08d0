use std::io::{Read, Write};
use std::path::PathBuf;

use servicenow::Error;
use servicenow::error::Distrust;
use servicenow_sim::{Certificate, Simulator};

use crate::{HttpClient, login, page, set_up};

/// A file that goes away with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("servicenow-{}-{name}.pem", std::process::id()));
        std::fs::write(&path, content).expect("a file");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

fn client_with(url: &str, ca_file: Option<PathBuf>) -> servicenow::Result<HttpClient> {
    set_up(url, login("fdw.integration"), |instance, options| {
        instance.patience.attempts = 1;
        options.ca_file = ca_file;
    })
}

#[tokio::test]
async fn a_certificate_is_believed_if_its_authority_is_trusted() {
    let sim = Simulator::builder().tls(true).start().await.expect("the simulator starts");
    let url = sim.https_url().expect("it listens for https");
    let strangers = page(&client_with(url, None).expect("a client"), "incident", "", 1).await;
    let error = strangers.expect_err("nobody vouches for it");
    assert!(matches!(&error, Error::Untrusted { distrust: Distrust::Issuer, .. }), "{error:?}");
    assert!(sim.requests().is_empty(), "nothing is sent to somebody who may be anybody");
    let file = File::new("authority", sim.ca_pem().expect("it has an authority"));
    let client = client_with(url, Some(file.0.clone())).expect("a client");
    assert_eq!(page(&client, "incident", "", 1).await.expect("an answer").rows.len(), 1);
    let address = url.replace("localhost", "127.0.0.1");
    let other_name =
        page(&client_with(&address, Some(file.0.clone())).expect("a client"), "incident", "", 1).await;
    match other_name {
        Ok(_) => {} // the throw-away certificate may name the address too
        Err(error) => assert!(matches!(error, Error::Untrusted { .. }), "{error:?}"),
    }
}

#[tokio::test]
async fn another_authority_is_not_enough() {
    let sim = Simulator::builder().tls(true).start().await.expect("the simulator starts");
    let other = Simulator::builder().tls(true).start().await.expect("the simulator starts");
    let file = File::new("other", other.ca_pem().expect("it has an authority"));
    let client =
        client_with(sim.https_url().expect("it listens for https"), Some(file.0.clone())).expect("a client");
    let error = page(&client, "incident", "", 1).await.expect_err("it is another one's");
    assert!(matches!(error, Error::Untrusted { distrust: Distrust::Issuer, .. }), "{error:?}");
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_told_apart() {
    for (certificate, expected) in [
        (Certificate::Expired, Distrust::Expired),
        (Certificate::Future, Distrust::NotYetValid),
        (Certificate::OtherHost, Distrust::OtherName),
        (Certificate::SelfSigned, Distrust::Issuer),
    ] {
        let sim = Simulator::builder().certificate(certificate).start().await.expect("the simulator starts");
        let file = File::new(&format!("{certificate:?}"), sim.ca_pem().expect("it has an authority"));
        let client = client_with(sim.https_url().expect("it listens for https"), Some(file.0.clone()))
            .expect("a client");
        let error = page(&client, "incident", "", 1).await.expect_err("it cannot be trusted");
        assert!(
            matches!(&error, Error::Untrusted { distrust, .. } if *distrust == expected),
            "{certificate:?}: {error:?}"
        );
        assert!(!error.leaves_outcome_unknown());
        assert!(sim.requests().is_empty(), "nothing is sent to somebody who may be anybody");
    }
}

/// Answers whatever comes with these bytes.
fn saying(bytes: Vec<u8>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut hello = [0; 4096];
            let _told = stream.read(&mut hello).and_then(|_| stream.write_all(&bytes));
            let _closed = stream.read(&mut hello);
        }
    });
    url
}

#[tokio::test]
async fn what_speaks_no_recent_tls_is_told_from_what_speaks_none() {
    // A fatal alert "protocol_version", and a ServerHello of TLS 1.1 (RFC 4346).
    let alert = vec![21, 3, 2, 0, 2, 2, 70];
    let mut hello = vec![22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 0x2f, 0]);
    for (answer, expected) in [
        (alert, Distrust::Version),
        (hello, Distrust::Version),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Distrust::NoTls),
    ] {
        let client = client_with(&saying(answer), None).expect("a client");
        let error = page(&client, "incident", "", 1).await.expect_err("no TLS");
        assert!(matches!(&error, Error::Untrusted { distrust, .. } if *distrust == expected), "{error:?}");
    }
}

#[test]
fn a_file_without_certificates_is_refused_by_name() {
    let broken = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
    let files = [File::new("empty", ""), File::new("text", "hello"), File::new("broken", broken)];
    let missing = PathBuf::from("no-such-file.pem");
    for path in files.iter().map(|file| &file.0).chain([&missing]) {
        let outcome = client_with("https://localhost:1", Some(path.clone()));
        let said = match outcome {
            Err(Error::Setup(said)) => said,
            other => panic!("{}: {:?}", path.display(), other.err()),
        };
        assert!(said.contains(&path.display().to_string()), "{said}");
    }
}
