//! What runs on the inference node: one released model behind the Open Inference Protocol v2 (REST).
//!
//! Here belong checking a release before it is loaded, the protocol, and batching of requests. Here do not belong
//! networks and the sliding window (`consilium-imaging`), or deciding which release a hospital serves: that is its
//! agent's, and it starts this server with the digests that it allows.

pub mod ask;
pub mod batcher;
pub mod describe;
pub mod encoding;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod numbers;
pub mod protocol;
pub mod release;
pub mod room;
pub mod server;
pub mod stage;
