//! What a hostile worker says on its job's socket.

#![no_main]

mod bounded;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bounded::run(bytes, tokio_run_in_process::test_support::read_frames));
