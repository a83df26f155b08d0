//! The README's SQL is run, and does what the README says.

use servicenow_sim::Dataset;
use world::World;
use world::page::Page;

#[tokio::test(flavor = "multi_thread")]
async fn every_block_of_sql_does_what_it_says() {
    let world = World::bare(Dataset::Small).await;
    let page = Page::new("README.md", include_str!("../README.md"), &world);
    assert!(page.blocks.concat().contains("CREATE EXTENSION"));
    assert!(page.run(&world) >= 5);
}

/// As PGXN reads it, whose clients call the Makefile.
#[test]
fn the_archive_for_pgxn_says_what_it_is_and_can_be_installed() {
    let meta: serde_json::Value = serde_json::from_str(include_str!("../META.json")).expect("JSON");
    let cargo = include_str!("../Cargo.toml");
    let version = cargo.lines().find_map(|line| line.strip_prefix("version = ")).expect("a version");
    let extension = &meta["provides"]["servicenow_fdw"];
    for says in [&meta["version"], &extension["version"]] {
        assert_eq!(says.to_string(), version);
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    for required in ["name", "abstract", "maintainer", "license"] {
        assert!(!text(&meta[required]).is_empty(), "{required}");
    }
    assert_eq!(text(&meta["meta-spec"]["version"]), "1.0.0");
    for file in ["file", "docfile"] {
        let path = format!("{}/../{}", env!("CARGO_MANIFEST_DIR"), text(&extension[file]));
        assert!(std::path::Path::new(&path).exists(), "{path}");
    }
    for target in ["all", "install", "uninstall"] {
        assert!(include_str!("../Makefile").contains(&format!("\n{target}:")), "make {target}");
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
