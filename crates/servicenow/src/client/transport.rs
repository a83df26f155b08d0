//! How requests reach an instance. Everything above this trait is independent of the HTTP library.

use std::error::Error as StdError;
use std::future::Future;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http::{HeaderMap, HeaderValue, Method};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{AlertDescription, CertificateError, OtherError};
use url::Url;

use super::address::{Guard, Trust, causes, is_guards};
use crate::error::{Distrust, Error, Result};

/// The largest answer to hold in memory, in bytes after decompression. An instance's own trouble begins at
/// about 12.7 MB; pages shrink long before this.
pub const BODY_LIMIT: usize = 64 << 20;

/// The largest file of certificates that is read, in bytes; the whole system's are a quarter of it.
const CA_FILE_LIMIT: u64 = 1 << 20;

/// One HTTP request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The whole address.
    pub url: Url,
    /// Headers, `Authorization` included.
    pub headers: HeaderMap,
    /// The body of a write.
    pub body: Option<Bytes>,
}

/// One HTTP answer, its body decompressed and whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// How many bytes the body took on the wire.
    pub wire_bytes: usize,
}

impl Response {
    /// Whether the status says that the request was carried out: 202 says that it was discarded.
    pub(super) fn is_success(&self) -> bool {
        matches!(self.status, 200 | 201 | 204)
    }

    /// A header's value, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Sends one request and gives back one answer, whatever its status.
pub trait Transport: Send + Sync + 'static {
    /// Fails with [`Error::Connect`] only if nothing was sent, with [`Error::Broken`] or [`Error::TimedOut`] if
    /// something may have been.
    fn send(&self, request: Request) -> impl Future<Output = Result<Response>> + Send;
}

/// How to set up [`HttpTransport`].
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait for a whole answer.
    pub request_timeout: Duration,
    /// A PEM file with certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Where connections go through: `http`, `https`, `socks5` or `socks5h` (which resolves names itself).
    pub proxy: Option<Url>,
    /// How far names are trusted. Names that a proxy resolves are the proxy's to judge.
    pub trust: Trust,
    /// The largest answer held in memory, in bytes after decompression; see [`BODY_LIMIT`].
    pub body_limit: usize,
}

impl Default for TransportOptions {
    /// Directly to wherever names lead, with patience.
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(90),
            ca_file: None,
            proxy: None,
            trust: Trust::Everywhere,
            body_limit: BODY_LIMIT,
        }
    }
}

/// The transport over HTTP/1.1 and TLS 1.2 or later, with the system's certificate authorities.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    /// For what is trusted.
    open: reqwest::Client,
    /// For what is not.
    guarded: reqwest::Client,
    trust: Trust,
    proxy: Option<Url>,
    body_limit: usize,
}

impl HttpTransport {
    /// Sets up a pool of connections. Nothing is connected yet. Cookies are not kept: calls that share a
    /// session are carried out one after the other by the instance, and discarded beyond ten.
    pub fn new(options: &TransportOptions) -> Result<Self> {
        let tls = tls_config(options.ca_file.as_ref())?;
        let failed = |e: reqwest::Error| Error::Setup(format!("could not set up HTTP: {}", root_cause(&e)));
        let proxy =
            options.proxy.as_ref().map(|url| reqwest::Proxy::all(url.clone())).transpose().map_err(failed)?;
        let builder = || {
            let builder = reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .connect_timeout(options.connect_timeout)
                .timeout(options.request_timeout)
                .pool_idle_timeout(Duration::from_secs(15)) // the instance's Keep-Alive says 20 s
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true)
                .user_agent(concat!("servicenow_fdw/", env!("CARGO_PKG_VERSION")))
                .no_proxy();
            match &proxy {
                Some(proxy) => builder.proxy(proxy.clone()),
                None => builder,
            }
        };
        let proxy = options.proxy.clone();
        let guard = Guard { proxy: proxy.as_ref().and_then(Url::host_str).map(str::to_owned) };
        Ok(Self {
            open: builder().build().map_err(failed)?,
            guarded: builder().dns_resolver(guard).build().map_err(failed)?,
            trust: options.trust.clone(),
            proxy,
            body_limit: options.body_limit,
        })
    }

    fn classify(&self, host: &str, e: &reqwest::Error) -> Error {
        let host = host.to_owned();
        if is_guards(e) {
            return Error::NotPublic { host };
        }
        if let Some(distrust) = distrust(e) {
            return Error::Untrusted { host, distrust };
        }
        let reason = if e.is_timeout() { "timeout expired".to_owned() } else { root_cause(e) };
        if e.is_connect() || e.is_builder() {
            Error::Connect { host, reason: self.through_proxy(reason) }
        } else if e.is_timeout() {
            Error::TimedOut { host }
        } else {
            Error::Broken { host, reason }
        }
    }

    /// Why there is no connection, with the proxy that may be to blame.
    fn through_proxy(&self, reason: String) -> String {
        match &self.proxy {
            Some(proxy) => format!("{reason} (by way of proxy \"{}\")", host_of(proxy)),
            None => reason,
        }
    }
}

impl Transport for HttpTransport {
    async fn send(&self, request: Request) -> Result<Response> {
        let host = host_of(&request.url);
        let client = if self.trust.covers(&request.url) { &self.open } else { &self.guarded };
        let mut builder = client
            .request(request.method, request.url)
            .headers(request.headers)
            .header(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let failed = |e: reqwest::Error| self.classify(&host, &e);
        let answer = builder.send().await.map_err(failed)?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        if status == 407 && self.proxy.is_some() {
            // Instances do not say so, and a proxy that does has passed nothing on.
            return Err(Error::Connect {
                host,
                reason: self.through_proxy("a login is asked for".to_owned()),
            });
        }
        let mut body = BytesMut::with_capacity(answer.content_length().unwrap_or(0).min(1 << 20) as usize);
        let mut chunks = answer.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(failed)?;
            if body.len() + chunk.len() > self.body_limit {
                return Err(Error::TooLarge { limit: self.body_limit });
            }
            body.extend_from_slice(&chunk);
        }
        let wire_bytes = body.len();
        let is_compressed = headers.get(CONTENT_ENCODING).is_some_and(is_gzip);
        let body = if is_compressed { decompress(&host, &body, self.body_limit)? } else { body.freeze() };
        Ok(Response { status, headers, body, wire_bytes })
    }
}

/// Whether this is the one encoding that is asked for, in any of its spellings (RFC 9110, 8.4.1).
fn is_gzip(encoding: &HeaderValue) -> bool {
    let name = encoding.as_bytes().trim_ascii();
    [&b"gzip"[..], b"x-gzip"].iter().any(|gzip| name.eq_ignore_ascii_case(gzip))
}

/// Decompresses a whole body at once, which takes a fraction of what doing it chunk by chunk does.
fn decompress(host: &str, compressed: &[u8], most: usize) -> Result<Bytes> {
    // A gzip file ends with its size; whatever it says, no more than the limit is believed.
    let size = compressed.last_chunk().map_or(0, |size| u32::from_le_bytes(*size) as usize);
    let mut body = Vec::with_capacity(size.min(most));
    let limit = most as u64 + 1;
    let read = flate2::read::MultiGzDecoder::new(compressed).take(limit).read_to_end(&mut body);
    match read {
        Ok(_) if body.len() > most => Err(Error::TooLarge { limit: most }),
        Ok(_) => Ok(body.into()),
        Err(e) => Err(Error::Broken {
            host: host.to_owned(),
            reason: format!("the answer cannot be decompressed: {e}"),
        }),
    }
}

/// `host:port` of an address, for messages.
pub fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => url.to_string(),
    }
}

/// The TLS library's error that an error is or wraps: what an I/O error wraps is not its source.
fn tls_error<'e>(e: &'e (dyn StdError + 'static)) -> Option<&'e rustls::Error> {
    match e.downcast_ref::<std::io::Error>() {
        Some(e) => tls_error(e.get_ref()?),
        None => e.downcast_ref(),
    }
}

/// What is wrong with the other side's certificate, or its TLS, if that is why a request failed.
fn distrust(e: &reqwest::Error) -> Option<Distrust> {
    let found = causes(e).find_map(tls_error)?;
    Some(match found {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Distrust::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Distrust::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Distrust::OtherName
            }
            // An authority may have a trusted one's name and not its key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Distrust::Issuer,
            // An authority's own certificate, or one that somebody has signed for themselves.
            CertificateError::Other(OtherError(cause)) if cause.to_string().contains("CaUsedAsEndEntity") => {
                Distrust::Issuer
            }
            other => Distrust::Other(format!("certificate is not valid: {other}")),
        },
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
        ) => Distrust::Version,
        rustls::Error::InvalidMessage(_) => Distrust::NoTls,
        other => Distrust::Other(format!("TLS failed: {other}")),
    })
}

/// The innermost error's text: the outer ones of an HTTP library repeat the address and say little.
fn root_cause(e: &dyn StdError) -> String {
    let mut cause = e;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn tls_config(ca_file: Option<&PathBuf>) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let unusable =
            |reason: String| Error::Setup(format!("could not use \"{}\": {reason}", path.display()));
        let about = std::fs::metadata(path).map_err(|e| unusable(e.to_string()))?;
        if !about.is_file() || about.len() > CA_FILE_LIMIT {
            return Err(unusable(format!("it is not a regular file of at most {CA_FILE_LIMIT} bytes")));
        }
        let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
            roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(unusable("it holds no certificate".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Setup(format!("could not set up TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_inside_is_said_to_do_so() {
        let options = TransportOptions {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            ca_file: None,
            proxy: None,
            trust: Trust::Origins(Vec::new()),
            body_limit: BODY_LIMIT,
        };
        let transport = HttpTransport::new(&options).expect("a transport");
        // `localhost` says what it is, and would be taken at its word; other names of this host cannot be relied on.
        let error = transport.guarded.get("https://localhost:1").send().await.expect_err("a refusal");
        let error = transport.classify("localhost:1", &error);
        assert!(matches!(&error, Error::NotPublic { host } if host == "localhost:1"), "{error:?}");
        assert!(!error.leaves_outcome_unknown());
    }
}
