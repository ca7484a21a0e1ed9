//! `RoundTask.status.irreversible`, written by this module alone.

use consilium_crds::RoundTask;
use consilium_crds::round_task::Irreversible;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::link::{Announce, AnnounceError, Answer, Recalled};

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
    fn recall<'a>(&'a self, task: &'a str) -> Answer<'a, Result<Recalled, AnnounceError>> {
        Box::pin(async move {
            let found = self.api.get_opt(task).await.map_err(|e| api_error(task, &e))?;
            let alive = found.filter(|task| task.metadata.deletion_timestamp.is_none());
            let alive = alive.ok_or_else(|| AnnounceError::Gone(task.to_owned()))?;
            let version = alive.metadata.resource_version.unwrap_or_default();
            Ok(Recalled { act: alive.status.and_then(|status| status.irreversible), version })
        })
    }

    fn announce<'a>(
        &'a self,
        task: &'a str,
        act: &'a Irreversible,
        over: &'a str,
    ) -> Answer<'a, Result<(), AnnounceError>> {
        Box::pin(async move {
            // The version makes the API server refuse the write if anyone wrote the task since it was read.
            let patch = json!({"metadata": {"resourceVersion": over}, "status": {"irreversible": act}});
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            self.api.patch_status(task, &params, &Patch::Merge(&patch)).await.map_err(|e| api_error(task, &e))?;
            Ok(())
        })
    }
}

fn api_error(task: &str, error: &kube::Error) -> AnnounceError {
    match error {
        kube::Error::Api(status) if status.code == 404 => AnnounceError::Gone(task.to_owned()),
        kube::Error::Api(status) if status.code == 409 => AnnounceError::Changed(task.to_owned()),
        other => AnnounceError::Api { task: task.to_owned(), why: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use consilium_federation::Digest;
    use kube::client::Body;
    use serde_json::Value;
    use tonic::codegen::http::{Request, Response, StatusCode};

    use super::*;

    /// Requests as they came: method and path, and the body.
    type Asked = Arc<Mutex<Vec<(String, Value)>>>;

    /// An API server that answers everything with one thing, and what it was asked.
    fn server(status: u16, answer: Value) -> (Client, Asked) {
        let asked = Asked::default();
        let log = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (log, answer) = (log.clone(), answer.clone());
            async move {
                let line = format!("{} {}", request.method(), request.uri().path());
                let bytes = request.into_body().collect_bytes().await.unwrap();
                log.lock().unwrap().push((line, serde_json::from_slice(&bytes).unwrap_or(Value::Null)));
                let mut response = Response::new(Body::from(serde_json::to_vec(&answer).unwrap()));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok::<_, std::io::Error>(response)
            }
        });
        (Client::new(service, "consilium-tasks"), asked)
    }

    fn task(version: &str) -> Value {
        let digest = Digest::of(b"x");
        json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "RoundTask",
            "metadata": {"name": "t", "resourceVersion": version},
            "spec": {
                "study": "research/hippocampus", "studyUID": "s", "specDigest": digest, "roundUID": "r", "round": 1,
                "kind": "Train", "model": digest, "image": "i", "gpus": 0, "deadline": "2026-01-01T00:00:00Z",
            },
        })
    }

    fn act() -> Irreversible {
        Irreversible { attempt: 1, step: "Share".into(), ledger_head: Digest::of(b"head") }
    }

    /// Without the precondition two agents on copies of one volume would both show an act, and both send.
    #[tokio::test]
    async fn an_act_is_written_over_the_version_that_was_read() {
        let (client, asked) = server(200, task("17"));
        let announce = KubeAnnounce::new(client, "consilium-tasks");
        let recalled = announce.recall("t").await.unwrap();
        assert_eq!((recalled.act, recalled.version.as_str()), (None, "17"));
        announce.announce("t", &act(), "17").await.unwrap();
        let asked = asked.lock().unwrap();
        let (line, body) = asked.last().unwrap();
        assert!(line.starts_with("PATCH ") && line.ends_with("/roundtasks/t/status"), "{line}");
        assert_eq!(body["metadata"]["resourceVersion"], "17");
        assert_eq!(body["status"]["irreversible"]["step"], "Share");
    }

    #[tokio::test]
    async fn a_conflict_and_a_missing_task_are_told_apart() {
        let failure = |code: u16, reason: &str| json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
        for (code, reason) in [(409, "Conflict"), (404, "NotFound"), (500, "InternalError")] {
            let announce = KubeAnnounce::new(server(code, failure(code, reason)).0, "consilium-tasks");
            let error = announce.announce("t", &act(), "17").await.unwrap_err();
            let fits = match code {
                409 => matches!(error, AnnounceError::Changed(_)),
                404 => matches!(error, AnnounceError::Gone(_)),
                _ => matches!(error, AnnounceError::Api { .. }),
            };
            assert!(fits, "{code}: {error}");
        }
    }
}
