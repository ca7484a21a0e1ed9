//! One libFuzzer program for all parsers; `CONSILIUM_FUZZ_TARGET` names the one.
#![no_main]
#![allow(clippy::expect_used, reason = "a program of the test bench, told wrongly, ends")]

use std::sync::OnceLock;

use consilium_fuzz::{Target, target};

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("CONSILIUM_FUZZ_TARGET").expect("CONSILIUM_FUZZ_TARGET names a target");
        let found = target(&name).expect("CONSILIUM_FUZZ_TARGET names a target");
        TARGET.set(found).ok();
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(data);
        }
    }
);
