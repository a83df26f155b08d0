//! What goes over the wire, seen by a server that does nothing but write down what it is asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{client_at, login, page};

/// A request's lines up to the body, in lower case, and the number of the connection it came on.
type Head = (usize, Vec<String>);

/// Answers every request with the same compressed page and a cookie; gives back its address, what it is asked, and
/// the sizes of the answer's body before and after compression.
fn server() -> (String, Receiver<Head>, usize, usize) {
    let rows: Vec<String> = (0..1_000).map(|n| format!(r#"{{"sys_id":"{n:032x}","state":"1"}}"#)).collect();
    let body = format!(r#"{{"result":[{}]}}"#, rows.join(","));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body.as_bytes()).expect("it fits into memory");
    let compressed = encoder.finish().expect("it fits into memory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (heads, asked) = mpsc::channel();
    let sizes = (body.len(), compressed.len());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let (heads, compressed) = (heads.clone(), compressed.clone());
            std::thread::spawn(move || serve(number, &stream, &heads, &compressed));
        }
    });
    (url, asked, sizes.0, sizes.1)
}

fn serve(number: usize, mut stream: &TcpStream, heads: &Sender<Head>, body: &[u8]) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let head = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty());
        let head: Vec<String> = head.map(|line| line.to_ascii_lowercase()).collect();
        if head.is_empty() {
            return None;
        }
        heads.send((number, head)).ok()?;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: GZip\r\nContent-Length: {}\r\n\
             Set-Cookie: JSESSIONID=ABC; Path=/\r\n\r\n",
            body.len()
        );
        stream.write_all(answer.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
    }
}

#[tokio::test]
async fn answers_come_compressed_over_a_connection_that_is_kept_and_cookies_are_not() {
    let (url, asked, plain, compressed) = server();
    let client = client_at(&url, login("admin"), 1);
    for _ in 0..3 {
        assert_eq!(page(&client, "incident", "", 1_000).await.expect("an answer").rows.len(), 1_000);
    }
    let heads: Vec<Head> = asked.try_iter().collect();
    assert_eq!(heads.len(), 3);
    for (connection, head) in &heads {
        assert!(
            head.iter().any(|line| line.starts_with("accept-encoding:") && line.contains("gzip")),
            "{head:?}"
        );
        // Calls that share a session are carried out one after the other.
        assert!(!head.iter().any(|line| line.starts_with("cookie:")), "{head:?}");
        assert_eq!(*connection, 0, "the first one is used again");
    }
    assert!(compressed * 5 < plain, "{compressed} bytes instead of {plain}");
    let stats = client.take_stats();
    let bytes = stats.get("GET table/incident").expect("it was counted").bytes_in;
    assert_eq!(bytes, 3 * compressed as u64);
}
