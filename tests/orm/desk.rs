//! Where an application works: foreign table `incident`, a role that may read and write it, and the ways to it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use servicenow_sim::Dataset;
use world::World;
use world::cluster::as_user;

/// A world with `incident` for a role.
pub struct Desk {
    pub world: World,
    pub role: String,
}

/// A way to the database: where the socket is, and what listens there.
pub struct Through {
    pub host: PathBuf,
    pub port: u16,
    pub _pooler: Option<Pooler>,
}

/// PgBouncer in transaction mode, until it is dropped.
pub struct Pooler {
    process: Child,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _its_status = self.process.wait();
    }
}

impl Through {
    pub fn is_pooled(&self) -> bool {
        self._pooler.is_some()
    }
}

impl Desk {
    pub async fn open() -> Desk {
        let world = World::with(Dataset::Small, "").await;
        world.import(&["incident"]).await;
        let role = world.role("app");
        world
            .db
            .run(&format!(
                "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON incident TO {role}"
            ))
            .await;
        Desk { world, role }
    }

    /// How many calls may have changed something, a batch being one.
    pub fn calls(&self) -> usize {
        let requests = self.world.sim.requests();
        requests.iter().filter(|r| !r.in_batch && r.method != "GET" && r.endpoint != "token").count()
    }

    /// Straight to Postgres.
    pub fn direct(&self) -> Through {
        Through { host: self.world.cluster.socket().to_owned(), port: 5432, _pooler: None }
    }

    /// Through a pooler of this world's own, with fewer sessions than an application has.
    pub fn pooled(&self) -> Through {
        let socket = self.world.cluster.socket();
        let host = socket.join(format!("pool-{}", self.world.database));
        let (file, users) = (host.with_extension("ini"), host.with_extension("users"));
        let settings = format!(
            "[databases]\n* = host={}\n[pgbouncer]\npool_mode = transaction\nauth_type = trust\nauth_file = {}\n\
             listen_port = 6432\nunix_socket_dir = {}\ndefault_pool_size = 2\nlogfile =\n\
             ignore_startup_parameters = extra_float_digits\n",
            socket.display(),
            users.display(),
            host.display()
        );
        std::fs::write(&file, settings).expect("a file");
        std::fs::write(&users, format!("\"{}\" \"\"\n", self.role)).expect("a file");
        make(&host);
        let mut command = as_user("/usr/sbin/pgbouncer".as_ref());
        let mut process = command
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("PgBouncer is installed (`make packages`)");
        let mut log = BufReader::new(process.stderr.take().expect("piped")).lines();
        let said: Vec<String> =
            log.by_ref().map_while(Result::ok).take_while(|line| !line.contains("process up")).collect();
        assert!(process.try_wait().expect("a process").is_none(), "{said:?}");
        // What is said later is read, so that the pipe is never full.
        std::thread::spawn(move || log.for_each(drop));
        Through { host, port: 6432, _pooler: Some(Pooler { process }) }
    }
}

/// Makes a directory that belongs to the user who runs servers.
fn make(directory: &std::path::Path) {
    let made = as_user("/bin/mkdir".as_ref()).arg(directory).status().expect("mkdir");
    assert!(made.success());
}
