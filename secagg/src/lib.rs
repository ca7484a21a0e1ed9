//! Secure aggregation: many hospitals add up their updates so that the hub learns the sum and nothing else.
//!
//! What belongs here: how a vector becomes ring integers and back ([`ring`], [`weight`], [`layout`], [`sum`]), and the
//! protocol of both sides as data in, data out.
//! What does not: sockets, files, clocks, random sources (they come in as arguments), Kubernetes, and anything about
//! studies or rounds beyond the digests that bind a session to them.
//!
//! `docs/guides/secure-aggregation.md` says what is promised, against whom and under which assumptions.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod advert;
pub mod audit;
pub mod client;
pub mod deal;
pub mod history;
pub mod hub;
pub mod identity;
pub mod ids;
pub mod keys;
pub mod layout;
pub mod mask;
mod prefetch;
pub mod ring;
pub mod roster;
pub mod secret;
pub mod session;
pub mod shamir;
pub mod shares;
pub mod spec;
pub mod sum;
pub mod survivors;
pub mod thresholds;
pub mod unmask;
pub mod unmasking;
pub mod upload;
pub mod weight;
pub mod wire;

#[cfg(test)]
mod testing;
