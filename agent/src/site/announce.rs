//! `RoundTask.status.irreversible`, written by this module alone.

use consilium_crds::RoundTask;
use consilium_crds::round_task::Irreversible;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::link::{Announce, AnnounceError, Answer};

const MANAGER: &str = "consilium-agent-link";

/// The hospital's API server as the place where irreversible acts are shown.
pub struct KubeAnnounce {
    api: Api<RoundTask>,
}

impl KubeAnnounce {
    /// For the tasks of a namespace.
    pub fn new(client: Client, task_namespace: &str) -> Self {
        Self { api: Api::namespaced(client, task_namespace) }
    }
}

impl Announce for KubeAnnounce {
    fn recall<'a>(&'a self, task: &'a str) -> Answer<'a, Result<Option<Irreversible>, AnnounceError>> {
        Box::pin(async move {
            let found = self.api.get_opt(task).await.map_err(|e| api_error(task, &e))?;
            let alive = found.filter(|task| task.metadata.deletion_timestamp.is_none());
            let alive = alive.ok_or_else(|| AnnounceError::Gone(task.to_owned()))?;
            Ok(alive.status.and_then(|status| status.irreversible))
        })
    }

    fn announce<'a>(&'a self, task: &'a str, act: &'a Irreversible) -> Answer<'a, Result<(), AnnounceError>> {
        Box::pin(async move {
            let patch = json!({"status": {"irreversible": act}});
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            self.api.patch_status(task, &params, &Patch::Merge(&patch)).await.map_err(|e| api_error(task, &e))?;
            Ok(())
        })
    }
}

fn api_error(task: &str, error: &kube::Error) -> AnnounceError {
    match error {
        kube::Error::Api(status) if status.code == 404 => AnnounceError::Gone(task.to_owned()),
        other => AnnounceError::Api { task: task.to_owned(), why: other.to_string() },
    }
}
