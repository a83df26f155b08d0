//! ActiveRecord, as docs/activerecord.md has it, with what users do besides.

use crate::desk::{Desk, Through};
use crate::script::{blocks, run};

/// Debian's, with Debian's packages.
const INTERPRETER: &str = "/usr/bin/ruby";

fn activerecord(desk: &Desk, through: &Through) {
    // A pooler hands prepared statements to the wrong sessions.
    let prepared = !through.is_pooled();
    assert!(prepared || include_str!("../../docs/poolers.md").contains("`prepared_statements: false`"));
    let script = format!(
        "require \"active_record\"\n\
         ActiveRecord::Base.establish_connection(adapter: \"postgresql\", prepared_statements: {prepared})\n{}{}",
        blocks(include_str!("../../docs/activerecord.md"), "ruby").concat(),
        include_str!("activerecord.rb")
    );
    run(desk, through, INTERPRETER.as_ref(), &[], &[("main.rb", &script)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn activerecord_works_as_its_page_says() {
    let desk = Desk::open().await;
    activerecord(&desk, &desk.direct());
    assert_eq!(
        desk.world.sim.edit().find("incident", "short_description=changed").expect("a query").len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn activerecord_works_through_a_pooler() {
    let desk = Desk::open().await;
    activerecord(&desk, &desk.pooled());
}
