use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body as Answer;
use axum::http::{Request, Response};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::Enforcement;
use crate::policy::tests::spec;

/// A guard at an API server that has these RoundTasks, and what was deleted there.
fn guard(tasks: Vec<Value>) -> (Stopper, Arc<Mutex<Vec<String>>>) {
    let deleted: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&deleted);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (path, list) = (request.uri().path().to_owned(), tasks.clone());
        let body = match request.method().as_str() {
            "DELETE" => {
                told.lock().unwrap().push(path);
                json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})
            }
            _ => json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": list}),
        };
        async move { Ok::<_, Infallible>(Response::new(Answer::from(body.to_string()))) }
    });
    let client = kube::Client::new(service, "consilium-tasks");
    let guard = Guard {
        watches: client.clone(),
        calls: client,
        namespace: "consilium-tasks".into(),
        own_namespace: "consilium-agent".into(),
        hazards: crate::policy::SeenHazards::default(),
        image: None,
        policy: watch::channel(None).1,
        synced: watch::channel(true).1,
        enforcement: watch::channel(Enforcement::Enforced).1,
        unrecorded: Unrecorded::default(),
        metrics: Metrics::new().unwrap(),
        clock: Clock::system(),
        shutdown: CancellationToken::new(),
    };
    (Stopper::new(&guard), deleted)
}

fn task(uid: &str, kind: &str) -> Value {
    let digest = consilium_federation::Digest::of(b"m");
    json!({
        "apiVersion": "consilium.health/v1alpha1", "kind": "RoundTask", "metadata": {"name": "task", "uid": uid},
        "spec": {"study": "research/hippocampus", "studyUID": "uid-1", "specDigest": digest, "roundUID": "r", "round": 3,
            "kind": kind, "model": digest, "image": spec().trainer.image, "gpus": 8, "deadline": "2199-01-01T00:00:00Z"},
    })
}

/// A watch that is behind, or whose connection is dead, says that a RoundTask is gone which is there: a training of six
/// days would be ended for nothing.
#[tokio::test]
async fn what_stands_behind_is_asked_for_before_an_orphan_is_stopped() {
    let behind =
        |uid: Option<&str>| Behind { kind: "RoundTask".into(), name: "task".into(), uid: uid.map(str::to_owned) };
    let orphan = |behind| Stop { kind: Kind::Job, name: "job".into(), uid: "j".into(), why: "w".into(), behind };
    let rows = [
        ("it is there", vec![task("u", "Train")], vec![behind(Some("u"))], Done::Kept),
        ("it is there, by name", vec![task("u", "Train")], vec![behind(None)], Done::Kept),
        ("it is gone", vec![], vec![behind(Some("u"))], Done::Stopped),
        ("another has its name", vec![task("other", "Train")], vec![behind(Some("u"))], Done::Stopped),
        ("nobody can judge it", vec![task("u", "Guess")], vec![behind(Some("u"))], Done::Stopped),
        ("the policy says so", vec![task("u", "Train")], vec![], Done::Stopped),
    ];
    for (case, tasks, behind, expected) in rows {
        let (stopper, deleted) = guard(tasks);
        let done = stopper.one(&orphan(behind)).await.unwrap();
        assert_eq!(done, expected, "{case}");
        assert_eq!(deleted.lock().unwrap().len(), usize::from(expected == Done::Stopped), "{case}");
    }
}
