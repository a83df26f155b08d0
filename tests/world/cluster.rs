//! A throw-away Postgres cluster with the extension installed. It ends with the test process, however that ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Postgres does not run as root; when the tests do, the cluster runs as this user of Debian's package.
const USER: &str = "postgres";

/// Settings of every cluster: quick, and with room for a worker per test.
const SETTINGS: &str = "
listen_addresses = ''
fsync = off
max_worker_processes = 300
max_connections = 400
log_min_messages = info
log_line_prefix = '%m [%p] %b '
autovacuum_naptime = 1h
";

/// The file of settings that change while a cluster runs.
const CHANGED: &str = "changed.conf";

/// A running cluster.
pub struct Cluster {
    directory: PathBuf,
    bin: PathBuf,
    /// Waits for the end of its standard input, which is the end of this process, and cleans up.
    _janitor: Child,
}

impl Cluster {
    /// The cluster that all tests of a binary share.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Cluster::start(""))
    }

    /// A cluster of the test's own, with more settings.
    pub fn start(settings: &str) -> Cluster {
        Self::start_of(bin_directory(NEW), &[], settings)
    }

    /// Two clusters of a test's own that pg_upgrade may take one to the other of: the first of the Postgres that
    /// `OLD_PG_CONFIG` tells of, if it does.
    pub fn before_and_after(settings: &str) -> [Cluster; 2] {
        let old = if std::env::var_os(OLD).is_some() { OLD } else { NEW };
        // Newer majors have checksums unless told otherwise, and both clusters have to have them.
        [old, NEW].map(|which| Self::start_of(bin_directory(which), &["--data-checksums"], settings))
    }

    /// A cluster of the test's own with an installation of Postgres of its own, whose files may be replaced.
    pub fn with_its_installation(settings: &str) -> Cluster {
        let directory = new_directory();
        let installation = directory.join("installation");
        for kind in ["--bindir", "--pkglibdir", "--sharedir"] {
            // Its programs find the other directories where these are to each other.
            let from = PathBuf::from(told(&pg_config(NEW), kind));
            let to = installation.join(from.strip_prefix("/").expect("an absolute path"));
            std::fs::create_dir_all(to.parent().expect("below another")).expect("a directory");
            run(Command::new("cp").arg("-a").arg(from).arg(to));
        }
        let bin = installation.join(bin_directory(NEW).strip_prefix("/").expect("an absolute path"));
        Self::start_in(directory, bin, &[], settings)
    }

    fn start_of(bin: PathBuf, options: &[&str], settings: &str) -> Cluster {
        Self::start_in(new_directory(), bin, options, settings)
    }

    fn start_in(directory: PathBuf, bin: PathBuf, options: &[&str], settings: &str) -> Cluster {
        let data = directory.join("data");
        let mut initdb = as_user(&bin.join("initdb"));
        initdb.args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]);
        run(initdb.args(options).arg("-D").arg(&data));
        let mut file = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).unwrap();
        writeln!(
            file,
            "{SETTINGS}\nunix_socket_directories = '{0}'\n{settings}\ninclude_if_exists = '{0}/{CHANGED}'",
            directory.display()
        )
        .unwrap();
        let janitor = janitor(&bin, &directory);
        let cluster = Cluster { directory, bin, _janitor: janitor };
        cluster.control(&["start"]);
        cluster
    }

    /// A cluster of a copy of this one's data directory, which a program makes where its last argument says. It does not
    /// run yet.
    pub fn copied(&self, program: &Path, arguments: &[&str]) -> Cluster {
        let directory = new_directory();
        let data = directory.join("data");
        run(as_user(program).args(arguments).arg(&data));
        let _not_in_a_backup = std::fs::remove_file(data.join("postmaster.pid"));
        let mut file = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).unwrap();
        writeln!(file, "unix_socket_directories = '{}'", directory.display()).unwrap();
        let janitor = janitor(&self.bin, &directory);
        Cluster { directory, bin: self.bin.clone(), _janitor: janitor }
    }

    /// Calls pg_ctl and waits until it is done.
    pub fn control(&self, arguments: &[&str]) {
        let mut pg_ctl = as_user(&self.bin.join("pg_ctl"));
        pg_ctl.arg("-D").arg(self.directory.join("data")).arg("-l").arg(self.log_file()).arg("-w");
        run(pg_ctl.args(arguments).stdout(Stdio::null()));
    }

    /// Gives all its processes more settings, in place of those given before. Works without any session, as none may
    /// be had.
    pub fn configure(&self, settings: &str) {
        self.configure_next_start(settings);
        signal(self.postmaster(), "-HUP");
    }

    /// As [`Cluster::configure`], of a cluster that does not run.
    pub fn configure_next_start(&self, settings: &str) {
        std::fs::write(self.directory.join(CHANGED), settings).expect("a file");
    }

    /// The directory of its programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// A directory of its installation, as pg_config names it.
    pub fn installed(&self, kind: &str) -> PathBuf {
        PathBuf::from(told(&self.bin.join("pg_config"), kind))
    }

    /// The directory of its socket.
    pub fn socket(&self) -> &Path {
        &self.directory
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The server log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The postmaster's process.
    pub fn postmaster(&self) -> u32 {
        let file = std::fs::read_to_string(self.directory.join("data/postmaster.pid")).expect("it runs");
        file.lines().next().and_then(|line| line.trim().parse().ok()).expect("its first line is the pid")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Connection settings for a database.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket()).user("postgres").dbname(database);
        config
    }

    /// A program of the Postgres installation, such as psql, set up for a database.
    pub fn program(&self, name: &str, database: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.env("PGHOST", self.socket()).env("PGUSER", "postgres").env("PGDATABASE", database);
        command.env_remove("RUST_BACKTRACE");
        command
    }
}

/// Stops a cluster and removes its directory when this process ends.
fn janitor(bin: &Path, directory: &Path) -> Child {
    as_user(Path::new("/bin/sh"))
        .arg("-c")
        .arg(format!(
            "read line; '{}' -D '{}' -m immediate stop; rm -rf '{}'",
            bin.join("pg_ctl").display(),
            directory.join("data").display(),
            directory.display()
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // an interrupt from the terminal must not take it along
        .spawn()
        .expect("a shell")
}

/// Sends a signal to a process of the cluster.
pub fn signal(pid: u32, signal: &str) {
    run(Command::new("kill").arg(signal).arg(pid.to_string()));
}

/// The variables that tell where Postgres is: the one that is tested, and one to upgrade from.
const NEW: &str = "PG_CONFIG";
const OLD: &str = "OLD_PG_CONFIG";

fn pg_config(variable: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from("pg_config"), PathBuf::from)
}

fn bin_directory(variable: &str) -> PathBuf {
    PathBuf::from(told(&pg_config(variable), "--bindir"))
}

/// What a pg_config says.
fn told(pg_config: &Path, what: &str) -> String {
    let output = Command::new(pg_config).arg(what).output().expect("pg_config");
    String::from_utf8(output.stdout).expect("a path").trim().to_owned()
}

/// A directory for a cluster, which belongs to the user whom it runs as.
fn new_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("snfdw-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    if let Some((uid, gid)) = other_user() {
        std::os::unix::fs::chown(&directory, Some(uid), Some(gid)).expect("root may do this");
    }
    directory
}

/// User and group to run Postgres as, if this process is root.
fn other_user() -> Option<(u32, u32)> {
    let id = |flag: &str| {
        let output = Command::new("id").args([flag, USER]).output().expect("id");
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    let me = Command::new("id").arg("-u").output().expect("id").stdout;
    (me == b"0\n").then(|| (id("-u").expect("the user exists"), id("-g").expect("the user exists")))
}

/// A program that runs as the user whom servers run as.
pub fn as_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    // Backtraces in the DETAIL of errors would differ from machine to machine.
    command.env_remove("RUST_BACKTRACE").env("LC_ALL", "C.UTF-8").current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().expect("a program that starts");
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
}
