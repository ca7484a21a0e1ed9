//! The two edges to the outside world that decisions must not touch: the clock and randomness.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use axum::http::{HeaderMap, header::DATE};
use consilium_federation::clock::OtherClock;
use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::SysRng;
use rand::{TryCryptoRng, TryRng};

/// A clock. Tests give their own.
#[derive(Clone)]
pub struct Clock {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    steady: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Clock {
    /// The clock of this machine.
    pub fn system() -> Self {
        Self { now: Arc::new(Timestamp::now), steady: Arc::new(steady) }
    }

    /// The clock of the hospital's API server where that and this machine's are apart.
    ///
    /// How old an object is, when an approval ends and how long a lease lasts are judged against times that the server
    /// and the nodes write. An agent on a machine that is hours ahead would end every training by its own limit.
    pub fn of_server(server: ServerTime) -> Self {
        Self { now: Arc::new(move || server.on(Timestamp::now(), steady())), ..Self::system() }
    }

    /// A clock that a test moves.
    pub fn from_fn(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let now: Arc<dyn Fn() -> Timestamp + Send + Sync> = Arc::new(clock);
        Self { steady: Arc::clone(&now), now }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// A time that nobody sets: what others' clocks are measured by, so that setting this machine's moves none of them.
    pub fn steady(&self) -> Timestamp {
        (self.steady)()
    }
}

/// The time at which this process first asked, and what has gone by since.
pub fn steady() -> Timestamp {
    static START: OnceLock<(Timestamp, Instant)> = OnceLock::new();
    let (start, since) = START.get_or_init(|| (Timestamp::now(), Instant::now()));
    start.checked_add(since.elapsed()).unwrap_or(Timestamp::MAX)
}

/// What the answers of the hospital's API server say of its clock.
#[derive(Clone, Default)]
pub struct ServerTime(Arc<Mutex<OtherClock>>);

impl ServerTime {
    /// Takes the time that an answer carries (RFC 9110 section 6.6.1), and returns by how much it is ahead of the steady
    /// clock.
    pub fn hear(&self, answer: &HeaderMap, steady: Timestamp) -> Option<SignedDuration> {
        let said = answer.get(DATE)?.to_str().ok()?;
        let theirs = rfc2822::DateTimeParser::new().parse_timestamp(said).ok()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.after(Some(theirs), steady);
        match *known {
            OtherClock::Ahead(by) => Some(by),
            OtherClock::Unheard | OtherClock::Unsaid => None,
        }
    }

    /// Ours while both show one time.
    fn on(&self, ours: Timestamp, steady: Timestamp) -> Timestamp {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let apart = known.beside(steady.duration_since(ours)).in_sync() == Some(false);
        if apart { known.now(steady) } else { ours }
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
        assert_eq!(server.on(ours, ours), ours, "nothing was heard");
        let answer = |date: &str| HeaderMap::from_iter([(DATE, date.parse().unwrap())]);
        let ahead = server.hear(&answer("Thu, 01 Jan 2026 10:00:00 GMT"), ours);
        assert_eq!(ahead, Some(SignedDuration::from_hours(-5)));
        assert_eq!(server.on(ours, ours), "2026-01-01T10:00:00Z".parse().unwrap());
        // What says no time changes nothing.
        for odd in ["yesterday", ""] {
            assert_eq!(server.hear(&answer(odd), ours), None);
        }
        assert_eq!(server.on(ours, ours), "2026-01-01T10:00:00Z".parse().unwrap());
        // Whole seconds and the way of an answer move no clock.
        server.hear(&answer("Thu, 01 Jan 2026 14:59:57 GMT"), ours);
        assert_eq!(server.on(ours, ours), ours);
        // Someone sets this machine's clock, rightly or wrongly: until the server is heard again nothing grows older by it.
        let set = ours.checked_add(SignedDuration::from_hours(5)).unwrap();
        assert_eq!(server.on(set, ours), ours.checked_add(SignedDuration::from_secs(-3)).unwrap());
    }
}
