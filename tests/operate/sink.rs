//! A mail server that keeps what it is given.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Mutex, OnceLock};

/// Mails, as they came: login and recipients in a line, then headers and body.
static MAILS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Recipients that are refused.
static REFUSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Its port; it runs from the first call on.
pub fn port() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(&stream));
            }
        });
        port
    })
}

/// The mails to an address.
pub fn mails_to(address: &str) -> Vec<String> {
    let is_to = |mail: &&String| mail.lines().next().is_some_and(|to| to.contains(address));
    MAILS.lock().unwrap().iter().filter(is_to).cloned().collect()
}

/// Begins or ends to refuse mails to an address.
pub fn refuse(address: &str, on: bool) {
    let mut refused = REFUSED.lock().unwrap();
    refused.retain(|known| known != address);
    if on {
        refused.push(address.to_owned());
    }
}

fn serve(stream: &TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let say = |text: &str| (&*stream).write_all(format!("{text}\r\n").as_bytes()).ok();
    say("220 sink")?;
    let mut to = String::new();
    loop {
        let line = lines.next()?.ok()?;
        let command = line.to_ascii_uppercase();
        if command.starts_with("EHLO") {
            say("250-sink")?;
            say("250 AUTH PLAIN")?;
            continue;
        } else if command.starts_with("AUTH") {
            to.push_str(&line);
            say("235 welcome")?;
            continue;
        } else if command.starts_with("RCPT TO:") {
            if REFUSED.lock().unwrap().iter().any(|address| line.contains(address.as_str())) {
                say("550 no such mailbox")?;
                continue;
            }
            to.push_str(&line["RCPT TO:".len()..]);
        } else if command == "DATA" {
            say("354 go on")?;
            let mut mail = std::mem::take(&mut to);
            loop {
                let line = lines.next()?.ok()?;
                if line == "." {
                    break;
                }
                mail.push('\n');
                mail.push_str(line.strip_prefix('.').unwrap_or(&line));
            }
            MAILS.lock().unwrap().push(mail);
        } else if command.starts_with("QUIT") {
            say("221 bye")?;
            return None;
        }
        say("250 ok")?;
    }
}
