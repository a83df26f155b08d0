//! The program: a ServiceNow instance on loopback.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use servicenow_sim::{Concurrency, Dataset, Simulator};

/// A ServiceNow instance to test against, on loopback.
#[derive(Debug, Parser)]
#[command(
    name = "servicenow-sim",
    after_help = "Logins: admin/admin, fdw.integration/fdw-secret (itil and metadata), itil.user/itil-secret, ess.user/ess-secret,\nreadonly.user/readonly-secret, pacific.user/pacific-secret, german.user/german-secret.\nOAuth client: fdw-client/fdw-client-secret (application user fdw.integration). API key: fdw-api-key.\nThe test bench is under /sim/: health, requests, fault, edit, record, truth, replay, clock, set."
)]
struct Arguments {
    /// Address to listen on; only loopback is accepted.
    #[arg(long, default_value = "127.0.0.1:8089")]
    listen: SocketAddr,
    /// small, event-log or incidents=N.
    #[arg(long, default_value = "event-log", value_parser = parse_dataset)]
    dataset: Dataset,
    /// Milliseconds added to every request.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Milliseconds added at random on top, at most.
    #[arg(long, default_value_t = 0)]
    jitter_ms: u64,
    /// Seed of everything that looks random.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Start every incident at its first event.
    #[arg(long)]
    first_events: bool,
    /// Give incidents the event log's columns u_symptom and u_priority_confirmation.
    #[arg(long)]
    extra_columns: bool,
    /// Replay events of the log at this rate per second from the start.
    #[arg(long)]
    replay: Option<f64>,
    /// Also listen for https on this loopback address.
    #[arg(long)]
    tls: Option<SocketAddr>,
    /// Write the throw-away authority's certificate to this file.
    #[arg(long)]
    ca_file: Option<std::path::PathBuf>,
    /// Never compress answers.
    #[arg(long)]
    no_gzip: bool,
    /// Requests handled at a time (with a queue of 50, then 429).
    #[arg(long)]
    concurrency: Option<usize>,
}

fn parse_dataset(text: &str) -> Result<Dataset, String> {
    match text.split_once('=') {
        None if text == "small" => Ok(Dataset::Small),
        None if text == "event-log" => Ok(Dataset::EventLog),
        Some(("incidents", n)) => {
            n.parse().map(Dataset::Incidents).map_err(|_| format!("{n} is not a number"))
        }
        _ => Err("expected small, event-log or incidents=N".to_owned()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "servicenow-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut builder = Simulator::builder()
        .dataset(arguments.dataset)
        .seed(arguments.seed)
        .first_events(arguments.first_events)
        .extra_columns(arguments.extra_columns)
        .listen(arguments.listen)
        .latency(Duration::from_millis(arguments.latency_ms))
        .switches(|s| {
            s.jitter_ms = arguments.jitter_ms;
            s.gzip = !arguments.no_gzip;
            s.concurrency = arguments.concurrency.map(|limit| Concurrency { limit, queue: 50 });
        });
    if let Some(address) = arguments.tls {
        builder = builder.tls(true).tls_listen(address);
    }
    let simulator = builder.start().await?;
    if let (Some(path), Some(pem)) = (&arguments.ca_file, simulator.ca_pem()) {
        std::fs::write(path, pem)?;
    }
    if let Some(rate) = arguments.replay {
        simulator.replay(rate, usize::MAX);
    }
    writeln!(std::io::stdout(), "servicenow-sim listening on {}", simulator.url())?;
    std::io::stdout().flush()?;
    wait_for_signal().await?;
    simulator.stop().await;
    Ok(())
}

async fn wait_for_signal() -> std::io::Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = term.recv() => Ok(()),
    }
}
