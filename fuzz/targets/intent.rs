//! See [`fuzz::intent`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::intent(bytes));
