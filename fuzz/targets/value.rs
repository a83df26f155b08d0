//! See [`fuzz::value`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::value(bytes));
