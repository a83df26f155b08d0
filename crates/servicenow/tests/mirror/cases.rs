//! Random cases for as long as there is time. Each run takes another seed and prints it; a variable of the environment
//! repeats one, and `PROPTEST_CASES` says how many cases there are to be instead of how long they may take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Has cases of a strategy go by, as many side by side as there are cores, each in a runtime of its own whose time is virtual;
/// one that fails is made as short as it gets.
pub fn check<S: Strategy>(
    variable: &str,
    budget: Duration,
    strategy: impl Fn() -> S + Sync,
    case: impl AsyncFn(S::Value) + Sync,
) {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos() as u64;
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let given = number(variable);
    let first = given.unwrap_or_else(now);
    let wanted = given.map(|_| 1).or_else(|| number("PROPTEST_CASES"));
    let (began, cases) = (Instant::now(), AtomicU64::new(0));
    let check_some = || {
        let strategy = strategy();
        loop {
            let number = cases.fetch_add(1, Ordering::Relaxed);
            if !wanted.map_or_else(|| began.elapsed() < budget, |wanted| number < wanted) {
                return;
            }
            let seed = first.wrapping_add(number);
            if let Err(e) = check_one(seed, &strategy, &case) {
                panic!("{variable}={seed}: {e}");
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let checks: Vec<_> = (0..threads).map(|_| scope.spawn(check_some)).collect();
        for done in checks {
            if let Err(panic) = done.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    eprintln!("{} cases, {variable}={first} onwards", cases.into_inner() - threads as u64);
}

/// Checks the case of a seed.
fn check_one<S: Strategy>(seed: u64, strategy: &S, case: &impl AsyncFn(S::Value)) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        max_shrink_time: 20_000,
        max_shrink_iters: 10_000,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(strategy, |value| {
        // Nothing waits for anything but time, which passes by itself then.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(case(value));
        Ok(())
    });
    outcome.map_err(|e| e.to_string())
}
