//! Output compared with what is expected, by Postgres's own tools for that.
//!
//! `SNFDW_ACCEPT=1` takes the output over as expected; look at the difference before you commit it. Where another major
//! prints something else, `SNFDW_ACCEPT=_1` takes it over as another file that is as good.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::Cluster;

/// Runs all files of a folder of `pg_test` (`sql` or `specs`) with a tool (`regress/pg_regress` or
/// `isolation/pg_isolation_regress`) on a cluster, with a variable set in the environment.
pub fn compare(cluster: &Cluster, tool: &str, folder: &str, (variable, value): (&str, String)) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pg_test");
    let output = std::env::temp_dir().join(format!("snfdw-{folder}-{}", std::process::id()));
    std::fs::create_dir_all(&output).expect("a temporary directory");
    let files = std::fs::read_dir(directory.join(folder)).expect("the folder");
    let stem =
        |entry: std::fs::DirEntry| entry.path().file_stem().expect("a name").to_string_lossy().into_owned();
    let mut names: Vec<String> = files.map(|entry| stem(entry.expect("an entry"))).collect();
    names.sort();
    let accept = std::env::var("SNFDW_ACCEPT").ok();
    let suffix = accept.as_deref().filter(|accept| accept.starts_with('_')).unwrap_or_default();
    let expected = |name: &str| directory.join("expected").join(format!("{name}{suffix}.out"));
    for name in names.iter().filter(|name| accept.is_some() && !expected(name).exists()) {
        // Without a file to compare with, the tool stops.
        std::fs::write(expected(name), "").expect("a new file");
    }
    let run = Command::new(tools().join(tool))
        .args(["--host", &cluster.socket().display().to_string(), "--user", "postgres", "--dbname", folder])
        .args(["--bindir", &cluster.bin().display().to_string()])
        .args(["--inputdir", &directory.display().to_string(), "--outputdir", &output.display().to_string()])
        .args(&names)
        .env(variable, value)
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("the tool");
    // The isolation tester of some majors adds a folder of its own.
    let results = [output.join("output_iso"), output.clone()]
        .into_iter()
        .find(|folder| folder.join("results").exists());
    let results = results.unwrap_or_else(|| output.clone());
    if accept.is_some() {
        for name in &names {
            let result = results.join("results").join(format!("{name}.out"));
            std::fs::copy(result, expected(name)).expect("a result");
        }
    } else if !run.status.success() {
        let diffs = std::fs::read_to_string(results.join("regression.diffs")).unwrap_or_default();
        panic!("{}\n{}\n{diffs}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    }
    let _gone = std::fs::remove_dir_all(output);
}

/// Where Postgres keeps its tools for tests.
fn tools() -> PathBuf {
    let pg_config = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".to_owned());
    let output = Command::new(pg_config).arg("--pgxs").output().expect("pg_config");
    let makefile = PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim());
    makefile.parent().expect("a directory").join("../test")
}
