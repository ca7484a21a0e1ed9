//! Secure aggregation: many hospitals add up their updates so that the hub learns the sum and nothing else.
//!
//! What belongs here: how a vector becomes ring integers and back ([`ring`], [`weight`], [`layout`]), and how ring
//! vectors are added ([`sum`]).
//! What does not: sockets, files, clocks, random sources (they come in as arguments), Kubernetes, and anything about
//! studies or rounds beyond the digests that bind a session to them.
//!
//! `docs/guides/secure-aggregation.md` says what is promised, against whom and under which assumptions.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod layout;
pub mod ring;
pub mod sum;
pub mod weight;
