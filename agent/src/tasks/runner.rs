//! Where this hospital's tasks are written down and their tries run: a cluster's API server with Jobs, or a folder with
//! processes. What is decided about them is the same.

use std::sync::Arc;

use consilium_crds::{FederatedStudySpec, RoundTask, RoundTaskSpec, RoundTaskStatus};
use consilium_federation::assignment::RoundWork;
use jiff::Timestamp;

use super::decide::TaskSeen;
use super::error::ControlError;
use super::job::Mode;
use super::read::Started;

/// What there is at one moment.
pub trait Sight: Send + Sync {
    /// The tasks.
    fn tasks(&self) -> &[Arc<RoundTask>];

    /// A task with its tries. One that this process has just started counts, also where it is not to be seen yet.
    fn see(&self, task: &RoundTask, started: Option<Started>, now: Timestamp) -> TaskSeen;

    /// Whether something of this try is left.
    fn has_try(&self, name: &str) -> bool;
}

/// Makes and removes tasks and their tries. Everything may be asked for again, and is then as good as once.
#[tonic::async_trait]
pub trait Runner: Send + Sync + 'static {
    /// What there is now.
    fn look(&self) -> Box<dyn Sight>;

    /// Writes a task down.
    async fn create_task(&self, name: &str, spec: RoundTaskSpec) -> Result<(), ControlError>;

    /// Starts a try. Asked again for one try, it is given the same token.
    async fn start_try(
        &self,
        task: &RoundTask,
        study: &FederatedStudySpec,
        which: (u32, Mode),
        token: &str,
    ) -> Result<(), ControlError>;

    /// Stops a try. It is to be seen until it has ended: the next one must not begin beside it.
    async fn stop_try(&self, name: &str) -> Result<(), ControlError>;

    /// Removes a task and all that it owns.
    async fn delete_task(&self, name: &str) -> Result<(), ControlError>;

    /// Replaces the status of a task but for its irreversible act, if it changed.
    async fn status(&self, task: &RoundTask, new: &RoundTaskStatus) -> Result<(), ControlError>;

    /// Writes down what tasks have used of what a policy can bound. Where nothing is bounded there is nothing to write.
    fn count(&self, _now: Timestamp) -> Result<(), ControlError> {
        Ok(())
    }

    /// Removes what tasks that are gone have left.
    async fn clean(&self, now: Timestamp) -> Result<(), ControlError>;
}

/// The spec of the task for one part in a round.
pub(super) fn task_spec(round_uid: &str, work: &RoundWork, spec: &FederatedStudySpec) -> RoundTaskSpec {
    RoundTaskSpec {
        study: work.study.clone(),
        study_uid: work.study_uid.clone(),
        spec_digest: work.spec_digest,
        round_uid: round_uid.to_owned(),
        round: work.round,
        kind: work.kind,
        model: work.model,
        image: spec.trainer.image.clone(),
        gpus: spec.trainer.gpus,
        deadline: work.deadline,
    }
}
