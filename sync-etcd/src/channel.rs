//! The connection under each client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_client::{Channel, Error};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::Endpoint;
use tower::ServiceExt;

use crate::tls;

/// When the system itself asks whether the other side is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// How connections are made.
pub(crate) struct Transport {
    pub(crate) ping_each: Duration,
    pub(crate) ping_within: Duration,
    pub(crate) connect_within: Duration,
    pub(crate) tls: tls::Settings,
}

impl Transport {
    /// A channel to this URL, which connects with its first request.
    pub(crate) fn channel(&self, url: &str) -> Result<Channel, Error> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .http2_keep_alive_interval(self.ping_each)
            .keep_alive_timeout(self.ping_within)
            // Servers count pings as abuse where nothing is under way.
            .keep_alive_while_idle(false)
            .connect_timeout(self.connect_within);
        let endpoint = tls::secure(endpoint, &self.tls)?;
        let mut connector = HttpConnector::new();
        // TLS comes on top of it.
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(TCP_KEEPALIVE));
        Ok(Channel::Tonic(endpoint.connect_with_connector_lazy(connector.map_response(Gathered))))
    }
}

/// A stream that takes one buffer at a time: the requests of several tasks then leave together. For a
/// stream that takes several buffers at once, `h2` makes a system call for each request of 256 bytes
/// or more.
struct Gathered<T>(T);

impl<T: Read + Unpin> Read for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl<T: Write + Unpin> Write for Gathered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
