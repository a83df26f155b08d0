//! The book: its SQL does what the pages say, and what there is in the extension is in them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use servicenow_sim::Dataset;
use world::page::Page;
use world::{INTEGRATION, World};

/// The pages whose SQL has a test of its own, beside that of the others.
const ELSEWHERE: [&str; 2] = ["monitoring.md", "operations.md"];

/// The other languages that pages have blocks in. The programs are run by the tests of mappers; the one line of a
/// configuration is that of other tests' clusters.
const LANGUAGES: [(&str, &str); 6] = [
    ("activerecord.md", "ruby"),
    ("django.md", "python"),
    ("poolers.md", "python"),
    ("sqlalchemy.md", "python"),
    ("sqlx.md", "rust"),
    ("start.md", "ini"),
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn text(page: &str) -> String {
    std::fs::read_to_string(directory().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"))
}

/// Where the links of a page lead.
fn links(page: &str) -> Vec<String> {
    let text = text(page);
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.filter(|link| !link.contains("://")).map(str::to_owned).collect()
}

/// The pages in the order of the book.
fn pages() -> Vec<String> {
    links("SUMMARY.md")
}

/// What stands between backquotes on a page.
fn words(page: &str) -> BTreeSet<String> {
    let text = text(page);
    text.split('`').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_block_of_sql_of_the_book_does_what_its_page_says() {
    for page in pages().iter().filter(|page| !ELSEWHERE.contains(&page.as_str())) {
        let world = World::bare(Dataset::Small).await;
        let blocks = Page::new(page, &text(page), &world);
        if blocks.blocks.is_empty() {
            continue;
        }
        if !blocks.blocks[0].contains("CREATE EXTENSION") {
            // To make Business Rules takes this role, as the page about them says.
            world.sim.edit().grant_role(INTEGRATION, "admin").expect("a role");
            world.set_up("").await;
            world.import(&["incident"]).await;
        }
        blocks.run(&world);
    }
}

/// A block that is not begun like that is one that no test has seen.
#[test]
fn every_block_of_the_book_is_of_a_kind_that_is_run() {
    for page in pages() {
        let text = text(&page);
        let fences: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("```")).collect();
        assert!(fences.len().is_multiple_of(2), "{page}: {fences:?}");
        for fence in fences.chunks(2) {
            let language = fence[0].strip_prefix("```").unwrap_or_default();
            let is_run = language == "sql" || LANGUAGES.contains(&(page.as_str(), language));
            assert!(is_run && fence[1] == "```", "{page}: {fence:?}");
        }
    }
}

#[test]
fn every_page_is_in_the_book_and_every_link_leads_somewhere() {
    let listed: BTreeSet<String> = pages().into_iter().collect();
    let there = std::fs::read_dir(directory()).expect("a directory");
    for entry in there {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        if name.ends_with(".md") && name != "SUMMARY.md" {
            assert!(listed.contains(&name), "{name} is in SUMMARY.md");
            for link in links(&name) {
                let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
                let file = if file.is_empty() { name.as_str() } else { file };
                assert!(directory().join(file).exists(), "{name} links to {link}");
                let heading = |line: &str| {
                    line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-") == anchor
                };
                assert!(anchor.is_empty() || text(file).lines().any(heading), "{name} links to {link}");
            }
        }
    }
}

#[test]
fn every_option_and_every_setting_is_explained() {
    let explained = words("options.md");
    let options = include_str!("../../src/option.rs").lines().filter_map(|line| {
        let (name, rest) = line.trim().strip_prefix("(\"")?.split_once('"')?;
        rest.starts_with(", Context::").then(|| name.to_owned())
    });
    let options: Vec<String> = options.collect();
    assert!(options.len() > 30);
    for option in options {
        assert!(explained.contains(&option), "option {option}");
    }
    let explained = words("settings.md");
    let source = include_str!("../../src/setting.rs");
    let settings: BTreeSet<&str> =
        source.split("c\"servicenow_fdw.").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(settings.len() > 10);
    for setting in settings {
        let is_it = |word: &String| word.ends_with(&format!(".{setting}"));
        assert!(explained.iter().any(is_it), "setting {setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_view_and_sqlstate_is_explained() {
    let world = World::bare(Dataset::Small).await;
    world.db.run("CREATE EXTENSION servicenow_fdw").await;
    let explained = text("functions.md");
    let public = "SELECT proname::text FROM pg_proc
                  WHERE pronamespace = 'servicenow'::regnamespace AND proname !~ '^_|^servicenow_fdw_'
                    AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype, 'fdw_handler'::regtype)
                  UNION SELECT relname::text FROM pg_class
                  WHERE relnamespace = 'servicenow'::regnamespace AND relkind = 'v' AND relname !~ '^_'";
    let public: Vec<String> = world.db.rows(public).await.iter().map(|row| row.get(0)).collect();
    assert!(public.len() > 20);
    for name in public {
        let forms = [format!("servicenow.{name}`"), format!("servicenow.{name}("), format!("`{name}(")];
        assert!(forms.iter().any(|form| explained.contains(form)), "{name}");
    }
    let explained = text("troubleshooting.md");
    for state in include_str!("../write/errors.out")
        .lines()
        .filter_map(|line| line.strip_prefix("ERROR:")?.trim().split(':').next())
    {
        assert!(explained.contains(state), "SQLSTATE {state}");
    }
}
