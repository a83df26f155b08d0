//! An answer that sends somewhere else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver};

use servicenow::Error;
use servicenow::client::auth::{Credentials, OauthClient, Secret};

use crate::{client_at, login, page};

/// Answers every request with the same head; gives back its address and the heads of what it is asked.
pub fn answering(head: String) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (heads, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut lines, mut asked) = (BufReader::new(&stream), String::new());
            while !asked.ends_with("\r\n\r\n") && lines.read_line(&mut asked).is_ok_and(|read| read > 0) {}
            let length = asked.to_ascii_lowercase().split("content-length: ").nth(1).map_or(0, |rest| {
                rest.split("\r\n").next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
            });
            let mut body = vec![0; length];
            let _whole = lines.read_exact(&mut body);
            if heads.send(asked).is_err() || stream.write_all(head.as_bytes()).is_err() {
                break;
            }
        }
    });
    (url, asked)
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect() {
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let (elsewhere, told) =
            answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned());
        let head = format!(
            "HTTP/1.1 {status}\r\nLocation: {elsewhere}/api/now/table/incident\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let (url, asked) = answering(head);
        let secret = |text: &str| Secret::new(text.to_owned()).into();
        let with_token = Credentials::Password {
            client: OauthClient { id: "c".to_owned(), secret: Some(secret("s")) },
            username: "u".to_owned(),
            password: secret("p"),
        };
        for credentials in [login("admin"), with_token] {
            let error = page(&client_at(&url, credentials, 1), "incident", "", 1).await.expect_err(status);
            assert!(matches!(error, Error::Unreadable(_)), "{status}: {error:?}");
            assert!(asked.try_recv().is_ok());
        }
        assert!(told.try_recv().is_err(), "{status}: nobody else is asked anything");
    }
}
