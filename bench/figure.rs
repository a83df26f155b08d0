//! The figures that have a bound: each is printed with it and whether it is kept, and the run fails if one is not.

use std::process::ExitCode;
use std::sync::Mutex;

static MISSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A figure that is the better the larger it is.
pub fn at_least(name: &str, value: f64, bound: f64) {
    note(name, value, "at least", bound, value >= bound);
}

/// A figure that is the better the smaller it is.
pub fn at_most(name: &str, value: f64, bound: f64) {
    note(name, value, "at most", bound, value <= bound);
}

/// A figure that could not be measured.
pub fn missing(why: &str) {
    println!("  FAIL  {why}");
    MISSED.lock().expect("nobody panics with it").push(why.to_owned());
}

fn note(name: &str, value: f64, kind: &str, bound: f64, is_kept: bool) {
    let verdict = if is_kept { "pass" } else { "FAIL" };
    let figure = format!("{name}: {value:.3}, {kind} {bound}");
    println!("  {verdict}  {figure}");
    if !is_kept {
        MISSED.lock().expect("nobody panics with it").push(figure);
    }
}

/// Says which bounds were not kept.
pub fn verdict() -> ExitCode {
    let missed = MISSED.lock().expect("nobody panics with it");
    for figure in missed.iter() {
        println!("missed: {figure}");
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
