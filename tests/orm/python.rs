//! Mappers in Python: the code of their pages, with what users do besides.

use std::path::{Path, PathBuf};

use crate::desk::{Desk, Through};
use crate::script::{blocks, run};

/// The interpreter that has the packages; `make orm-python` makes it.
fn interpreter() -> PathBuf {
    let given = std::env::var_os("ORM_PYTHON").map(PathBuf::from);
    let python = given.unwrap_or_else(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
        target.join("orm-python/bin/python")
    });
    assert!(python.exists(), "{} is not there: `make orm-python`", python.display());
    python
}

/// Runs a script, with modules beside it.
fn python(desk: &Desk, through: &Through, script: &str, modules: &[(&str, &str)]) {
    let warnings = ["-W", "error::DeprecationWarning:__main__"];
    run(desk, through, &interpreter(), &warnings, &[&[("main.py", script)], modules].concat());
}

/// With what the page about poolers says, if there is one.
async fn sqlalchemy(desk: &Desk, through: &Through) {
    let page = blocks(include_str!("../../docs/sqlalchemy.md"), "python").concat();
    let script = format!("{page}{}", include_str!("sqlalchemy.py"));
    // Where the server is the environment says; the pages show an address.
    let mut script = script.replace("postgresql+psycopg://app@db.example.com/crm", "postgresql+psycopg://");
    if through.is_pooled() {
        let pooled = blocks(include_str!("../../docs/poolers.md"), "python").concat();
        let (_, arguments) = pooled.split_once("connect_args").expect("what a pooler needs");
        script = script.replace("psycopg://\")", &format!("psycopg://\", connect_args{arguments}"));
    }
    python(desk, through, &script, &[]);
}

async fn django(desk: &Desk, through: &Through) {
    let page = blocks(include_str!("../../docs/django.md"), "python");
    let (models, rest) = page.split_first().expect("the models come first");
    let mut settings = include_str!("django_settings.py").to_owned();
    if through.is_pooled() {
        assert!(include_str!("../../docs/poolers.md").contains("`DISABLE_SERVER_SIDE_CURSORS = True`"));
        settings =
            settings.replace("\"ENGINE\"", "\"DISABLE_SERVER_SIDE_CURSORS\": True,\n            \"ENGINE\"");
    }
    let script = format!("{settings}{}{}", rest.concat(), include_str!("django.py"));
    python(desk, through, &script, &[("crm/models.py", models), ("crm/__init__.py", "")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlalchemy_works_as_its_page_says() {
    let desk = Desk::open().await;
    sqlalchemy(&desk, &desk.direct()).await;
    let find = |what: &str| desk.world.sim.edit().find("incident", &format!("short_description={what}"));
    assert_eq!(find("Sent at commit").expect("a query").len(), 1);
    assert_eq!(find("taken back before commit").expect("a query"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlalchemy_works_through_a_pooler() {
    let desk = Desk::open().await;
    sqlalchemy(&desk, &desk.pooled()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn django_works_as_its_page_says() {
    let desk = Desk::open().await;
    django(&desk, &desk.direct()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn django_works_through_a_pooler() {
    let desk = Desk::open().await;
    django(&desk, &desk.pooled()).await;
}
