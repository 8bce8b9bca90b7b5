//! Where connections come from: a TCP port, perhaps with TLS, or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::tls::Tls;

/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 8192;

/// What the system holds for a client that does not take it, about; it doubles the number. The system's own choice goes
/// up to 4 MiB, which ten thousand clients that stall would turn into 40 GiB that no memory of ours shows.
const SEND_BUFFER_BYTES: u32 = 128 << 10;

/// An open port or socket.
pub struct Listener {
    source: Source,
    tls: Option<Tls>,
}

enum Source {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(unix::Socket),
}

/// A connection before its first byte.
pub(crate) enum Accepted {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self { source: Source::Tcp(listener), tls: None }
    }
}

/// Listens with room for a burst of clients.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the old connections' time-outs.
    socket.set_reuseaddr(true)?;
    // Connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Listener {
    /// Listens on a Unix socket. One that a program left behind is replaced, one in use is not.
    #[cfg(unix)]
    pub fn unix(path: &std::path::Path) -> io::Result<Self> {
        Ok(Self { source: Source::Unix(unix::Socket::bind(path)?), tls: None })
    }

    /// Every connection begins with a TLS handshake.
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The next connection; errors such as too many open files pass.
    pub(crate) async fn accept(&self) -> Accepted {
        loop {
            match self.accept_one().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    report(&error);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn accept_one(&self) -> io::Result<Accepted> {
        match &self.source {
            Source::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Events are small and must leave at once. Failing, they would only leave later.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream))
            }
            #[cfg(unix)]
            Source::Unix(socket) => socket.accept().await.map(Accepted::Unix),
        }
    }
}

fn report(error: &io::Error) {
    let of_the_peer = matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !of_the_peer {
        tracing::warn!(%error, "cannot accept connections");
    }
}

#[cfg(unix)]
mod unix {
    use std::fs;
    use std::io;
    use std::os::unix::fs::FileTypeExt;
    use std::path::{Path, PathBuf};

    use tokio::net::{UnixListener, UnixStream};

    /// A Unix socket whose file goes when it is closed.
    pub struct Socket {
        listener: UnixListener,
        path: PathBuf,
    }

    impl Socket {
        pub fn bind(path: &Path) -> io::Result<Self> {
            let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
            if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
                fs::remove_file(path)?;
            }
            Ok(Self { listener: UnixListener::bind(path)?, path: path.to_path_buf() })
        }

        pub async fn accept(&self) -> io::Result<UnixStream> {
            Ok(self.listener.accept().await?.0)
        }
    }

    impl Drop for Socket {
        fn drop(&mut self) {
            // Left behind, it would be replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}
