//! The hub: what runs next to the API objects of a federation and speaks to its hospitals.
//!
//! **Belongs here:** the controllers (the only place that calls Kubernetes), the gateway (the only place that
//! opens a socket to hospitals), the streamed sum, the blob store that is the hub's journal, and what an SRE sees
//! of them.
//! **Does not belong here:** decisions that can be made from values alone (`federation`), the aggregation protocol
//! (`secagg`), wire formats (`proto`), and anything about scans.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod admin;
pub mod aggregation;
pub mod attempts;
pub mod controllers;
pub mod driver;
pub mod gateway;
pub mod hub;
pub mod init_port;
pub mod instances;
pub mod metrics;
pub mod models;
pub mod news;
pub mod store;
