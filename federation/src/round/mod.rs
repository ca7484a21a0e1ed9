//! The round machine: pure, replayable, and small enough to live in a status.
//!
//! ```text
//! Training ──quorum+grace / deadline──► Aggregating ──sum──► Evaluating ──votes──► Succeeded
//!     ▲                                      │
//!     └────── burned, attempts left ─────────┘            any ──► Failed
//! ```
//!
//! [`step`] takes the state, an event and the time, and gives the next state. What is to be
//! *done* in a state is derived from it ([`site_work`], [`hub_work`]), not from the transition:
//! a hub killed between writing the state and acting on it finds the work again.
//! Timers are data; [`wake_at`] tells the driver when to look again.

mod state;
mod step;
#[cfg(test)]
mod tests;

pub use state::{
    GateRecord, Outcome, ProtocolStep, RoundState, RoundStep, SiteFact, SiteReason, SiteState, published_decimals,
};
pub use step::{Event, HubWork, Protocol, Rejected, RoundPolicy, SiteWork, hub_work, needed, site_work, step, wake_at};
