//! Where to listen: loopback unless told otherwise, and no open port without a key.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use firebrick_server::{Listener, Tls};
use tokio::net::TcpListener;

use crate::args::ServeArgs;
use crate::failure::Failure;

/// A host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address.
    pub host: String,
    /// 0 takes a free one.
    pub port: u16,
    /// The flag that sets the port, for messages.
    pub flag: &'static str,
}

impl Address {
    async fn listen(&self) -> Result<TcpListener, Failure> {
        let Self { host, port, flag } = self;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.open(host).await.map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => format!("another program has this port; choose another one with {flag}"),
                io::ErrorKind::PermissionDenied => format!("ports below 1024 are for root; use {flag} 8000"),
                _ => "check --host".to_owned(),
            };
            Failure::Run(format!("cannot listen on {host}:{port}: {error}; {advice}"))
        })
    }

    /// Of several addresses of a name, the first that can be had.
    async fn open(&self, host: &str) -> io::Result<TcpListener> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in tokio::net::lookup_host((host, self.port)).await? {
            match firebrick_server::listen(address) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Where the server is to be found.
pub enum Place {
    /// A port.
    Port(Address),
    /// A Unix socket.
    Socket(PathBuf),
}

/// An open place.
pub struct Opened {
    /// Where connections come from.
    pub listener: Listener,
    /// How a client on this machine reaches it; for a Unix socket what curl needs.
    pub url: String,
}

impl Place {
    /// The API's place, from the flags and `HOST`.
    pub fn choose(args: &ServeArgs, has_key: bool) -> Result<Self, Failure> {
        if let Some(path) = &args.operations.uds {
            return Ok(Self::Socket(path.clone()));
        }
        let from_environment = || std::env::var("HOST").ok().filter(|host| !host.is_empty());
        let source = if args.host.is_some() { "--host" } else { "HOST" };
        let given = args.host.clone().or_else(from_environment);
        let host = given.unwrap_or_else(|| if has_key { "0.0.0.0" } else { "127.0.0.1" }.to_owned());
        if !is_loopback(&host) && !has_key && !args.operations.allow_unauthenticated {
            return Err(Failure::Usage(format!(
                "{source} {host} lets other machines in, but there is no API key; add --api-key SECRET, or \
                 --allow-unauthenticated where something else keeps strangers out"
            )));
        }
        Ok(Self::Port(Address { host, port: args.port, flag: "--port" }))
    }

    /// Opens it.
    pub async fn open(&self, tls: Option<Tls>) -> Result<Opened, Failure> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (listener, url) = match self {
            Self::Port(address) => {
                let listener = address.listen().await?;
                let url = url(&listener, scheme);
                (Listener::from(listener), url)
            }
            Self::Socket(path) => (socket(path)?, format!("--unix-socket {} {scheme}://localhost", path.display())),
        };
        let listener = match tls {
            Some(tls) => listener.with_tls(tls),
            None => listener,
        };
        Ok(Opened { listener, url })
    }
}

#[cfg(unix)]
fn socket(path: &Path) -> Result<Listener, Failure> {
    Listener::unix(path).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "another program listens there, or the file is not a socket",
            _ => "check --uds",
        };
        Failure::Run(format!("cannot listen on {}: {error}; {advice}", path.display()))
    })
}

#[cfg(not(unix))]
fn socket(_: &Path) -> Result<Listener, Failure> {
    Err(Failure::Usage("--uds needs a system with Unix sockets; use --port".into()))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How a client on this machine reaches a listener.
fn url(listener: &TcpListener, scheme: &str) -> String {
    match listener.local_addr() {
        Ok(SocketAddr::V6(address)) if address.ip().is_unspecified() => format!("{scheme}://[::]:{}", address.port()),
        Ok(address) => format!("{scheme}://{address}"),
        Err(_) => "an unknown address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
