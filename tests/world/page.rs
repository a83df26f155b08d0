//! The SQL of a page of documentation, run as a reader would, and held against what the page says comes of it.

use std::io::Write;
use std::process::Stdio;

use crate::World;

/// A page's SQL.
pub struct Page {
    name: String,
    /// Blocks in their order.
    pub blocks: Vec<String>,
}

impl Page {
    /// The blocks of a page, for the simulated instance of a world.
    #[must_use]
    pub fn new(name: &str, text: &str, world: &World) -> Page {
        let blocks = text.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
        let suited = blocks.map(|block| {
            block.replace("https://acme.service-now.com", world.sim.url()).replace(
                "client_id '…', client_secret '…'",
                "client_id 'fdw-client', client_secret 'fdw-client-secret'",
            )
        });
        Page { name: name.to_owned(), blocks: suited.collect() }
    }

    /// Runs the blocks in one session of psql. Lines that begin with `-- ` say what comes of it: ERRORs, in order, and
    /// rows of expanded output. Gives back how many rows the page promises.
    pub fn run(&self, world: &World) -> usize {
        let script = self.blocks.concat();
        let mut psql = world.cluster.program("psql", &world.database);
        let mut child = psql
            .args(["-X", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql");
        child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("psql reads");
        let output = child.wait_with_output().expect("psql ends");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

        let promised = |what: &str| -> Vec<String> {
            let said = script.lines().filter_map(|line| line.strip_prefix("-- "));
            said.filter(|line| line.contains(what)).map(str::to_owned).collect()
        };
        let errors: Vec<&str> =
            err.lines().filter_map(|line| line.find("ERROR:").map(|at| &line[at..])).collect();
        assert_eq!(errors, promised("ERROR:"), "{}\n{out}\n{err}", self.name);
        let rows = promised(" | ");
        let mut shown = out.lines().filter_map(|line| line.split_once('|'));
        for row in &rows {
            // An identifier may be cut short with an ellipsis.
            let (name, value) = row.split_once('|').expect("a name and a value");
            let value = value.trim().trim_end_matches('…');
            let is_it = |(n, v): (&str, &str)| n.trim() == name.trim() && v.trim().starts_with(value);
            assert!(shown.any(is_it), "{}: {row}\n{out}\n{err}", self.name);
        }
        rows.len()
    }
}
