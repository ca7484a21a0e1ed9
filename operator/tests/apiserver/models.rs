//! The door for models, by tokens and rights as a real API server gives them.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use consilium_crds::ModelRelease;
use consilium_federation::Digest;
use consilium_federation::model::{ModelManifest, Tensor, TensorSchema};
use consilium_operator::controllers::models::Rights;
use consilium_operator::models::{AUDIENCE, router};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::events::v1::Event;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tower::ServiceExt as _;

use crate::progress::until;
use crate::world::{Running, apply};

const RBAC: &str = "rbac.authorization.k8s.io/v1";

async fn token(admin: &Client, account: &str, audience: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "research");
    let spec =
        TokenRequestSpec { audiences: vec![audience.into()], expiration_seconds: Some(600), bound_object_ref: None };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let made = accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
    made.status.unwrap().token
}

/// A ServiceAccount that may do this to releases of `research`, on one of them or all.
async fn account(admin: &Client, name: &str, verb: &str, release: Option<&str>) {
    let meta = json!({"name": name, "namespace": "research"});
    let mut rule = json!({"apiGroups": ["consilium.health"], "resources": ["modelreleases"], "verbs": [verb]});
    if let Some(release) = release {
        rule["resourceNames"] = json!([release]);
    }
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({"apiVersion": RBAC, "kind": "Role", "metadata": meta, "rules": [rule]}),
        json!({"apiVersion": RBAC, "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "research"}]}),
    ] {
        apply(admin, object).await;
    }
}

/// Who may take a model is the hub administrator's to say, by roles; a token for the API server opens nothing here, and what
/// was taken stands at the release.
pub async fn go_out_and_in_by_right(admin: &Client, running: &Running, release: &str) {
    account(admin, "reader", "pull", Some(release)).await;
    account(admin, "writer", "push", None).await;
    let door = router(running.hub.store().clone(), Arc::new(Rights(running.context.clone())));
    let ask = async |method: &str, path: &str, token: &str, body: Vec<u8>| {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
        let request = request.header("content-length", body.len()).body(Body::from(body)).unwrap();
        door.clone().oneshot(request).await.unwrap()
    };
    let path = format!("/v1/research/releases/{release}/payload");
    let reader = token(admin, "reader", AUDIENCE).await;
    // The authorizer has to have heard of the role.
    until("the right is known", async || {
        let answer = ask("GET", &path, &reader, vec![]).await;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    let answer = ask("GET", &path, &reader, vec![]).await;
    let payload = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    let releases: Api<ModelRelease> = Api::namespaced(admin.clone(), "research");
    let model = releases.get(release).await.unwrap().spec.model;
    running.hub.store().get_manifest(model).await.unwrap().verify(&payload).unwrap();

    let wrong = token(admin, "reader", "https://kubernetes.default.svc").await;
    assert_eq!(ask("GET", &path, &wrong, vec![]).await.status(), StatusCode::UNAUTHORIZED);
    let writer = token(admin, "writer", AUDIENCE).await;
    let refused = ask("GET", &path, &writer, vec![]).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let why = String::from_utf8(to_bytes(refused.into_body(), 1 << 16).await.unwrap().to_vec()).unwrap();
    assert!(
        why.contains("system:serviceaccount:research:writer may not pull") && why.contains("consilium-models-pull"),
        "{why}"
    );
    for other in ["/v1/research/releases/other/payload", "/v1/elsewhere/releases/other/payload"] {
        assert_eq!(ask("GET", other, &reader, vec![]).await.status(), StatusCode::FORBIDDEN, "{other}");
    }

    let numbers = 1.5_f32.to_le_bytes();
    let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![1] }]);
    let manifest = ModelManifest::new(schema, vec![Digest::of(&numbers)]).unwrap();
    let file = [manifest.safetensors_header(), numbers.to_vec()].concat();
    until("the right to push is known", async || {
        let answer = ask("POST", "/v1/research/models", &writer, file.clone()).await;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    assert!(running.hub.store().is_from(manifest.digest(), "research").await.unwrap());
    let events: Api<Event> = Api::namespaced(admin.clone(), "research");
    for (reason, who, what) in [("ModelPulled", "reader", model), ("ModelPushed", "writer", manifest.digest())] {
        until("what was taken stands where others look", async || {
            let all = events.list(&Default::default()).await.ok()?.items;
            let said = |event: &Event| {
                let note = event.note.clone().unwrap_or_default();
                event.reason.as_deref() == Some(reason) && note.contains(who) && note.contains(&what.to_string())
            };
            all.iter().any(said).then_some(())
        })
        .await;
    }
}
