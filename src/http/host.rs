//! Under which names the HTTP side answers. Pure.
//!
//! A page of somebody else can have its own host name lead to this node (DNS rebinding). A browser then takes the node for that
//! page's own host, and lets it read and send whatever it likes; but it says in each request which name it asked for. An address
//! cannot be rebound, nor can `localhost`; any other name is this node's only where its operator says so. Where the node itself
//! speaks TLS its certificate says the same before a request is sent, and nothing is looked at here.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, Uri, header, uri::Authority};

use super::{answer::Failure, params::shown};

/// The names, besides those that everybody's node has.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    names: Vec<String>,
    any: bool,
}

impl Hosts {
    /// `names` of the configuration, in lower case; `*` is any. With TLS all are right that the certificate is for.
    pub(super) fn new(names: &[String], has_tls: bool) -> Hosts {
        Hosts { any: has_tls || names.iter().any(|name| name == "*"), names: names.to_owned() }
    }

    /// Refuses a request for another host with 421, and says what its operator would set.
    ///
    /// A request that names no host is no browser's.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
        let mut named = headers.get_all(header::HOST).iter();
        let (host, other) = (named.next(), named.next());
        if other.is_some() {
            return Err(Failure::bad("Invalid request: it names two hosts."));
        }
        let host = host.map(|host| host.to_str().unwrap_or("\u{fffd}"));
        match [uri.authority().map(Authority::as_str), host].into_iter().flatten().find(|host| !self.allows(host)) {
            None => Ok(()),
            Some(host) => Err(Failure {
                status: 421,
                error: format!(
                    "This node does not answer as {}: ask for it by its address or as localhost, or have its operator add the name to \
                     [http] names.",
                    shown(host)
                ),
            }),
        }
    }

    fn allows(&self, host: &str) -> bool {
        if self.any {
            return true;
        }
        // An address in brackets may hold colons.
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        if let Some(inside) = name.strip_prefix('[') {
            return inside.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_loopback = name == "localhost" || name.ends_with(".localhost");
        is_loopback || name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()) || self.names.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn check(hosts: &Hosts, uri: &str, host: &[&str]) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        for host in host {
            headers.append(header::HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        hosts.check(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn addresses_localhost_and_the_names_that_are_configured_are_answered() {
        let hosts = Hosts::new(&["node.example.org".to_owned()], false);
        for right in [
            "127.0.0.1:5001",
            "192.0.2.7",
            "[::1]:5001",
            "[2001:db8::1]",
            "localhost:5001",
            "LOCALHOST",
            "a.localhost:1",
            "node.example.org",
            "Node.Example.Org.:443",
        ] {
            assert_eq!(check(&hosts, "/", &[right]), Ok(()), "{right}");
        }
        assert_eq!(check(&hosts, "/", &[]), Ok(()), "no browser leaves it out");
    }

    #[test]
    fn another_host_is_refused_with_what_to_set_and_so_are_two() {
        let hosts = Hosts::new(&["node.example.org".to_owned()], false);
        for wrong in [
            "evil.example:5001",
            "example.org",
            "x.node.example.org",
            "node.example.org.evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:5001@evil.example",
            "evil.example:127.0.0.1",
            "[::1].evil.example",
            "::1",
            "*",
            "",
            "ü",
        ] {
            let failure = check(&hosts, "/", &[wrong]).unwrap_err();
            assert!(failure.status == 421 && failure.error.contains("[http] names"), "{wrong}: {failure:?}");
        }
        assert_eq!(check(&hosts, "http://evil.example/v1/status", &["127.0.0.1"]).unwrap_err().status, 421);
        assert_eq!(check(&hosts, "/", &["127.0.0.1", "evil.example"]).unwrap_err().status, 400);
    }

    #[test]
    fn any_name_is_right_where_the_operator_says_so_and_behind_a_certificate() {
        for hosts in [Hosts::new(&["*".to_owned()], false), Hosts::new(&[], true)] {
            assert_eq!(check(&hosts, "/", &["evil.example"]), Ok(()));
        }
        assert!(check(&Hosts::new(&[], false), "/", &["evil.example"]).is_err());
    }

    proptest! {
        #[test]
        fn no_name_of_somebody_else_is_answered(name in "[a-z0-9\\-]{1,9}(\\.[a-z0-9\\-]{1,9}){0,3}\\.(example|org)(:[0-9]{0,5})?") {
            prop_assert!(check(&Hosts::new(&["node.test".to_owned()], false), "/", &[&name]).is_err());
        }
    }
}
