//! The API vocabulary `consilium.health/v1alpha1`: ten kinds, their bounds and
//! their CEL rules, and the parsing of what a spec means.
//!
//! **Belongs here:** types, schemas, validation rules, printer columns, and the
//! conversion of a spec into the pure types of `federation`.
//! **Does not belong here:** a client, a controller, or any decision. The YAML
//! under `generated/` is written by `cargo xtask generate` and compared in CI.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod clinical_plan;
pub mod conditions;
pub mod model_deployment;
pub mod model_hazard;
pub mod model_promotion;
pub mod model_release;
pub mod roster;
pub mod round_task;
pub mod schema;
mod site_limits;
pub mod site_policy;
pub mod study;
pub mod training_round;
pub mod trust_site;
pub mod unreadable;
pub mod values;
pub mod watched;

pub use clinical_plan::{ClinicalPlan, ClinicalPlanSpec, ClinicalPlanStatus};
pub use model_deployment::{ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus};
pub use model_hazard::{ModelHazard, ModelHazardSpec};
pub use model_promotion::{ModelPromotion, ModelPromotionSpec, ModelPromotionStatus};
pub use model_release::{ModelRelease, ModelReleaseSpec, ModelReleaseStatus};
pub use round_task::{RoundTask, RoundTaskSpec, RoundTaskStatus};
pub use site_policy::{SitePolicy, SitePolicySpec, SitePolicyStatus};
pub use study::{FederatedStudy, FederatedStudySpec, FederatedStudyStatus, WrittenSpec};
pub use training_round::{TrainingRound, TrainingRoundSpec, TrainingRoundStatus};
pub use trust_site::{TrustSite, TrustSiteSpec, TrustSiteStatus};
pub use unreadable::Unreadable;
pub use watched::{Kind, Unread, Watched};

/// API group.
pub const GROUP: &str = "consilium.health";
/// API version.
pub const VERSION: &str = "v1alpha1";

#[cfg(test)]
mod drawn_tests;
#[cfg(test)]
mod tests;
