//! The listeners: HTTP/1.1 in clear or over TLS, on loopback, with connections that can be reset on purpose.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use super::exchange::Request;
use super::pipeline::{self, Outcome, Reply};
use crate::instance::Instance;

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection reset on purpose")]
struct Reset;

/// A body sent whole, in pieces, or broken off.
pub(crate) struct Outgoing {
    rest: Bytes,
    piece: usize,
    interval: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Stop with an error once this many bytes are out.
    stop_after: Option<usize>,
}

impl Outgoing {
    /// The body of a reply.
    pub(crate) fn of(reply: &Reply) -> Self {
        let (piece, interval) = reply.drip.unwrap_or((usize::MAX, Duration::ZERO));
        Self {
            rest: reply.body.clone(),
            piece: piece.max(1),
            interval,
            sleep: None,
            stop_after: reply.truncate,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(sleep) = &mut self.sleep {
            std::task::ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
        let most = self.stop_after.unwrap_or(usize::MAX).min(self.piece).min(self.rest.len());
        if most == 0 {
            return Poll::Ready(match self.stop_after {
                Some(_) => Some(Err(Box::new(Reset))),
                None => None,
            });
        }
        let piece = self.rest.split_to(most);
        self.stop_after = self.stop_after.map(|n| n - most);
        if !self.interval.is_zero() && !self.rest.is_empty() {
            self.sleep = Some(Box::pin(tokio::time::sleep(self.interval)));
        } else if self.stop_after == Some(0) {
            // Let the part that still comes reach the client before the connection breaks.
            self.sleep = Some(Box::pin(tokio::time::sleep(Duration::from_millis(20))));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.stop_after.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// Accepts connections until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    instance: Arc<Instance>,
    tls: Option<TlsAcceptor>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        instance.log.connected();
        let _ = stream.set_nodelay(true);
        let (instance, tls, mut stop) = (Arc::clone(&instance), tls.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = connection(stream, instance, tls) => {}
                _ = stop.changed() => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, instance: Arc<Instance>, tls: Option<TlsAcceptor>) {
    // A second handle on the socket, to reset it whatever layer is on top.
    let Ok(stream) = stream.into_std() else { return };
    let Ok(control) = stream.try_clone() else { return };
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let reset = Arc::new(AtomicBool::new(false));
    match tls {
        None => talk(stream, instance, &reset).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                talk(stream, instance, &reset).await;
            }
        }
    }
    if reset.load(Ordering::SeqCst) {
        let _ = socket2::SockRef::from(&control).set_linger(Some(Duration::ZERO));
    }
}

async fn talk<S>(stream: S, instance: Arc<Instance>, reset: &Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (instance, reset) = (Arc::clone(&instance), Arc::clone(reset));
        async move { answer(instance, request, &reset).await }
    });
    let result = hyper::server::conn::http1::Builder::new()
        .keep_alive(true)
        .title_case_headers(true)
        .max_buf_size(1 << 20)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if result.is_err_and(|e| !e.is_incomplete_message()) {
        tracing::debug!("a connection ended early");
    }
}

async fn answer(
    instance: Arc<Instance>,
    request: hyper::Request<Incoming>,
    reset: &AtomicBool,
) -> Result<hyper::Response<Outgoing>, Reset> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Err(Reset),
    };
    let request = Request::new(parts.method.as_str(), &target, parts.headers, body);
    let outcome = match crate::control::handle(&instance, &request).await {
        Some(response) => Outcome::Reply(Reply::plain(response)),
        // A real instance does not notice that a caller gave up: what was asked is carried out all the same.
        None => tokio::spawn(async move { pipeline::handle(&instance, request).await })
            .await
            .map_err(|_| Reset)?,
    };
    match outcome {
        Outcome::Reply(reply) => {
            if reply.truncate.is_some() {
                reset.store(true, Ordering::SeqCst);
            }
            Ok(reply.with_body(Outgoing::of(&reply)))
        }
        Outcome::Reset => {
            reset.store(true, Ordering::SeqCst);
            Err(Reset)
        }
        Outcome::Hang => {
            std::future::pending::<Infallible>().await;
            Err(Reset)
        }
    }
}
