//! The round machine: pure, replayable, and small enough to live in a status.
//!
//! ```text
//! Training ──quorum+grace / deadline──► Aggregating ──sum──► Evaluating ──votes, masked sum──► Succeeded
//!     ▲                                      │
//!     └────── burned, attempts left ─────────┘            any ──► Failed
//! ```
//!
//! An *attempt* of the aggregation protocol runs within `Aggregating` (over updates) and, where numbers are masked,
//! again within `Evaluating` (over each hospital's metric); attempts of a round are numbered through.
//!
//! [`step`] takes the state, an event and the time, and gives the next state. What is to be
//! *done* in a state is derived from it ([`site_work`], [`hub_work`]), not from the transition:
//! a hub killed between writing the state and acting on it finds the work again.
//! Timers are data; [`wake_at`] tells the driver when to look again.

mod attempt;
mod policy;
mod state;
mod step;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble_tests;
mod work;

pub use attempt::needed;
pub use policy::{EarlierSums, Event, NewModel, Protocol, Rejected, RosterChoice, RoundPolicy, Summed};
pub use state::{
    GateRecord, Outcome, ProtocolStep, RoundState, RoundStep, SiteFact, SiteReason, SiteState, SiteSums, TotalSums,
    published_decimals,
};
pub use step::step;
pub use work::{HubWork, SiteWork, hub_work, site_work, wake_at};
