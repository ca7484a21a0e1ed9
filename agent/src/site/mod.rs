//! The SitePolicy: watched, so that a change counts at once, and told what the agent sees.

mod announce;
mod decide;
mod record;
mod status;
mod trouble;
mod unread;
mod volume;
mod watch;

pub use announce::KubeAnnounce;
pub use decide::{Standing, StatusInputs, decide};
pub use record::{in_force, take_countersigned};
pub use status::run;
pub use trouble::{Troubled, tell_trouble};
pub use volume::{check_hub, check_volume, set_back};
pub use watch::{Pace, Synced, watch};

/// Name of the one SitePolicy.
pub const POLICY_NAME: &str = "default";
