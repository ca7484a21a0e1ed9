//! Ctrl-C, and being asked to end: what was started is taken down first.

use std::{thread, time::Duration};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{cluster, error::Error};

/// The exit code of a program that a person interrupted, as shells have it.
const INTERRUPTED: i32 = 130;

/// From now on an interruption takes the clusters down and ends this program.
pub fn takes_clusters_down() {
    // Without the handler an interruption ends us at once, as before; `cargo xtask cluster down` is there for that.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    thread::spawn(move || {
        if signals.forever().next().is_none() {
            return;
        }
        eprintln!("interrupted: taking the clusters down");
        // A terminal interrupts all of us; whoever ends this program alone does not mean its tests to go on, and what works
        // on the clusters holds their lock.
        cluster::end_what_we_started();
        while let Err(Error::Busy { .. }) = cluster::down() {
            thread::sleep(Duration::from_millis(100));
        }
        std::process::exit(INTERRUPTED);
    });
}
