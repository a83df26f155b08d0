//! The README's SQL is run, and does what the README says.

use std::process::Stdio;

use servicenow_sim::Dataset;
use world::{INTEGRATION, World};

/// The SQL blocks of the README, for the simulated instance.
fn blocks(world: &World) -> String {
    let readme = include_str!("../README.md");
    let blocks = readme.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.collect::<String>().replace("https://acme.service-now.com", world.sim.url()).replace(
        "client_id '…', client_secret '…'",
        "client_id 'fdw-client', client_secret 'fdw-client-secret'",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_block_of_sql_does_what_it_says() {
    let world = World::bare(Dataset::Small).await;
    // To make Business Rules takes this role, as the README says.
    world.sim.edit().grant_role(INTEGRATION, "admin").expect("a role");
    let script = blocks(&world);
    assert!(script.contains("CREATE EXTENSION"));
    let mut psql = world.cluster.program("psql", &world.database);
    let mut child = psql
        .args(["-X", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), script.as_bytes())
        .expect("psql reads");
    let output = child.wait_with_output().expect("psql ends");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    let promised = |what: &str| -> Vec<String> {
        script
            .lines()
            .filter_map(|line| line.strip_prefix("-- "))
            .filter(|line| line.contains(what))
            .map(str::to_owned)
            .collect()
    };
    let errors: Vec<&str> =
        err.lines().filter_map(|line| line.find("ERROR:").map(|at| &line[at..])).collect();
    assert_eq!(errors, promised("ERROR:"), "{out}\n{err}");
    let rows = promised(" | ");
    assert!(rows.len() >= 5);
    for row in rows {
        // An identifier may be cut short with an ellipsis.
        let (name, value) = row.split_once('|').expect("a name and a value");
        let value = value.trim().trim_end_matches('…');
        let shown = out.lines().any(|line| {
            line.split_once('|').is_some_and(|(n, v)| n.trim() == name.trim() && v.trim().starts_with(value))
        });
        assert!(shown, "{row}\n{out}");
    }
}

#[test]
fn every_make_target_it_names_is_there() {
    let makefile = include_str!("../Makefile");
    for word in include_str!("../README.md").split('`').filter_map(|code| code.strip_prefix("make ")) {
        let target = word.split_whitespace().next().unwrap_or_default();
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}
