//! Statements of several sessions, interleaved step by step, with Postgres's own isolation tester.
//!
//! `SNFDW_ACCEPT=1` takes the output over as expected; look at the difference before you commit it. Where another major
//! prints something else, `SNFDW_ACCEPT=_1` takes it over as another file that is as good.

use std::path::{Path, PathBuf};
use std::process::Command;

use servicenow_sim::{Dataset, Simulator};
use world::cluster::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn specs_come_out_as_expected() {
    let sim = Simulator::builder().dataset(Dataset::Small).seed(42).start().await.expect("a simulator");
    let cluster = Cluster::start("");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pg_test");
    let output = std::env::temp_dir().join(format!("snfdw-isolation-{}", std::process::id()));
    std::fs::create_dir_all(&output).expect("a temporary directory");
    let mut names: Vec<String> = std::fs::read_dir(directory.join("specs"))
        .expect("specs")
        .map(|entry| {
            entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect();
    names.sort();
    let accept = std::env::var("SNFDW_ACCEPT").ok();
    let suffix = accept.as_deref().filter(|accept| accept.starts_with('_')).unwrap_or_default();
    let expected = |name: &str| directory.join("expected").join(format!("{name}{suffix}.out"));
    for name in names.iter().filter(|name| accept.is_some() && !expected(name).exists()) {
        std::fs::write(expected(name), "").expect("a new file");
    }
    let run = Command::new(pg_isolation_regress())
        .args([
            "--host",
            &cluster.socket().display().to_string(),
            "--user",
            "postgres",
            "--dbname",
            "isolation",
        ])
        .args(["--bindir", &cluster.bin().display().to_string()])
        .args(["--inputdir", &directory.display().to_string(), "--outputdir", &output.display().to_string()])
        .args(&names)
        .current_dir(&output)
        .env("PGOPTIONS", format!("-c test.url={}", sim.url()))
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("pg_isolation_regress");
    if accept.is_some() {
        for name in &names {
            let result = output.join("results").join(format!("{name}.out"));
            let result = if result.exists() {
                result
            } else {
                output.join("output_iso/results").join(format!("{name}.out"))
            };
            std::fs::copy(result, expected(name)).expect("a result");
        }
    } else if !run.status.success() {
        let diffs = ["regression.diffs", "output_iso/regression.diffs"];
        let diffs = diffs.map(|file| std::fs::read_to_string(output.join(file)).unwrap_or_default());
        panic!("{}\n{}", String::from_utf8_lossy(&run.stdout), diffs.concat());
    }
    let _gone = std::fs::remove_dir_all(output);
}

fn pg_isolation_regress() -> PathBuf {
    let pg_config = std::env::var("PG_CONFIG").unwrap_or_else(|_| "pg_config".to_owned());
    let output = Command::new(pg_config).arg("--pgxs").output().expect("pg_config");
    let makefile = PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim());
    makefile.parent().expect("a directory").join("../test/isolation/pg_isolation_regress")
}
