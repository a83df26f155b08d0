//! By way of a proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use servicenow::Error;
use servicenow::client::address::Trust;
use servicenow_sim::Simulator;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::redirect::answering;
use crate::{HttpClient, instance, login, page, set_up};

fn client_through(proxy: &str, url: &str) -> HttpClient {
    set_up(url, login("admin"), |instance, options| {
        instance.patience.attempts = 1;
        options.connect_timeout = Duration::from_secs(5);
        options.proxy = Some(proxy.parse().expect("an address"));
        options.trust = Trust::Origins(Vec::new());
    })
    .expect("a client")
}

/// A proxy that passes everything on to one address, and how many connections it was asked for.
async fn passing(socks: bool, sim: &Simulator) -> (String, Arc<AtomicUsize>) {
    let there = sim.url().trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let scheme = if socks { "socks5h" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().expect("an address"));
    let passed = Arc::new(AtomicUsize::new(0));
    let count = passed.clone();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let there = there.clone();
            tokio::spawn(async move {
                if socks {
                    greet(&mut here).await?;
                }
                let mut there = TcpStream::connect(there).await?;
                copy_bidirectional(&mut here, &mut there).await
            });
        }
    });
    (url, passed)
}

/// The server's side of SOCKS 5 without a login (RFC 1928).
async fn greet(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let mut methods = vec![0; usize::from(head[1])];
    stream.read_exact(&mut methods).await?;
    stream.write_all(&[5, 0]).await?;
    let mut request = [0; 5];
    stream.read_exact(&mut request).await?;
    assert_eq!(request[3], 3, "the proxy is to resolve the name");
    let mut rest = vec![0; usize::from(request[4]) + 2];
    stream.read_exact(&mut rest).await?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

/// The name is the proxy's to resolve, and may be one that only the proxy knows.
#[tokio::test]
async fn calls_go_through_the_proxy_which_resolves_names() {
    let sim = instance().await;
    for socks in [false, true] {
        let (proxy, passed) = passing(socks, &sim).await;
        let client = client_through(&proxy, "http://acme.invalid");
        assert_eq!(page(&client, "incident", "", 3).await.expect("an answer").rows.len(), 3, "{proxy}");
        assert_eq!(passed.load(Ordering::Relaxed), 1, "{proxy}");
    }
}

#[tokio::test]
async fn what_a_proxy_refuses_is_not_taken_for_the_instances_answer() {
    for (head, url) in [
        ("407 Proxy Authentication Required", "http://acme.invalid"),
        ("407 Proxy Authentication Required", "https://acme.invalid"),
        ("403 Forbidden", "https://acme.invalid"),
        ("502 Bad Gateway", "https://acme.invalid"),
    ] {
        let (proxy, asked) =
            answering(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        let error = page(&client_through(&proxy, url), "incident", "", 1).await.expect_err(head);
        let named = format!("by way of proxy \"{}\"", proxy.trim_start_matches("http://"));
        assert!(
            matches!(&error, Error::Connect { reason, .. } if reason.contains(&named)),
            "{head} {url}: {error:?}"
        );
        assert!(!error.leaves_outcome_unknown());
        let asked = asked.recv().expect("it was asked");
        // What is for the instance alone is not for a proxy's eyes.
        assert!(
            url.starts_with("http:") || !asked.to_ascii_lowercase().contains("\r\nauthorization:"),
            "{asked}"
        );
    }
    let error = page(&client_through("http://127.0.0.1:1", "https://acme.invalid"), "incident", "", 1).await;
    assert!(matches!(error, Err(Error::Connect { .. })), "{error:?}");
}
