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

#[test]
fn every_make_target_it_names_is_there() {
    let makefile = include_str!("../Makefile");
    for word in include_str!("../README.md").split('`').filter_map(|code| code.strip_prefix("make ")) {
        let target = word.split_whitespace().next().unwrap_or_default();
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}
