//! The fuzzer: one program for all targets, because each would have the whole product in it. `HP_FUZZ_TARGET` chooses.

#![no_main]

mod targets;

use std::{env, sync::LazyLock};

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&targets::Target> = LazyLock::new(|| {
    let name = env::var("HP_FUZZ_TARGET").expect("HP_FUZZ_TARGET names the target, see scripts/fuzz");
    targets::target(&name)
});

fuzz_target!(|bytes: &[u8]| (TARGET.check)(bytes));
