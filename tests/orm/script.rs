//! Scripts that an interpreter runs as an application would.

use std::path::Path;
use std::process::Command;

use crate::desk::{Desk, Through};

/// The blocks of a language of a page, in their order.
pub fn blocks<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// Runs the first of some files, with the others beside it.
pub fn run(desk: &Desk, through: &Through, interpreter: &Path, arguments: &[&str], files: &[(&str, &str)]) {
    let directory = std::env::temp_dir().join(format!("snfdw-script-{}-{}", std::process::id(), desk.role));
    for (path, text) in files {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }
    let output = Command::new(interpreter)
        .args(arguments)
        .arg(directory.join(files[0].0))
        .env("PGHOST", &through.host)
        .env("PGPORT", through.port.to_string())
        .env("PGUSER", &desk.role)
        .env("PGDATABASE", &desk.world.database)
        .output()
        .expect("an interpreter");
    std::fs::remove_dir_all(directory).expect("its own directory");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("23514"), "the page shows a refusal: {out}");
    let calls = desk.calls();
    assert!(calls < 60, "hundreds of rows go in batches, not in {calls} calls");
}
