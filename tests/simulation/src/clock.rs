//! The only clock, and the hospitals' randomness: both are the schedule's.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use consilium_agent::Entropy;
use consilium_federation::Digest;
use jiff::Timestamp;

/// Where time begins: 2026-01-01.
const BEGIN: i64 = 1_767_225_600_000;

/// A clock that stands still until it is moved; a clone is the same one.
#[derive(Clone)]
pub struct SimClock(Arc<AtomicI64>);

impl Default for SimClock {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(BEGIN)))
    }
}

impl SimClock {
    /// The time.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::SeqCst)).unwrap_or(Timestamp::MAX)
    }

    /// Milliseconds since the beginning.
    pub fn elapsed(&self) -> i64 {
        self.0.load(Ordering::SeqCst) - BEGIN
    }

    /// Lets time go by.
    pub fn forward(&self, milliseconds: i64) {
        self.0.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

/// Randomness of a hospital: the same in every run, and never twice the same within one, also after a restart.
#[derive(Clone)]
pub struct Dice {
    name: &'static str,
    drawn: Arc<AtomicU64>,
}

impl Dice {
    /// For a hospital.
    pub fn new(name: &'static str) -> Self {
        Self { name, drawn: Arc::default() }
    }

    /// As the agent takes it.
    pub fn entropy(&self) -> Entropy {
        let dice = self.clone();
        Entropy::from_fn(move |bytes| {
            // Waits are drawn in fours, and must not shift what the protocol draws.
            if bytes.len() == 4 {
                return bytes.fill(0x80);
            }
            let n = dice.drawn.fetch_add(1, Ordering::SeqCst);
            for (i, part) in bytes.chunks_mut(32).enumerate() {
                let block = Digest::of(format!("{} {n} {i}", dice.name).as_bytes());
                part.copy_from_slice(&block.as_bytes()[..part.len()]);
            }
        })
    }
}
