//! The pod of an Init task, played: no kubelet runs here.

use consilium_federation::Digest;
use consilium_federation::model::{ModelManifest, Tensor, TensorSchema};
use consilium_federation::task::TaskFile;
use consilium_operator::hub::Hub;
use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::task_port_client::TaskPortClient;
use consilium_proto::v1::{FetchRequest, FilePart, FileStart, TrainerStateRequest};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use tonic::Request;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::hospital::ELEMENTS;
use crate::progress::until;
use crate::world::TASKS;

/// Waits for the Job and its credential, fetches, delivers zeros.
pub async fn play_init(admin: &Client, port: u16, study: &str) {
    let jobs: Api<Job> = Api::namespaced(admin.clone(), TASKS);
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), TASKS);
    let (job, secret) = until("the Init Job and its credential", async || {
        let all = jobs.list(&Default::default()).await.ok()?.items;
        let of = |job: &Job| job.annotations().get("consilium.health/study") == Some(&format!("research/{study}"));
        let job = all.into_iter().find(|job| job.metadata.deletion_timestamp.is_none() && of(job))?;
        let secret = secrets.get_opt(&job.name_any()).await.ok()??;
        Some((job, secret))
    })
    .await;
    assert_eq!(secret.owner_references()[0].uid, job.uid().unwrap());
    let text = |key: &str| String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap();
    let mut client = connect(port, &text("ca.crt")).await;
    let refused = client.fetch(Request::new(FetchRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let token = text("token");
    let mut fetched = Vec::new();
    // The operator's cache may not show the Job yet.
    let mut parts =
        until("the token is known", async || client.clone().fetch(with_token(&token, FetchRequest {})).await.ok())
            .await
            .into_inner();
    while let Some(part) = parts.message().await.unwrap() {
        if let Some(Part::Data(data)) = part.part {
            fetched.extend_from_slice(&data);
        }
    }
    let task: TaskFile = serde_json::from_slice(&fetched).unwrap();
    assert_eq!((task.study.as_str(), task.seed), (format!("research/{study}").as_str(), 7));
    let state = client.trainer_state(with_token(&token, TrainerStateRequest::default())).await.unwrap();
    assert!(!state.into_inner().failed);
    client.deliver(with_token(&token, tokio_stream::iter(model()))).await.unwrap();
}

async fn connect(port: u16, certificate: &str) -> TaskPortClient<Channel> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificate)).domain_name("127.0.0.1");
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap().tls_config(tls).unwrap();
    TaskPortClient::new(endpoint.connect().await.unwrap())
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn model() -> Vec<FilePart> {
    let payload = vec![0u8; ELEMENTS * 4];
    let schema = TensorSchema(vec![Tensor { name: "w".into(), shape: vec![ELEMENTS as u64] }]);
    let mut file = ModelManifest::new(schema, vec![Digest::of(&payload)]).unwrap().safetensors_header();
    file.extend(payload);
    let start = Part::Start(FileStart { path: "model.safetensors".into(), size: file.len() as u64 });
    [start, Part::Data(file.into())].map(|part| FilePart { part: Some(part) }).into()
}

/// Checks that each parameter of a model is what the hospitals' updates add up to.
pub async fn check_model(hub: &Hub, model: Digest, expected: f32) {
    let manifest = hub.store().get_manifest(model).await.unwrap();
    let bytes = hub.store().get_object(manifest.chunks[0]).await.unwrap();
    let values: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(values.len(), ELEMENTS);
    assert!(values.iter().all(|v| (v - expected).abs() < 1e-3), "{} instead of {expected}", values[0]);
}
