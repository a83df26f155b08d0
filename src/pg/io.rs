//! Network I/O beside a Postgres process.
//!
//! One runtime per process, started at first use (never in the postmaster, which forks), owns all sockets.
//! The main thread hands it a future and waits on its latch and a [`Bell`]; every signal stays with the main
//! thread, so a cancel, a `statement_timeout` or a shutdown ends the wait at once and drops the future.

use std::future::Future;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pgrx::{check_for_interrupts, pg_sys};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Rings from any thread, is heard by [`wait`] on the main thread.
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A new bell; fails if the process has no file descriptor left.
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: eventfd takes no pointers; the descriptor it returns is ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nobody else closes it.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes the main thread. Callable from every thread.
    pub fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes from a live buffer; a full counter (EAGAIN) means that it rings already.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Silences the bell.
    fn mute(&self) {
        let mut count = [0u8; 8];
        // SAFETY: reads at most eight bytes into a live buffer; nothing to read (EAGAIN) is fine.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// Whether what is written to files has to be on disk before anything else happens (setting `fsync`).
pub fn syncs_files() -> bool {
    // SAFETY: reads a setting.
    unsafe { pg_sys::enableFsync }
}

/// Postgres's `PGINVALID_SOCKET`.
const NO_SOCKET: i32 = -1;

/// Waits until the latch is set, the bell rings, or the timeout is over, then handles interrupts: a cancelled
/// statement or a terminated process leaves through here as an ERROR. A dead postmaster ends the process.
/// Gives back whether the latch was set.
pub fn wait(bell: Option<&Bell>, timeout: Option<Duration>) -> bool {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if bell.is_some() {
        events |= pg_sys::WL_SOCKET_READABLE;
    }
    let mut milliseconds = -1;
    if let Some(timeout) = timeout {
        events |= pg_sys::WL_TIMEOUT;
        milliseconds = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
    }
    // SAFETY: MyLatch is this process's own latch, valid as long as the process; the descriptor is open.
    let happened = unsafe {
        let happened = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            bell.map_or(NO_SOCKET, |bell| bell.0.as_raw_fd()),
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        if happened & pg_sys::WL_LATCH_SET as i32 != 0 {
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        happened
    };
    if let Some(bell) = bell.filter(|_| happened & pg_sys::WL_SOCKET_READABLE as i32 != 0) {
        bell.mute();
    }
    check_for_interrupts!();
    happened & pg_sys::WL_LATCH_SET as i32 != 0
}

/// The process's runtime, started on first use with every signal blocked in its threads.
fn runtime(threads: usize) -> std::io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let blocked = SignalsBlocked::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(4)
        .thread_name("servicenow_fdw io")
        .enable_all()
        .build()?;
    drop(blocked);
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// Blocks all signals of this thread, and of the threads it starts meanwhile, until dropped.
struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    fn new() -> Self {
        // SAFETY: sigset_t is plain data; both pointers are to live locals.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Self(before)
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: restores the mask that `new` saved.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Why [`block_on`] has no result.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// Threads or file descriptors could not be had.
    #[error("could not start the network thread: {0}")]
    Start(#[from] std::io::Error),
    /// The future panicked; a bug of ours, kept from taking the process down.
    #[error("the network task failed unexpectedly")]
    Panicked,
}

/// Runs a future on the process's runtime and waits for it, ready to be interrupted: then the future is
/// dropped and the interrupt's ERROR is raised here.
pub fn block_on<F>(future: F) -> Result<F::Output, IoError>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    block_on_telling(future, || None)
}

/// As [`block_on`], calling `tell` meanwhile, which says when it is to be called again at the latest, if at all.
pub fn block_on_telling<F>(
    future: F,
    mut tell: impl FnMut() -> Option<Duration>,
) -> Result<F::Output, IoError>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let runtime = runtime(1)?;
    let bell = Bell::new()?;
    let (answer, mut question) = oneshot::channel();
    let ringer = RingOnDrop(bell.clone());
    let _task = AbortOnDrop(runtime.spawn(async move {
        let _ringer = ringer; // rings after the answer is there, and when the future panics
        let _receiver_gone = answer.send(future.await);
    }));
    loop {
        match question.try_recv() {
            Ok(output) => return Ok(output),
            Err(oneshot::error::TryRecvError::Closed) => return Err(IoError::Panicked),
            // Others wake this process too, and no wake puts off what is due.
            Err(oneshot::error::TryRecvError::Empty) => {
                wait(Some(&bell), tell());
            }
        }
    }
}

/// Starts a future on the process's runtime; it ends when the handle is dropped.
pub fn spawn<F>(future: F, threads: usize) -> std::io::Result<AbortOnDrop>
where
    F: Future<Output = ()> + Send + 'static,
{
    Ok(AbortOnDrop(runtime(threads)?.spawn(future)))
}

/// A task that ends with its handle.
#[derive(Debug)]
pub struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    /// Whether the task has come to its end.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct RingOnDrop(Bell);

impl Drop for RingOnDrop {
    fn drop(&mut self) {
        self.0.ring();
    }
}
