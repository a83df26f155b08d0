//! A throw-away certificate authority for the https listener.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The authority's certificate in PEM form and the server configuration that it vouches for.
pub(crate) struct Authority {
    /// The certificate to trust.
    pub(crate) ca_pem: String,
    /// The configuration of the listener.
    pub(crate) config: Arc<ServerConfig>,
}

/// What certificate the https listener shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Certificate {
    /// One for `localhost` and 127.0.0.1, signed by the throw-away authority.
    #[default]
    Good,
    /// The same, and too old.
    Expired,
    /// The same, and not to be used yet.
    Future,
    /// One that the authority has signed for another host.
    OtherHost,
    /// One for `localhost` that vouches for itself.
    SelfSigned,
}

/// Making the certificates failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate generator failed.
    #[error("could not make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused the certificate.
    #[error("could not configure TLS")]
    Config(#[from] rustls::Error),
}

/// Makes a new authority, and a certificate as asked for.
pub(crate) fn authority(certificate: Certificate) -> Result<Authority, TlsError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "servicenow-sim throw-away CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = match certificate {
        Certificate::OtherHost => vec!["other.example".to_owned()],
        _ => vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
    };
    let mut params = CertificateParams::new(names)?;
    match certificate {
        Certificate::Expired => params.not_after = rcgen::date_time_ymd(2001, 1, 1),
        Certificate::Future => params.not_before = rcgen::date_time_ymd(4000, 1, 1),
        // As the usual tools make them.
        Certificate::SelfSigned => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        Certificate::Good | Certificate::OtherHost => {}
    }
    let leaf = match certificate {
        Certificate::SelfSigned => params.self_signed(&key)?,
        _ => params.signed_by(&key, &ca)?,
    };
    let chain = vec![leaf.der().clone()];
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Authority { ca_pem: ca.pem(), config: Arc::new(config) })
}
