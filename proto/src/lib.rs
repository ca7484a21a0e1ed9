//! The wire contract: hub and hospital (`hub.proto`), agent and task pod (`task.proto`).
//!
//! **Belongs here:** the generated messages and their conversion to and from the
//! domain types, which is where everything from the other side is parsed.
//! **Does not belong here:** sockets, TLS, retries (gateway and link), decisions.
#![forbid(unsafe_code)]

/// Generated messages, clients and servers.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod v1 {
    tonic::include_proto!("consilium.v1");
}

mod assignment;
mod report;
mod text;

use jiff::Timestamp;

pub use report::{read_report, said};
pub use text::WireError;

/// Metadata of each call of an agent: a name that its process took at its start, by which two with one certificate are
/// told apart.
pub const INSTANCE: &str = "consilium-instance";
/// Metadata of a refusal: its kind, where the code says too little.
pub const REFUSAL: &str = "consilium-refusal";
/// The kind of a refusal: two agents speak with this hospital's certificate.
pub const TWO_AGENTS: &str = "TwoAgents";

/// A time that the other side says of its clock; none where it says none, or what is none.
pub fn clock(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// The largest message that either side accepts: a full chunk and its envelope.
pub const MAX_MESSAGE_BYTES: usize = 5 << 20;
/// Chunks that a hospital has on their way at a time. The gateway reads no more of one hospital at once, and its windows are
/// made for this many: were more sent, those that wait would fill the connection and hold up those that are read.
pub const CHUNKS_IN_FLIGHT: usize = 2;
/// Bytes of a file sent in one part.
pub const FILE_PART_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;
