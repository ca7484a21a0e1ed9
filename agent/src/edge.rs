//! The two edges to the outside world that decisions must not touch: the clock and randomness.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::http::{HeaderMap, header::DATE};
use consilium_federation::clock::OtherClock;
use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::SysRng;
use rand::{TryCryptoRng, TryRng};

/// A clock. Tests give their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The clock of this machine.
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// The clock of the hospital's API server where that and this machine's are apart.
    ///
    /// How old an object is, when an approval ends and how long a lease lasts are judged against times that the server
    /// and the nodes write. An agent on a machine that is hours ahead would end every training by its own limit.
    pub fn of_server(server: ServerTime) -> Self {
        Self(Arc::new(move || server.on(Timestamp::now())))
    }

    /// A clock that a test moves.
    pub fn from_fn(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(clock))
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// What the answers of the hospital's API server say of its clock.
#[derive(Clone, Default)]
pub struct ServerTime(Arc<Mutex<OtherClock>>);

impl ServerTime {
    /// Takes the time that an answer carries (RFC 9110 section 6.6.1), and returns by how much it is ahead of ours.
    pub fn hear(&self, answer: &HeaderMap, ours: Timestamp) -> Option<SignedDuration> {
        let said = answer.get(DATE)?.to_str().ok()?;
        let theirs = rfc2822::DateTimeParser::new().parse_timestamp(said).ok()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.after(Some(theirs), ours);
        match *known {
            OtherClock::Ahead(by) => Some(by),
            OtherClock::Unheard | OtherClock::Unsaid => None,
        }
    }

    /// Ours while both show one time.
    fn on(&self, ours: Timestamp) -> Timestamp {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.in_sync() == Some(false) { known.now(ours) } else { ours }
    }
}

/// The name that this process took at its start: another one with the same certificate has another.
pub fn instance() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| Entropy::system().bytes32()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A source of random bytes. Tests give their own.
///
/// It is also a generator for cryptographic keys.
#[derive(Clone)]
pub struct Entropy(Arc<Fill>);

/// Fills a buffer with random bytes.
type Fill = dyn Fn(&mut [u8]) + Send + Sync;

impl Entropy {
    /// The operating system's generator, asked for every draw: one seeded from it and kept in memory would repeat
    /// itself in each machine that is resumed from one snapshot.
    pub fn system() -> Self {
        // Safety: it fails on no system that we run on once that is up; a key made without it would be worse.
        #[allow(clippy::expect_used)]
        Self(Arc::new(|bytes| SysRng.try_fill_bytes(bytes).expect("the operating system gives no randomness")))
    }

    /// A source that a test controls.
    pub fn from_fn(fill: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(fill))
    }

    /// Fills a buffer.
    pub fn fill(&self, bytes: &mut [u8]) {
        (self.0)(bytes);
    }

    /// 32 random bytes: a token, a key, a salt.
    pub fn bytes32(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill(&mut bytes);
        bytes
    }

    /// A number from 0 (inclusive) to 1 (exclusive), for jitter.
    pub fn fraction(&self) -> f64 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
    }
}

impl TryRng for Entropy {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Entropy {}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine five hours ahead, `limits.taskDuration` of four hours ended each training as it began.
    #[test]
    fn an_agent_goes_by_the_clock_that_dates_its_objects() {
        let server = ServerTime::default();
        let ours: Timestamp = "2026-01-01T15:00:00Z".parse().unwrap();
        assert_eq!(server.on(ours), ours, "nothing was heard");
        let answer = |date: &str| HeaderMap::from_iter([(DATE, date.parse().unwrap())]);
        let ahead = server.hear(&answer("Thu, 01 Jan 2026 10:00:00 GMT"), ours);
        assert_eq!(ahead, Some(SignedDuration::from_hours(-5)));
        assert_eq!(server.on(ours), "2026-01-01T10:00:00Z".parse().unwrap());
        // What says no time changes nothing.
        for odd in ["yesterday", ""] {
            assert_eq!(server.hear(&answer(odd), ours), None);
        }
        assert_eq!(server.on(ours), "2026-01-01T10:00:00Z".parse().unwrap());
        // Whole seconds and the way of an answer move no clock.
        server.hear(&answer("Thu, 01 Jan 2026 14:59:57 GMT"), ours);
        assert_eq!(server.on(ours), ours);
    }
}
