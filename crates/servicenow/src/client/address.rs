//! Which addresses may be connected to. Whoever names an instance need not be trusted with what this host can reach:
//! itself, its neighbours, the metadata of its cloud.

use std::error::Error as StdError;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Origin, Url};

/// How far the names in addresses are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// They may lead anywhere.
    Everywhere,
    /// They lead to public addresses only, but for these origins. What is no name, as [`is_private`] sees it, leads
    /// where it says: whoever accepts it can see that.
    Origins(Vec<Origin>),
}

impl Trust {
    /// Whether an address need not be looked at when its name has been resolved.
    pub(super) fn covers(&self, url: &Url) -> bool {
        match self {
            Trust::Everywhere => true,
            Trust::Origins(origins) => {
                !matches!(url.host(), Some(Host::Domain(_)))
                    || is_private(url)
                    || origins.contains(&url.origin())
            }
        }
    }
}

/// Whether an address says by itself that it is not public: as a number, or as `localhost`.
pub fn is_private(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(ip)) => !is_public_v4(ip),
        Some(Host::Ipv6(ip)) => !is_public_v6(ip),
        None => false,
    }
}

/// What Azure has for the metadata and the agents of its machines, behind an address that looks public.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Whether packets to an address leave this host and its network: by IANA's registries of special addresses.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_special = a == 0 // this network, RFC 791
        || ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local() // with the metadata of clouds, 169.254.169.254
        || (a == 100 && (64..128).contains(&b)) // shared by customers of a provider, RFC 6598
        || (a, b, c) == (192, 0, 0) // protocol assignments, RFC 6890
        || ip == AZURE
        || (a == 198 && (18..20).contains(&b)) // benchmarks, RFC 2544
        || a >= 224; // multicast, reserved, broadcast
    !is_special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        // IPv4 in other clothes: mapped, compatible, translated (RFC 6052), 6to4 (RFC 3056).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(v4(high, low))
        }
        [0x2002, high, low, ..] => is_public_v4(v4(high, low)),
        [0x64, 0xff9b, 1, ..] // translated locally, RFC 8215
        | [0x2001, 0, ..] // Teredo, RFC 4380
        | [0x100, 0, 0, 0, ..] // nowhere, RFC 6666
        | [0xfc00..=0xfdff, ..] // unique local, RFC 4193
        | [0xfe80..=0xfeff, ..] // link-local, site-local
        | [0xff00..=0xffff, ..] => false, // multicast
        _ => true,
    }
}

/// A name that leads to no public address.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" has no public address")]
pub(super) struct NotPublic(String);

/// Resolves names as the system does, and gives away public addresses only: what is connected to is what was looked
/// at, whatever the name leads to a moment later.
#[derive(Debug)]
pub(super) struct Guard {
    /// The proxy's name, which may lead anywhere.
    pub(super) proxy: Option<String>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxy.as_deref() == Some(name.as_str());
        Box::pin(async move {
            let all = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (open, closed): (Vec<SocketAddr>, Vec<SocketAddr>) =
                all.partition(|address| is_proxy || is_public(address.ip()));
            if open.is_empty() && !closed.is_empty() {
                return Err(NotPublic(name.as_str().to_owned()).into());
            }
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

/// An error, and what has caused it.
pub(super) fn causes<'e>(
    e: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(e), |e: &&'e (dyn StdError + 'static)| (*e).source())
}

/// Whether a connection was not tried because of [`Guard`].
pub(super) fn is_guards(e: &(dyn StdError + 'static)) -> bool {
    causes(e).any(|e| e.is::<NotPublic>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_are_told_from_those_outside() {
        for inside in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.169.254",
            "192.0.0.1",
            "168.63.129.16",
            "64:ff9b::168.63.129.16",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "2002:7f00:1::",
            "2001::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(inside.parse().expect("an address")), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.0.1",
            "100.128.0.1",
            "168.63.129.17",
            "169.253.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::",
            "2001:4860:4860::8888",
        ] {
            assert!(is_public(outside.parse().expect("an address")), "{outside}");
        }
    }

    #[test]
    fn an_address_is_recognized_in_every_spelling() {
        for inside in [
            "http://127.1",
            "http://2130706433",
            "http://0x7f.0.0.1",
            "http://0177.0.0.1",
            "http://127.0.0.1.",
            "http://localhost",
            "http://LOCALHOST.",
            "http://a.localhost",
            "http://[::1]",
            "http://[::ffff:7f00:1]",
            "http://１２７.0.0.1",
            "http://169.254.169.254/latest/meta-data",
            "http://0",
        ] {
            assert!(is_private(&Url::parse(inside).expect("an address")), "{inside}");
        }
        for unclear in ["https://acme.service-now.com", "https://localhost.example", "https://8.8.8.8"] {
            assert!(!is_private(&Url::parse(unclear).expect("an address")), "{unclear}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_host_is_not_resolved_for_those_who_are_not_trusted() {
        let resolve = |proxy: Option<&str>| {
            let guard = Guard { proxy: proxy.map(str::to_owned) };
            guard.resolve("localhost".parse().expect("a name"))
        };
        let refused = resolve(None).await.err().expect("it leads to this host");
        assert!(is_guards(&*refused), "{refused}");
        assert!(resolve(Some("proxy.example")).await.is_err());
        let found = resolve(Some("localhost")).await.expect("proxies may be anywhere");
        assert!(found.count() > 0);
    }

    #[test]
    fn a_trusted_origin_is_a_host_and_a_port() {
        let url = |text: &str| Url::parse(text).expect("an address");
        let trust = Trust::Origins(vec![url("https://inside.example:8443").origin()]);
        assert!(trust.covers(&url("https://inside.example:8443/oauth_token.do")));
        for other in ["https://inside.example/", "http://inside.example:8443", "https://other.example:8443"] {
            assert!(!trust.covers(&url(other)), "{other}");
        }
    }
}
