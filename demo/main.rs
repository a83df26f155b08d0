//! The README's story: a throw-away Postgres, a simulated ServiceNow with 24,918 real incidents, and psql.
//!
//! On a terminal it ends in an interactive psql; in a pipe it ends by itself. Everything is gone afterwards.
#![allow(clippy::print_stdout)]

use std::cell::RefCell;
use std::io::{BufRead, BufReader, IsTerminal, PipeReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use servicenow_sim::{Dataset, Simulator};
use world::cluster::Cluster;
use world::{Session, connect};

/// What each call to the instance costs; a near one in real life takes several times as long.
const LATENCY: Duration = Duration::from_millis(20);
/// Changes per second of the replayed event log, and how many.
const REPLAY: (f64, usize) = (40.0, 200);

/// The demo's props.
struct Stage {
    cluster: Cluster,
    sim: Simulator,
    /// A session that watches, while psql acts.
    watcher: Session,
    psql: RefCell<Psql>,
}

#[tokio::main]
async fn main() -> ExitCode {
    say("A throw-away Postgres cluster, as it comes: nothing is preloaded.");
    let cluster = Cluster::start("");
    println!("   {}", cluster.program("postgres", "postgres").arg("--version").text());
    say("A simulated ServiceNow with the incidents of a real company (UCI, 24,918 incidents, CC BY 4.0).");
    let sim = Simulator::builder().dataset(Dataset::EventLog).latency(LATENCY).start().await;
    let sim = match sim {
        Ok(sim) => sim,
        Err(e) => {
            eprintln!("could not start the simulator: {e}");
            return ExitCode::FAILURE;
        }
    };
    println!("   {} ({} ms a call)", sim.url(), LATENCY.as_millis());
    let watcher = connect(&cluster, "postgres").await;
    let psql = match Psql::start(&cluster) {
        Ok(psql) => RefCell::new(psql),
        Err(e) => {
            eprintln!("could not start psql: {e}");
            return ExitCode::FAILURE;
        }
    };
    let stage = Stage { cluster, sim, watcher, psql };
    stage.set_up().await;
    stage.read();
    stage.write();
    stage.follow().await;
    stage.finish()
}

impl Stage {
    async fn set_up(&self) {
        say("Install the extension in the running cluster, and say where the instance is.");
        self.psql("CREATE EXTENSION servicenow_fdw");
        self.psql(&format!(
            "CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw\n    OPTIONS (instance_url '{}', poll_interval '1s')",
            self.sim.url()
        ));
        self.psql(
            "CREATE USER MAPPING FOR PUBLIC SERVER acme\n    OPTIONS (auth 'client_credentials', client_id 'fdw-client', client_secret 'fdw-client-secret')",
        );
        self.psql(
            "IMPORT FOREIGN SCHEMA servicenow\n    LIMIT TO (incident, problem, change_request, service_catalog, \"user\")\n    FROM SERVER acme INTO public",
        );
        say("The caches fill in the background.");
        self.show_progress().await;
        self.psql("SELECT servicenow.wait_for_sync(foreign_table) FROM servicenow.sync_status");
        self.psql("\\det+");
        self.psql(
            "SELECT foreign_table, phase, rows, rows_per_second, lag FROM servicenow.sync_status ORDER BY 1",
        );
    }

    /// A bar for the incidents, from `servicenow.sync_status`.
    async fn show_progress(&self) {
        let on_terminal = std::io::stdout().is_terminal();
        let target = if on_terminal { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = "   incident {wide_bar} {percent:>3} %  {pos}/{len} rows  {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        let mut said = Instant::now();
        loop {
            let row = self
                .watcher
                .rows(
                    "SELECT phase, rows, coalesce(rows_total, 0), coalesce(rows_per_second, 0)::bigint,
                            coalesce(extract(epoch FROM eta)::float8, 0), coalesce(percent, 0)::float8
                     FROM servicenow.sync_status WHERE foreign_table = 'incident'::regclass",
                )
                .await;
            let Some(row) = row.first() else { return };
            let (phase, rows, total): (&str, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let (rate, eta, percent): (i64, f64, f64) = (row.get(3), row.get(4), row.get(5));
            bar.set_length(total.unsigned_abs());
            bar.set_position(rows.unsigned_abs());
            bar.set_message(format!("{rate} rows/s  ETA {eta:.1} s"));
            let done = matches!(phase, "catchup" | "synced");
            if !on_terminal && (done || said.elapsed() > Duration::from_millis(500)) {
                said = Instant::now();
                println!("   incident {percent:>5.1} %  {rows}/{total} rows  {rate} rows/s  ETA {eta:.1} s");
            }
            if done {
                bar.finish();
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn read(&self) {
        say("Reads are local: labels as people see them, stored values beside them.");
        self.psql(
            "SELECT number, state, state_value, assigned_to, assigned_to_value\nFROM incident WHERE number = 'INC0012345' \\gx",
        );
        self.psql(
            "SELECT u.name, count(*) AS open, min(i.opened_at) AS oldest\nFROM incident i JOIN \"user\" u ON u.sys_id = i.assigned_to_value\nWHERE i.active GROUP BY u.name ORDER BY open DESC LIMIT 5",
        );
        say("The plan is the one a local table has; the network is not in it.");
        self.psql(
            "EXPLAIN (ANALYZE, COSTS OFF)\nSELECT u.name, count(*) FROM incident i JOIN \"user\" u ON u.sys_id = i.assigned_to_value\nWHERE i.active GROUP BY u.name",
        );
        self.psql("EXPLAIN SELECT * FROM incident WHERE sys_id = '46d44a40c0a8016400b98a0681a55e77'");
    }

    fn write(&self) {
        say("Writes happen in both places or not at all.");
        self.psql(
            "UPDATE incident SET state = 'On Hold', work_notes = 'Waiting for the vendor.'\nWHERE number = 'INC0012345' RETURNING state, state_value, incident_state, sys_updated_on",
        );
        self.show_record("number,state,incident_state,sys_updated_by,sys_updated_on,sys_mod_count");
        say("What ServiceNow would drop silently is an error here, and nothing has changed on either side.");
        self.psql("UPDATE incident SET state = 'invalid-state' WHERE number = 'INC0012345'");
        self.psql("SELECT state FROM incident WHERE number = 'INC0012345'");
        self.show_record("number,state,sys_mod_count");
        say("What ServiceNow refuses is refused in its own words.");
        self.psql("UPDATE incident SET state = 'Resolved' WHERE number = 'INC0012345'");
        say("The number, the defaults and the derived priority come back with RETURNING.");
        self.psql(
            "INSERT INTO incident (short_description, impact, urgency, caller_id)\nVALUES ('Printer on fire', '1 - High', '1 - High', 'Gurney Halleck')\nRETURNING number, state, priority, opened_at",
        );
        self.psql("DELETE FROM incident WHERE short_description = 'Printer on fire' RETURNING number");
    }

    /// Asks the instance itself, past Postgres.
    fn show_record(&self, fields: &str) {
        let url = format!(
            "{}/api/now/table/incident?sysparm_query=number=INC0012345&sysparm_fields={fields}&sysparm_exclude_reference_link=true",
            self.sim.url()
        );
        println!("\n$ curl -s -u admin:admin '{url}'");
        println!("{}", Command::new("curl").args(["-s", "-u", "admin:admin", &url]).text());
    }

    async fn follow(&self) {
        say("People go on working in ServiceNow: the event log is replayed live, and the changes arrive.");
        let latest = "SELECT number, state, assigned_to, sys_updated_by, sys_updated_on\nFROM incident ORDER BY sys_updated_on DESC, number LIMIT 4";
        let changed = "SELECT count(*) FROM incident WHERE sys_updated_on > now() - interval '1 minute'";
        let before: i64 = self.watcher.value(changed).await;
        self.psql(latest);
        self.sim.replay(REPLAY.0, REPLAY.1);
        let began = Instant::now();
        while self.sim.replay_status().running && began.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now: i64 = self.watcher.value(changed).await;
            println!("   {:>2} s: {} incidents have changed here", began.elapsed().as_secs(), now - before);
        }
        self.psql("SELECT servicenow.sync('incident')");
        self.psql(latest);
        self.psql(
            "SELECT foreign_table, phase, rows, lag, last_error FROM servicenow.sync_status ORDER BY 1",
        );
    }

    fn finish(&self) -> ExitCode {
        if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
            say("That was it; cluster and simulator are gone now. On a terminal, psql would open here.");
            return ExitCode::SUCCESS;
        }
        say("Your turn. Quit with \\q; cluster and simulator are gone then.");
        let mut psql = self.cluster.program("psql", "postgres");
        match psql.args(["-X", "-v", "PROMPT1=acme=# "]).status() {
            Ok(_) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("could not start psql: {e}");
                ExitCode::FAILURE
            }
        }
    }

    /// Shows a statement and what psql answers.
    fn psql(&self, statement: &str) {
        println!("\nacme=# {}{}", statement.replace('\n', "\nacme-# "), terminator(statement));
        self.psql.borrow_mut().answer(statement);
    }
}

/// One psql for the whole story, as a user would have it.
struct Psql {
    child: Child,
    output: BufReader<PipeReader>,
}

/// What psql is told to print when a statement is done.
const DONE: &str = "-- done --";

impl Psql {
    fn start(cluster: &Cluster) -> std::io::Result<Psql> {
        let (output, errors_too) = std::io::pipe()?;
        let child = cluster
            .program("psql", "postgres")
            .args(["-X", "-P", "pager=off"])
            .stdin(Stdio::piped())
            .stdout(errors_too.try_clone()?)
            .stderr(errors_too)
            .spawn()?;
        Ok(Psql { child, output: BufReader::new(output) })
    }

    /// Has a statement run and prints what comes.
    fn answer(&mut self, statement: &str) {
        let input = self.child.stdin.as_mut().expect("it was asked for");
        let sent = writeln!(input, "{statement}{}\n\\echo '{DONE}'", terminator(statement));
        let mut line = String::new();
        while sent.is_ok() && self.output.read_line(&mut line).is_ok_and(|read| read > 0) {
            if line.trim_end() == DONE {
                return;
            }
            if !line.trim().is_empty() {
                print!("{}", without_place(&line));
            }
            line.clear();
        }
        println!("psql has ended");
    }
}

/// An error without psql's note of where in its input it came from.
fn without_place(line: &str) -> &str {
    match line.strip_prefix("psql:<stdin>:").and_then(|rest| rest.split_once(": ")) {
        Some((_, text)) => text,
        None => line,
    }
}

fn terminator(statement: &str) -> &'static str {
    if statement.contains('\\') { "" } else { ";" }
}

fn say(text: &str) {
    println!("\n-- {text}");
}

/// A program's output as text.
trait Text {
    fn text(&mut self) -> String;
}

impl Text for Command {
    fn text(&mut self) -> String {
        match self.output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            Err(e) => format!("could not start: {e}"),
        }
    }
}
