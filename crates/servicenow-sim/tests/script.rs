//! Business Rules with scripts are really run.

use std::time::{Duration, Instant};

use servicenow_sim::{Dataset, Simulator};

async fn sim() -> Simulator {
    Simulator::builder().dataset(Dataset::Small).seed(42).start().await.expect("a simulator")
}

/// Makes a rule on incidents; gives back its id.
fn rule(sim: &Simulator, when: &str, body: &str) -> String {
    rule_on(sim, "incident", when, body)
}

fn rule_on(sim: &Simulator, table: &str, when: &str, body: &str) -> String {
    let script = format!("(function executeRule(current, previous) {{ {body} }})(current, previous);");
    let fields = [
        ("name", "a rule"),
        ("collection", table),
        ("when", when),
        ("active", "true"),
        ("advanced", "true"),
        ("action_insert", "true"),
        ("action_update", "true"),
        ("action_delete", "true"),
        ("script", script.as_str()),
    ];
    sim.edit().insert("sys_script", &fields).expect("a rule")
}

/// What scripts have written to a table of their own for this: the property's values, in the order of writing.
fn notes(sim: &Simulator) -> Vec<String> {
    let ids = sim.edit().find("sys_properties", "nameSTARTSWITHnote.^ORDERBYname").expect("a query");
    ids.iter().map(|id| sim.record("sys_properties", id).expect("it is there")["value"].clone()).collect()
}

/// A function for scripts that notes something.
const NOTE: &str = "function note(text) {
    var count = new GlideRecord('sys_properties');
    count.addQuery('name', 'STARTSWITH', 'note.');
    count.query();
    var gr = new GlideRecord('sys_properties');
    gr.initialize();
    gr.setValue('name', 'note.' + (1000 + count.getRowCount()));
    gr.value = text;
    gr.insert();
}";

fn incident(sim: &Simulator) -> String {
    sim.edit().find("incident", "number=INC0012345").expect("a query").remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_sees_what_has_happened_and_writes_elsewhere() {
    let sim = sim().await;
    rule(&sim, "after", &format!(
        "{NOTE} note(current.operation() + ' ' + current.getTableName() + ' ' + current.getValue('sys_mod_count') + ' ' +
            (previous ? previous.short_description : '-') + ' > ' + current.short_description + ' ' +
            current.short_description.changes());"
    ));
    let id = sim.edit().insert("incident", &[("short_description", "one")]).expect("a record");
    sim.edit().update("incident", &id, &[("short_description", "two")]).expect("it is there");
    sim.edit().update("incident", &id, &[("state", "2")]).expect("it is there");
    sim.edit()
        .without_workflow()
        .update("incident", &id, &[("short_description", "three")])
        .expect("it is there");
    sim.edit().delete("incident", &id).expect("it is there");
    assert_eq!(sim.script_errors(), Vec::<String>::new());
    assert_eq!(
        notes(&sim),
        [
            "insert incident 0 - > one true",
            "update incident 1 one > two true",
            "update incident 2 two > two false",
            "delete incident 3 - > three false",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_run_in_their_order_and_those_of_parents_too() {
    let sim = sim().await;
    let late = rule(&sim, "after", &format!("{NOTE} note('late');"));
    sim.edit().update("sys_script", &late, &[("order", "900")]).expect("it is there");
    rule_on(&sim, "task", "after", &format!("{NOTE} note('parent of ' + current.getRecordClassName());"));
    let never = rule(&sim, "after", &format!("{NOTE} note('never');"));
    sim.edit().update("sys_script", &never, &[("condition", "current.state == 7")]).expect("it is there");
    let seldom = rule(&sim, "after", &format!("{NOTE} note('seldom');"));
    sim.edit().update("sys_script", &seldom, &[("filter_condition", "state=7")]).expect("it is there");
    sim.edit().update("incident", &incident(&sim), &[("short_description", "x")]).expect("it is there");
    assert_eq!(sim.script_errors(), Vec::<String>::new());
    assert_eq!(notes(&sim), ["parent of incident", "late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_rules_change_and_refuse() {
    let sim = sim().await;
    rule(
        &sim,
        "before",
        "if (current.short_description == 'no') { current.setAbortAction(true); } \
         else { current.short_description = current.short_description + '!'; }",
    );
    let id = incident(&sim);
    sim.edit().update("incident", &id, &[("short_description", "yes")]).expect("it is there");
    assert_eq!(sim.record("incident", &id).expect("it is there")["short_description"], "yes!");
    let refused = sim.edit().update("incident", &id, &[("short_description", "no")]).expect_err("refused");
    assert!(refused.to_string().contains("was aborted by Business Rule 'a rule"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_es5_does_not_run() {
    let sim = sim().await;
    rule(&sim, "after", "let a = 1; gs.error('it has run');");
    rule(&sim, "after", "gs.error('' + [1].includes(1));");
    rule(&sim, "after", "gs.error('' + new Map());");
    sim.edit().update("incident", &incident(&sim), &[("short_description", "x")]).expect("it is there");
    let mut errors = sim.script_errors();
    errors.sort();
    assert_eq!(errors.len(), 3, "{errors:?}");
    for (error, part) in errors.iter().zip([
        "Map is not defined",
        "not a callable function",
        "let or const: the platform's scripts are ECMAScript 5",
    ]) {
        assert!(error.contains(part), "{errors:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn asynchronous_rules_run_later_without_the_record_as_it_was() {
    let sim = sim().await;
    rule(
        &sim,
        "async",
        &format!("{NOTE} note(current.operation() + ' ' + previous + ' ' + current.short_description);"),
    );
    let id = incident(&sim);
    sim.edit().update("incident", &id, &[("short_description", "first")]).expect("it is there");
    sim.edit().update("incident", &id, &[("short_description", "second")]).expect("it is there");
    assert!(notes(&sim).is_empty());
    let began = Instant::now();
    while notes(&sim).len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", sim.script_errors());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(notes(&sim), ["update null second", "update null second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_helpers_are_there() {
    let sim = sim().await;
    rule(&sim, "after", &format!("{NOTE}
        note(new CertificateEncryption().generateMac(GlideStringUtil.base64Encode('key'), 'HmacSHA256',
            'The quick brown fox jumps over the lazy dog'));
        note(new GlideDigest().getSHA256Hex('abc'));
        note(gs.getUserName() + ' ' + gs.nil('') + ' ' + gs.getProperty('no.such', 'none'));
        var day = new GlideDateTime('2024-02-28 23:59:59'); day.addSeconds(1); note(day + ' ' + day.getNumericValue());
        var gr = new GlideRecord('incident'); note('' + gr.get('number', 'INC0012345') + gr.get('nothing'));
        gr = new GlideRecord('sys_user'); gr.addQuery('user_name', 'admin'); gr.setLimit(1); gr.query();
        while (gr.next()) {{ note(gr.user_name + ' ' + gr.isValidRecord() + ' ' + gr.isValidField('nonsense')); }}"));
    sim.edit().update("incident", &incident(&sim), &[("short_description", "x")]).expect("it is there");
    assert_eq!(sim.script_errors(), Vec::<String>::new());
    assert_eq!(
        notes(&sim),
        [
            "97yD9DBThCSxMpjmqm+xQ+9NWaFJRhdZl0edvC0aPNg=",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "system true none",
            "2024-02-29 00:00:00 1709164800000",
            "truefalse",
            "admin true false",
        ]
    );
}

/// Rows that rules write run rules too, and that has an end.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_call_for_each_other_are_stopped() {
    let sim = sim().await;
    rule(
        &sim,
        "after",
        "var gr = new GlideRecord('incident'); gr.get(current.sys_id);
         gr.reopen_count = Number(gr.getValue('reopen_count')) + 1; gr.update();",
    );
    let id = incident(&sim);
    sim.edit()
        .update("incident", &id, &[("reopen_count", "0"), ("short_description", "x")])
        .expect("it is there");
    let errors = sim.script_errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("without an end"), "{errors:?}");
    assert_eq!(sim.record("incident", &id).expect("it is there")["reopen_count"], "4");
}
