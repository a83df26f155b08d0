//! Random cases for as long as there is time. Each run takes another seed and prints it; a variable of the environment
//! repeats one, and `PROPTEST_CASES` says how many cases there are to be instead of how long they may take.

use std::time::{Duration, Instant, SystemTime};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Has cases of a strategy go by, each in a runtime's task; one that fails is made as short as it gets.
pub fn check<S: Strategy>(variable: &str, budget: Duration, strategy: &S, case: impl AsyncFn(S::Value)) {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_nanos() as u64;
    let given = std::env::var(variable).ok().map(|seed| seed.parse().expect("a number"));
    let first: u64 = given.unwrap_or_else(now);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().expect("threads");
    let began = Instant::now();
    let mut cases = 0;
    let wanted = std::env::var("PROPTEST_CASES").ok().map(|cases| cases.parse().expect("a number"));
    while wanted.map_or_else(|| began.elapsed() < budget, |wanted: u64| cases < wanted) {
        let seed = first.wrapping_add(cases);
        cases += 1;
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
            runtime.block_on(case(value));
            Ok(())
        });
        if let Err(e) = outcome {
            panic!("{variable}={seed}: {e}");
        }
        if given.is_some() {
            break;
        }
    }
    eprintln!("{cases} cases, {variable}={first} onwards");
}
