//! The mail server of setting `servicenow_fdw.smtp_url`. Called on Tokio threads.

use std::time::Duration;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use url::Url;

use super::message::Text;

/// The longest wait for the mail server's answer to one command.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What may stand behind the question mark: how to encrypt (`required`, `opportunistic`), who sends, and a file with the
/// password. Postgres writes settings that change into its log, where a password of the setting's own would be.
const PARAMETERS: [&str; 3] = ["tls", "from", "password_file"];

/// A mail server.
pub struct Relay {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Address,
}

impl Relay {
    /// Reads the setting. No error quotes it: it has a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = |why: &str| format!("servicenow_fdw.smtp_url is invalid: {why}");
        let mut url = Url::parse(text).map_err(|e| invalid(&e.to_string()))?;
        let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let find = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        let is_unknown = |(name, _): &&(String, String)| !PARAMETERS.contains(&name.as_str());
        if let Some((name, _)) = parameters.iter().find(is_unknown) {
            let known = PARAMETERS.join(", ");
            return Err(invalid(&format!("\"{name}\" is none of the parameters {known}")));
        }
        if let Some(path) = find("password_file") {
            let password =
                std::fs::read_to_string(&path).map_err(|e| invalid(&format!("\"{path}\": {e}")))?;
            let password = password.trim_end_matches(['\r', '\n']);
            url.set_password(Some(password)).map_err(|()| invalid("it has no host"))?;
        }
        let tls = find("tls").or_else(|| default_tls(&url).map(str::to_owned));
        if url.scheme() == "smtp"
            && tls.as_deref() != Some("required")
            && url.password().is_some()
            && !is_here(&url)
        {
            return Err(invalid("a password takes smtps, or tls=required"));
        }
        let from = match find("from") {
            Some(address) => {
                address.parse().map_err(|_| invalid("parameter from is not an address of mail"))?
            }
            None => own_address(&url),
        };
        url.set_query(tls.map(|tls| format!("tls={tls}")).as_deref());
        let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.as_str());
        let builder = builder.map_err(|e| invalid(&e.to_string()))?;
        Ok(Self { transport: builder.timeout(Some(TIMEOUT)).build(), from })
    }

    /// Delivers a mail; an error says why it was not. If only some will never have it, they are what is given back.
    pub async fn deliver(&self, to: &[Address], text: &Text) -> Result<Option<String>, String> {
        match self.send(to, text).await? {
            Ok(()) => return Ok(None),
            // A mail server takes a mail for all or for nobody.
            Err(e) if to.len() > 1 && (e.is_permanent() || e.is_transient()) => {}
            Err(e) => return Err(described(&e)),
        }
        let (mut refusals, mut is_final) = (Vec::new(), true);
        for address in to {
            if let Err(e) = self.send(std::slice::from_ref(address), text).await? {
                is_final &= e.is_permanent();
                refusals.push(format!("{address}: {}", described(&e)));
            }
        }
        let why = (!refusals.is_empty()).then(|| refusals.join("; "));
        match why {
            Some(why) if !is_final || refusals.len() == to.len() => Err(why),
            why => Ok(why),
        }
    }

    /// The outer error is about the text.
    async fn send(&self, to: &[Address], text: &Text) -> Result<Result<(), Error>, String> {
        let mut builder = Message::builder()
            .from(Mailbox::new(Some("servicenow_fdw".to_owned()), self.from.clone()))
            .subject(&text.subject)
            .header(ContentType::TEXT_PLAIN);
        for address in to {
            builder = builder.to(Mailbox::new(None, address.clone()));
        }
        let message = builder.body(text.body.clone()).map_err(|e| e.to_string())?;
        Ok(self.transport.send(message).await.map(|_| ()))
    }
}

/// An error and what is behind it.
fn described(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup_by(|later, earlier| earlier.ends_with(later.as_str()));
    texts.join(": ")
}

/// A mail server on this host is spoken to as it is; another one with TLS if it can, which a password asks for.
fn default_tls(url: &Url) -> Option<&'static str> {
    match (url.scheme(), is_here(url), url.password()) {
        ("smtp", false, Some(_)) => Some("required"),
        ("smtp", false, None) => Some("opportunistic"),
        _ => None,
    }
}

fn is_here(url: &Url) -> bool {
    url.host_str().is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]" | "::1"))
}

/// Who sends, unless it is said: the login if it is an address, else this host.
fn own_address(url: &Url) -> Address {
    let login = percent_decoded(url.username());
    login
        .parse()
        .or_else(|_| format!("servicenow_fdw@{}", host_name()).parse())
        .unwrap_or_else(|_| Address::new("servicenow_fdw", "localhost").expect("a valid address"))
}

fn percent_decoded(text: &str) -> String {
    let pair = format!("x={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

/// What this host calls itself.
pub fn host_name() -> String {
    match ClientId::default() {
        ClientId::Domain(name) => name,
        _ => "localhost".to_owned(),
    }
}
