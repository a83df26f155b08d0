//! The simulator as tests and the program use it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::clock::Clock;
use crate::dataset::{self, Dataset, Plan};
use crate::edit::Edit;
use crate::fault::{Fault, FaultId};
use crate::http::wire::Wire;
use crate::http::{server, tls};
use crate::instance::Instance;
use crate::replay::{self, ReplayStatus};
use crate::request_log::{Counter, LoggedRequest};
use crate::script::effect::{self, PostCount};
use crate::switch::Switches;
use crate::truth::{self, Record};

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address could not be bound.
    #[error("could not listen")]
    Listen(#[from] std::io::Error),
    /// The https listener could not be set up.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// Listening elsewhere than on loopback is refused.
    #[error("address {0} is not a loopback address")]
    NotLoopback(SocketAddr),
}

/// What a simulator starts with.
#[derive(Debug, Clone)]
pub struct Builder {
    plan: Plan,
    seed: u64,
    listen: SocketAddr,
    tls: bool,
    certificate: tls::Certificate,
    tls_listen: SocketAddr,
    switches: Switches,
}

impl Default for Builder {
    fn default() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            plan: Plan::default(),
            seed: 42,
            listen: any,
            tls: false,
            certificate: tls::Certificate::default(),
            tls_listen: any,
            switches: Switches::default(),
        }
    }
}

impl Builder {
    /// How much data there is; [`Dataset::Small`] unless set.
    pub fn dataset(mut self, dataset: Dataset) -> Self {
        self.plan.dataset = dataset;
        self
    }

    /// The seed of everything that looks random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts every incident of the event log at its first event.
    pub fn first_events(mut self, first: bool) -> Self {
        self.plan.first_events = first;
        self
    }

    /// Gives incidents the event log's columns `u_symptom` and `u_priority_confirmation`.
    pub fn extra_columns(mut self, extra: bool) -> Self {
        self.plan.extra_columns = extra;
        self
    }

    /// The loopback address to listen on; any free port unless set.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Adds an https listener with a throw-away authority.
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Adds an https listener that shows such a certificate.
    pub fn certificate(self, certificate: tls::Certificate) -> Self {
        Self { tls: true, certificate, ..self }
    }

    /// The loopback address of the https listener; any free port unless set.
    pub fn tls_listen(mut self, address: SocketAddr) -> Self {
        self.tls_listen = address;
        self
    }

    /// Time added to every request.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.switches.latency_ms = latency.as_millis() as u64;
        self
    }

    /// Changes the switches that the simulator starts with.
    pub fn switches(mut self, change: impl FnOnce(&mut Switches)) -> Self {
        change(&mut self.switches);
        self
    }

    /// Builds the data and starts listening.
    pub async fn start(self) -> Result<Simulator, StartError> {
        for address in [self.listen, self.tls_listen] {
            if !address.ip().is_loopback() {
                return Err(StartError::NotLoopback(address));
            }
        }
        // For what scripts post, and for the tests' own clients, which come to be after this.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let plan = self.plan;
        let built = tokio::task::spawn_blocking(move || dataset::build(plan))
            .await
            .expect("building data does not panic");
        let instance = Arc::new(Instance::new(built.db, self.seed, built.secrets, built.rules, built.replay));
        let switches = self.switches;
        instance.change_switches(|s| *s = switches);
        let listener = TcpListener::bind(self.listen).await?;
        let url = format!("http://{}", listener.local_addr()?);
        instance.set_base_url(url.clone());
        let (stop, stopped) = watch::channel(false);
        let mut tasks =
            vec![tokio::spawn(server::serve(listener, Arc::clone(&instance), None, stopped.clone()))];
        tasks.push(tokio::spawn(effect::serve(Arc::clone(&instance), stopped.clone())));
        let (mut https_url, mut ca_pem) = (None, None);
        if self.tls {
            let authority = tls::authority(self.certificate)?;
            let listener = TcpListener::bind(self.tls_listen).await?;
            https_url = Some(format!("https://localhost:{}", listener.local_addr()?.port()));
            ca_pem = Some(authority.ca_pem);
            let acceptor = TlsAcceptor::from(authority.config);
            tasks.push(tokio::spawn(server::serve(listener, Arc::clone(&instance), Some(acceptor), stopped)));
        }
        Ok(Simulator { instance, url, https_url, ca_pem, stop, tasks, runtime: None })
    }

    /// Starts on a runtime of its own, for tests that are not async; [`Simulator::stop_blocking`] ends it.
    pub fn start_blocking(self) -> Result<Simulator, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut simulator = runtime.block_on(self.start())?;
        simulator.runtime = Some(runtime);
        Ok(simulator)
    }
}

/// A running instance.
///
/// Everything but starting and stopping is synchronous and may be called from any thread, async or not.
#[derive(Debug)]
pub struct Simulator {
    instance: Arc<Instance>,
    url: String,
    https_url: Option<String>,
    ca_pem: Option<String>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    runtime: Option<Runtime>,
}

impl Simulator {
    /// A simulator to be configured.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `http://127.0.0.1:PORT`, which is also the host in all links.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A way to the instance without a network.
    pub fn wire(&self) -> Wire {
        Wire(Arc::clone(&self.instance))
    }

    /// `https://localhost:PORT` when there is an https listener.
    pub fn https_url(&self) -> Option<&str> {
        self.https_url.as_deref()
    }

    /// The certificate of the throw-away authority in PEM form.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Makes matching requests go wrong until the fault is used up or taken away.
    pub fn fault(&self, fault: Fault) -> FaultId {
        self.instance.faults.add(fault)
    }

    /// Takes a fault away; true when it was there.
    pub fn remove_fault(&self, id: FaultId) -> bool {
        self.instance.faults.remove(id)
    }

    /// How often a fault struck.
    pub fn fault_count(&self, id: FaultId) -> u64 {
        self.instance.faults.struck(id)
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.instance.faults.clear();
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.instance.log.requests()
    }

    /// The connections that were accepted so far.
    pub fn connections(&self) -> u64 {
        self.instance.log.connections()
    }

    /// Totals per method, endpoint and table.
    pub fn counters(&self) -> BTreeMap<String, Counter> {
        self.instance.log.counters()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.instance.log.clear();
    }

    /// Edits the instance from inside, without REST.
    pub fn edit(&self) -> Edit<'_> {
        Edit::new(&self.instance)
    }

    /// A record's stored values by column.
    pub fn record(&self, table: &str, sys_id: &str) -> Option<Record> {
        truth::record(&self.instance, table, sys_id)
    }

    /// All records of a table that a user may see, with the columns that the user may see; `None` for an unknown table
    /// or user. Rows of a child class carry the child's columns too.
    pub fn truth(&self, table: &str, user: &str) -> Option<Vec<Record>> {
        truth::all(&self.instance, table, user)
    }

    /// What scripts of Business Rules have logged as errors, or failed with.
    pub fn script_errors(&self) -> Vec<String> {
        self.instance.outbox.errors()
    }

    /// The requests that scripts have made so far.
    pub fn posts(&self) -> PostCount {
        self.instance.outbox.count()
    }

    /// The virtual clock.
    pub fn clock(&self) -> &Clock {
        &self.instance.clock
    }

    /// Changes switches.
    pub fn set(&self, change: impl FnOnce(&mut Switches)) {
        self.instance.change_switches(change);
    }

    /// The switches as they are.
    pub fn switches(&self) -> Switches {
        (*self.instance.switches()).clone()
    }

    /// Plays the next events of the log at once; how many there were.
    pub fn play(&self, count: usize) -> usize {
        replay::play(&self.instance, count)
    }

    /// Plays events of the log in the background; must be called within a tokio runtime.
    pub fn replay(&self, rate: f64, count: usize) {
        replay::start(&self.instance, rate, count);
    }

    /// Stops a running replay.
    pub fn stop_replay(&self) {
        replay::stop(&self.instance);
    }

    /// How far the replay is.
    pub fn replay_status(&self) -> ReplayStatus {
        self.instance.replay.status()
    }

    /// Stops listening and closes all connections.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        for task in std::mem::take(&mut self.tasks) {
            let _ = task.await;
        }
    }

    /// Stops a simulator that was started with [`Builder::start_blocking`].
    pub fn stop_blocking(mut self) {
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
