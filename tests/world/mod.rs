//! A world for a test: a database of its own on a throw-away cluster, and a ServiceNow of its own.

pub mod cluster;
pub mod death;
pub mod page;
pub mod random;
pub mod regress;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use servicenow_sim::{Dataset, LoggedRequest, Simulator};
use tokio::net::TcpSocket;
use tokio_postgres::types::{FromSql, ToSql};
use tokio_postgres::{Client, NoTls, Row, error::DbError};

use cluster::Cluster;

/// The user the worker logs in as, whose view of the instance the caches show.
pub const INTEGRATION: &str = "fdw.integration";
/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An address at which nobody listens, and the socket that keeps others from doing so while it lives.
#[must_use]
pub fn deaf_address() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    (socket.local_addr().expect("an address"), socket)
}

/// A test's world.
pub struct World {
    /// The instance.
    pub sim: Simulator,
    /// The cluster.
    pub cluster: &'static Cluster,
    /// The database's name.
    pub database: String,
    /// A session in it, as the superuser.
    pub db: Session,
}

/// A session.
pub struct Session {
    client: Client,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl World {
    /// A small instance, and a database with extension and server `acme` that logs in as the integration user.
    pub async fn new() -> World {
        World::with(Dataset::Small, "").await
    }

    /// As [`World::new`], with other data and more server options.
    pub async fn with(dataset: Dataset, options: &str) -> World {
        let world = World::bare(dataset).await;
        world.set_up(options).await;
        world
    }

    /// Makes the extension, and server `acme` for the integration user.
    pub async fn set_up(&self, options: &str) {
        self.db.run("CREATE EXTENSION servicenow_fdw").await;
        self.db
            .run(&format!(
                "CREATE SERVER acme FOREIGN DATA WRAPPER servicenow_fdw
                 OPTIONS (instance_url '{}', poll_interval '200ms' {options});
                 CREATE USER MAPPING FOR PUBLIC SERVER acme
                 OPTIONS (auth 'client_credentials', client_id 'fdw-client', client_secret 'fdw-client-secret')",
                self.sim.url()
            ))
            .await;
    }

    /// An instance and an empty database.
    pub async fn bare(dataset: Dataset) -> World {
        World::on(Cluster::shared(), dataset).await
    }

    /// As [`World::bare`], on a certain cluster.
    pub async fn on(cluster: &'static Cluster, dataset: Dataset) -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let sim = Simulator::builder().dataset(dataset).seed(42).start().await.expect("a simulator");
        let database = format!("world_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        connect(cluster, "postgres").await.run(&format!("CREATE DATABASE {database}")).await;
        let db = connect(cluster, &database).await;
        World { sim, cluster, database, db }
    }

    /// Another session.
    pub async fn session(&self) -> Session {
        connect(self.cluster, &self.database).await
    }

    /// The full name of one of this world's roles: roles belong to the whole cluster, which worlds share.
    pub fn role(&self, role: &str) -> String {
        format!("{role}_{}", self.database)
    }

    /// Another session, as a role that is made for it, or of a role that is there.
    pub async fn session_as(&self, role: &str) -> Session {
        let role = self.role(role);
        let there = format!("SELECT FROM pg_roles WHERE rolname = '{role}'");
        if self.db.rows(&there).await.is_empty() {
            self.db.run(&format!("CREATE ROLE {role} LOGIN")).await;
        }
        let mut config = self.cluster.config(&self.database);
        Session::open(config.user(&role)).await
    }

    /// As [`World::session_as`], with a user of the instance as whom the role's writes are made, and the rights
    /// to read and write the tables that are there.
    pub async fn session_of(&self, role: &str, user: &str, password: &str) -> Session {
        let session = self.session_as(role).await;
        let role = self.role(role);
        self.db
            .run(&format!(
                "CREATE USER MAPPING FOR {role} SERVER acme
                 OPTIONS (auth 'basic', username '{user}', password '{password}');
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
            ))
            .await;
        session
    }

    /// Imports tables and waits until they are filled.
    pub async fn import(&self, tables: &[&str]) {
        self.db
            .run(&format!(
                "IMPORT FOREIGN SCHEMA servicenow LIMIT TO ({}) FROM SERVER acme INTO public",
                tables.join(", ")
            ))
            .await;
        for table in tables {
            self.sync(table).await;
        }
    }

    /// Waits until a table has everything the instance has now.
    pub async fn sync(&self, table: &str) {
        self.db.run(&format!("SELECT servicenow.wait_for_sync('{table}', '60 s')")).await;
    }

    /// Stops the worker, so that nothing but the test's own statements reaches the caches.
    pub async fn stop_worker(&self) {
        self.db.run("SELECT servicenow.stop_worker()").await;
        self.until("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'servicenow_fdw worker'").await;
    }

    /// Waits until a table shows what its like in the instance shows the integration user: the same records with
    /// the same stored values. Table and columns are given by name, with `=` and the name in the instance behind it
    /// if that is another.
    pub async fn until_like_the_instance(&self, table: &str, columns: &[&str]) {
        assert_eq!(self.sim.script_errors(), Vec::<String>::new(), "no Business Rule has failed");
        let began = Instant::now();
        let (table, remote) = table.split_once('=').unwrap_or((table, table));
        let columns: Vec<(&str, &str)> =
            columns.iter().map(|column| column.split_once('=').unwrap_or((column, column))).collect();
        let shown: Vec<String> =
            columns.iter().map(|(name, _)| format!("coalesce({name}::text, '')")).collect();
        let query = format!("SELECT ARRAY[sys_id, {}] FROM {table}", shown.join(", "));
        loop {
            let there: BTreeSet<Vec<String>> = self
                .sim
                .truth(remote, INTEGRATION)
                .expect("a table of the instance")
                .iter()
                .map(|record| {
                    let fields = std::iter::once("sys_id").chain(columns.iter().map(|(_, field)| *field));
                    fields.map(|field| record.get(field).cloned().unwrap_or_default()).collect()
                })
                .collect();
            let here: BTreeSet<Vec<String>> =
                self.db.rows(&query).await.iter().map(|row| row.get(0)).collect();
            if here == there {
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{table} did not become like the instance's\nonly here: {:?}\nonly there: {:?}",
                here.difference(&there).collect::<Vec<_>>(),
                there.difference(&here).collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What sessions and worker have asked the instance to change since the world began, in order.
    pub fn writes(&self) -> Vec<LoggedRequest> {
        self.sim.requests().into_iter().filter(|r| r.endpoint == "table" && r.method != "GET").collect()
    }

    /// Waits until a query gives `true`.
    pub async fn until(&self, condition: &str) {
        let began = Instant::now();
        loop {
            if self.db.value::<Option<bool>>(condition).await == Some(true) {
                return;
            }
            let status = "SELECT concat((SELECT json_agg(s) FROM servicenow.sync_status s),
                                        (SELECT json_agg(c) FROM servicenow.stat_capture c),
                                        (SELECT json_agg(r) FROM servicenow.recheck r))";
            if began.elapsed() > PATIENCE {
                let status = self.db.value::<Option<String>>(status).await;
                let log = self.cluster.log();
                let tail =
                    log.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>();
                panic!("this did not come true: {condition}\n{status:?}\n{}", tail.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The identity of the one record that matches an encoded query in the instance.
    pub fn find(&self, table: &str, query: &str) -> String {
        let found = self.sim.edit().find(table, query).expect("a valid query");
        assert_eq!(found.len(), 1, "{table} {query}");
        found.into_iter().next().unwrap()
    }

    /// A field's stored value in the instance.
    pub fn remote(&self, table: &str, sys_id: &str, field: &str) -> Option<String> {
        self.sim.record(table, sys_id).map(|record| record.get(field).cloned().unwrap_or_default())
    }
}

/// Opens a session as the superuser.
pub async fn connect(cluster: &Cluster, database: &str) -> Session {
    Session::open(&cluster.config(database)).await
}

impl Session {
    async fn open(config: &tokio_postgres::Config) -> Session {
        let (client, connection) = config.connect(NoTls).await.expect("a session");
        let connection = tokio::spawn(async move {
            let _ended = connection.await;
        });
        Session { client, connection }
    }

    /// The client, for what the shorthands do not do.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client, for transactions of its own.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Runs statements.
    pub async fn run(&self, sql: &str) {
        if let Err(e) = self.client.batch_execute(sql).await {
            panic!("{sql}\n{:?}", e.as_db_error());
        }
    }

    /// Runs statements that fail; gives back how.
    pub async fn error(&self, sql: &str) -> DbError {
        match self.client.batch_execute(sql).await {
            Ok(()) => panic!("this did not fail: {sql}"),
            Err(e) => e.as_db_error().unwrap_or_else(|| panic!("the session broke: {e}")).clone(),
        }
    }

    /// The rows of a query.
    pub async fn rows(&self, sql: &str) -> Vec<Row> {
        self.client.query(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}\n{:?}", e.as_db_error()))
    }

    /// The one value of a query.
    pub async fn value<T: for<'a> FromSql<'a>>(&self, sql: &str) -> T {
        self.value_with(sql, &[]).await
    }

    /// As [`Session::value`], with parameters.
    pub async fn value_with<T: for<'a> FromSql<'a>>(&self, sql: &str, args: &[&(dyn ToSql + Sync)]) -> T {
        let row = self.client.query_one(sql, args).await;
        row.unwrap_or_else(|e| panic!("{sql}\n{e:?}")).get(0)
    }

    /// Waits until a condition is true.
    pub async fn until(&self, condition: &str) {
        let began = Instant::now();
        while self.value::<Option<bool>>(condition).await != Some(true) {
            assert!(began.elapsed() < PATIENCE, "this did not come true: {condition}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A query's plan.
    pub async fn explain(&self, sql: &str) -> String {
        let rows = self.rows(&format!("EXPLAIN (COSTS OFF) {sql}")).await;
        rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect()
    }
}
