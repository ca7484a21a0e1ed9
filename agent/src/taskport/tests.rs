//! The port and the courier against each other, over TLS on loopback.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use consilium_federation::assignment::ItemState;
use consilium_federation::ladder::Stage;
use consilium_federation::model::{Tensor, TensorSchema};
use consilium_federation::round::SiteReason;
use consilium_federation::task::{OutFile, OutManifest, TaskFile};
use consilium_proto::v1::FileStart;
use consilium_proto::v1::file_part::Part;
use consilium_proto::v1::task_port_client::TaskPortClient;
use serde_json::json;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::*;
use crate::courier::{CourierError, Pace, PortArgs, deliver, fetch};

mod folders;
mod models;

const PACE: Pace = Pace {
    look: Duration::from_millis(1),
    poll: Duration::from_millis(5),
    first: Duration::from_millis(5),
    longest: Duration::from_millis(20),
};
const TASK: &str = "task-uid";
const ROUND: &str = "round-uid";

/// The agent around the port: objects in memory, and a word that a test sets.
#[derive(Clone)]
struct Hospital {
    objects: Arc<BTreeMap<Digest, Bytes>>,
    word: Arc<StdMutex<Decision>>,
}

#[tonic::async_trait]
impl Backend for Hospital {
    async fn object(&self, digest: Digest) -> Result<Bytes, Status> {
        self.objects.get(&digest).cloned().ok_or_else(|| Status::unavailable("no such object"))
    }
    fn judge(&self, _: &str, _: &RoundWork, _: &FederatedStudySpec) -> Result<Decision, StateError> {
        Ok(self.word.lock().unwrap().clone())
    }
    fn judge_release(
        &self,
        _: &DeployEntry,
        _: (&ModelReleaseSpec, Option<&ClinicalPlan>),
    ) -> Result<ReleaseDecision, StateError> {
        Ok(ReleaseDecision::Allowed(crate::policy::release_tests::approved(Stage::Shadow)))
    }
    fn delivered(&self, _: TaskKind, _: &'static str) {}
    fn now(&self) -> Timestamp {
        "2026-06-01T12:00:00Z".parse().unwrap()
    }
}

fn spec() -> FederatedStudySpec {
    serde_json::from_value(json!({
        "sites": [{"name": "alder"}],
        "trainer": {"image": "r/t@sha256:0", "gpus": 0, "config": {"epochsPerRound": 1}},
        "initialModel": {"seed": 7},
        "aggregation": {"secure": {"protocol": "None", "minContributors": 3}, "clipNorm": "10"},
        "rounds": {"max": 5, "quorum": 3, "deadline": "1h"},
    }))
    .unwrap()
}

/// A port with one task in its third try, and the folder of that task's pod.
struct Setup {
    hospital: Hospital,
    state: State,
    desk: Desk,
    args: PortArgs,
    certificate: String,
    manifest: ModelManifest,
    shutdown: CancellationToken,
    _folders: Vec<tempfile::TempDir>,
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn model() -> (ModelManifest, Vec<u8>) {
    let payload: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensors = vec![Tensor { name: "a".into(), shape: vec![2] }, Tensor { name: "b".into(), shape: vec![1] }];
    (ModelManifest::new(TensorSchema(tensors), vec![Digest::of(&payload)]).unwrap(), payload)
}

async fn setup(kind: TaskKind) -> Setup {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (volume, pod) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = State::open(volume.path(), [7; 32]).unwrap();
    let (manifest, payload) = model();
    let objects = BTreeMap::from([
        (manifest.digest(), Bytes::from(manifest.to_bytes())),
        (manifest.chunks[0], Bytes::from(payload)),
    ]);
    let hospital = Hospital { objects: Arc::new(objects), word: Arc::new(StdMutex::new(Decision::Allowed)) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("https://{}", listener.local_addr().unwrap());
    let desk = Desk::default();
    let identity = desk.identity(&state, &server).unwrap();
    let port = Port::new(state.clone(), desk.clone(), volume.path().join("incoming"), hospital.clone());
    let shutdown = CancellationToken::new();
    let (stop, serving) = (shutdown.clone(), identity.clone());
    tokio::spawn(async move { serve(listener, &serving, port, stop).await });

    let credential = pod.path().join("credential");
    fs::create_dir_all(&credential).unwrap();
    fs::write(credential.join("ca.crt"), &identity.certificate).unwrap();
    let args = PortArgs { root: pod.path().join("consilium"), results: None, server, credential };
    fs::create_dir_all(&args.root).unwrap();
    let setup = Setup {
        hospital,
        state,
        desk,
        args,
        certificate: identity.certificate,
        manifest,
        shutdown,
        _folders: vec![volume, pod],
    };
    setup.grant("token-3", 3);
    setup.know(kind, None);
    setup
}

impl Setup {
    fn grant(&self, token: &str, number: u32) {
        let grant = Grant::Task { uid: TASK.into(), name: "study-r1-train".into(), r#try: number };
        self.state.put_token(Digest::of(token.as_bytes()), &grant).unwrap();
        self.show(token);
    }

    /// The pod holds this token from now on.
    fn show(&self, token: &str) {
        fs::write(self.args.credential.join("token"), token).unwrap();
    }

    fn know(&self, kind: TaskKind, ended_try: Option<u32>) {
        let work = RoundWork {
            study: "research/hippocampus".parse().unwrap(),
            study_uid: "s".into(),
            spec_digest: spec().digest(),
            round: 1,
            kind,
            model: self.manifest.digest(),
            schema: self.manifest.tensors.digest(),
            roster_size: 4,
            attempt: 0,
            step: None,
            roster: None,
            inputs: None,
            deadline: "2026-06-02T00:00:00Z".parse().unwrap(),
        };
        let entry = TaskEntry { round_uid: ROUND.into(), work, spec: Arc::new(spec()), weight_bucket: 10, ended_try };
        self.desk.set_tasks(BTreeMap::from([(TASK.to_owned(), entry)]));
    }

    fn out(&self) -> std::path::PathBuf {
        self.args.root.join("out")
    }

    /// Writes a trainer's result with its manifest, and the task it is for.
    fn result(&self, kind: TaskKind, files: &[(&str, Vec<u8>)]) {
        fs::create_dir_all(self.out()).unwrap();
        let entry = self.desk.task(TASK).unwrap();
        let task = TaskFile { kind, ..send::task_file(ROUND, &entry.work, &spec(), &[7; 32]) };
        fs::write(self.args.root.join("task.json"), serde_json::to_vec(&task).unwrap()).unwrap();
        let mut manifest = OutManifest { files: vec![] };
        for (path, content) in files {
            fs::write(self.out().join(path), content).unwrap();
            manifest.files.push(OutFile {
                path: (*path).into(),
                size: content.len() as u64,
                digest: Digest::of(content),
            });
        }
        fs::write(self.out().join("MANIFEST"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    fn trained(&self, values: [f32; 3]) {
        let mut update = self.manifest.safetensors_header();
        update.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        // As Python's json.dumps writes a loss that is no number: it must not cost the hospital its round.
        let metrics = br#"{"examples": 52, "metrics": {"loss": NaN}}"#.to_vec();
        self.result(TaskKind::Train, &[("update.safetensors", update), ("metrics.json", metrics)]);
    }

    async fn client(&self) -> TaskPortClient<Channel> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.certificate));
        let endpoint = Endpoint::from_shared(self.args.server.clone()).unwrap().tls_config(tls).unwrap();
        TaskPortClient::new(endpoint.connect().await.unwrap())
    }

    /// Sends parts as they are, past the courier's own care.
    async fn send(&self, parts: Vec<Part>) -> Result<(), Status> {
        let parts: Vec<_> = parts.into_iter().map(|part| FilePart { part: Some(part) }).collect();
        let mut request = Request::new(tokio_stream::iter(parts));
        request.metadata_mut().insert("authorization", "Bearer token-3".parse().unwrap());
        self.client().await.deliver(request).await.map(|_| ())
    }
}

fn refused(result: Result<(), CourierError>) -> String {
    match result {
        Err(CourierError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

fn start(path: &str, size: u64) -> Part {
    Part::Start(FileStart { path: path.into(), size })
}

fn data(content: &[u8]) -> Part {
    Part::Data(Bytes::copy_from_slice(content))
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> T {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[tokio::test]
async fn fetch_brings_the_task_and_the_model_and_clears_old_results() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.0; 3]);
    fs::create_dir_all(setup.args.root.join("checkpoint")).unwrap();
    fs::write(setup.args.root.join("checkpoint/step"), b"7").unwrap();
    fetch(&setup.args, &PACE).await.unwrap();
    let task: TaskFile = read(&setup.args.root.join("task.json"));
    assert_eq!((task.seed, task.rounds, task.base), (7, 5, Some(setup.manifest.digest())));
    let file = fs::read(setup.args.root.join("model.safetensors")).unwrap();
    let (schema, header) = consilium_federation::model::parse_safetensors_header(&file).unwrap();
    assert_eq!(schema, setup.manifest.tensors);
    setup.manifest.verify(&file[header..]).unwrap();
    assert!(!setup.out().join("MANIFEST").exists(), "an old result must not be delivered as a new one");
    assert!(setup.args.root.join("checkpoint/step").exists(), "a checkpoint saves the training so far");
}

/// A task that waited in a queue while the hospital changed its mind must not get the model.
#[tokio::test]
async fn fetch_asks_the_hospital_again_and_goes_on_when_it_agrees() {
    let setup = setup(TaskKind::Train).await;
    let denied = Decision::Refused { reason: SiteReason::DeniedByPolicy, message: "participation is Disabled".into() };
    *setup.hospital.word.lock().unwrap() = denied;
    let mut request = Request::new(FetchRequest {});
    request.metadata_mut().insert("authorization", "Bearer token-3".parse().unwrap());
    let status = setup.client().await.fetch(request).await.map(|_| ()).unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "participation is Disabled"));
    let waiting = {
        let args = setup.args.clone();
        tokio::spawn(async move { fetch(&args, &PACE).await })
    };
    *setup.hospital.word.lock().unwrap() = Decision::Allowed;
    waiting.await.unwrap().unwrap();
    assert!(setup.args.root.join("model.safetensors").exists());
}

#[tokio::test]
async fn an_update_is_durable_when_it_is_acknowledged_and_its_folder_is_cleared() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.5, -0.5, 0.25]);
    deliver(&setup.args, &PACE).await.unwrap();
    let stored = setup.state.update(ROUND).unwrap().unwrap();
    assert_eq!((stored.meta.examples, stored.meta.roster_size, stored.meta.clipped), (50, 4, false));
    assert_eq!(stored.chunks.len(), 2);
    assert!(fs::read_dir(&setup.args.root).unwrap().next().is_none(), "the volume has other tasks to hold");
}

/// A reply that got lost must not cost a training; a different result under the same try must not slip in.
#[tokio::test]
async fn the_same_result_may_come_twice_and_another_may_not() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.5, -0.5, 0.25]);
    deliver(&setup.args, &PACE).await.unwrap();
    let first = setup.state.update(ROUND).unwrap().unwrap();
    setup.trained([0.5, -0.5, 0.25]);
    deliver(&setup.args, &PACE).await.unwrap();
    setup.trained([0.5, -0.5, 0.75]);
    assert!(refused(deliver(&setup.args, &PACE).await).contains("another result"));
    assert_eq!(setup.state.update(ROUND).unwrap().unwrap(), first);
    assert!(setup.desk.rejected(TASK).is_none());
}

#[tokio::test]
async fn a_wrong_token_and_a_replaced_try_are_turned_away() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.0; 3]);
    setup.show("guess");
    assert!(refused(deliver(&setup.args, &PACE).await).contains("token"));
    setup.grant("token-4", 4);
    setup.show("token-3");
    assert!(refused(deliver(&setup.args, &PACE).await).contains("try 3 has been replaced"));
    assert!(refused(fetch(&setup.args, &PACE).await).contains("try 3"));
    assert!(setup.state.update(ROUND).unwrap().is_none());
}

/// A pod must not trust a port that is not the agent's.
#[tokio::test]
async fn another_certificate_is_not_spoken_to() {
    let setup = setup(TaskKind::Train).await;
    let other = State::open(setup._folders[1].path().join("other").as_path(), [1; 32]).unwrap();
    let stranger = load_or_make(&other, &setup.args.server).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&stranger.certificate));
    let endpoint = Endpoint::from_shared(setup.args.server.clone()).unwrap().tls_config(tls).unwrap();
    assert!(endpoint.connect().await.is_err());
}

/// One hospital's diverged training is that hospital's matter, with the tensor named.
#[tokio::test]
async fn a_nan_is_rejected_by_name_and_for_good() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.0, 0.0, f32::NAN]);
    let why = refused(deliver(&setup.args, &PACE).await);
    assert!(why.contains("\"b\"") && why.contains("element 0"), "{why}");
    assert_eq!(setup.desk.rejected(TASK), Some(why));
    assert!(setup.state.update(ROUND).unwrap().is_none());
}

/// The pod may be anybody's image: what it sends must not fill the agent's disk or stop its work.
#[tokio::test]
async fn hostile_streams_are_refused_and_leave_nothing() {
    let setup = setup(TaskKind::Train).await;
    let update = "update.safetensors";
    let cases = [
        (vec![start(update, 100), data(&[0; 50])], "ends 50 bytes early"),
        (vec![start(update, 10), data(&[0; 11])], "longer than announced"),
        (vec![start(update, 1 << 40)], "at most"),
        (vec![start("../../etc/passwd", 1)], "not expected"),
        (vec![data(&[0; 10])], "before a file's name"),
        (vec![start("metrics.json", 2), data(b"{}")], "update.safetensors was not delivered"),
        (vec![start("metrics.json", 0), start("metrics.json", 0)], "once each"),
        (vec![], "was not delivered"),
    ];
    for (parts, expected) in cases {
        let status = setup.send(parts).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{expected}");
        assert!(status.message().contains(expected), "{}", status.message());
    }
    // None of this is the trainer's own result, so the task may still deliver.
    assert!(setup.desk.rejected(TASK).is_none());
    setup.trained([0.0; 3]);
    deliver(&setup.args, &PACE).await.unwrap();
}

#[tokio::test]
async fn a_score_is_checked_and_stored() {
    let setup = setup(TaskKind::Evaluate).await;
    let score = |dice: f64| {
        let class = json!({"label": 1, "dice": dice, "hd95Mm": null, "assdMm": null});
        json!({"cases": 4, "classes": [class]}).to_string().into_bytes()
    };
    setup.result(TaskKind::Evaluate, &[("score.json", score(1.5))]);
    assert!(refused(deliver(&setup.args, &PACE).await).contains("not between 0 and 1"));
    setup.result(TaskKind::Evaluate, &[("score.json", score(0.9))]);
    deliver(&setup.args, &PACE).await.unwrap();
    assert_eq!(setup.state.score(ROUND).unwrap().unwrap().score.cases, 4);
}

/// The figure of a masked study is a sum over all hospitals: a vote without its vector would be missing in it.
#[tokio::test]
async fn a_score_of_a_masked_study_is_encoded_for_the_sum() {
    let setup = setup(TaskKind::Evaluate).await;
    let mut entry = setup.desk.task(TASK).unwrap();
    let mut masked = spec();
    masked.aggregation.secure.protocol = consilium_crds::study::ProtocolKind::SecAgg;
    entry.spec = Arc::new(masked);
    setup.desk.set_tasks(BTreeMap::from([(TASK.to_owned(), entry)]));
    let score = |cases: u32, dice: f64| {
        let class = |label, dice| json!({"label": label, "dice": dice, "hd95Mm": null, "assdMm": null});
        serde_json::to_vec(&json!({"cases": cases, "classes": [class(1, dice), class(2, 0.5)]})).unwrap()
    };
    // As from a crash between the vector and its score.
    let name = crate::state::evaluate_vector(ROUND);
    let mut torn = setup.state.begin_update(&name).unwrap();
    torn.put_chunk(b"torn").unwrap();
    let meta = crate::state::UpdateMeta {
        task_uid: TASK.into(),
        task_name: "t".into(),
        study: "research/hippocampus".parse().unwrap(),
        spec_digest: spec().digest(),
        round: 1,
        base: setup.manifest.digest(),
        roster_size: 4,
        examples: 1,
        norm: String::new(),
        clipped: false,
        delivered: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    torn.finish(meta).unwrap();

    setup.result(TaskKind::Evaluate, &[("score.json", score(104, 0.9))]);
    deliver(&setup.args, &PACE).await.unwrap();
    let stored = setup.state.update(&name).unwrap().unwrap();
    assert_eq!((stored.chunks.len(), stored.meta.examples, stored.meta.norm.as_str()), (2, 100, "0.700000"));
    let ring = consilium_secagg::ring::RingParams::new(4, 1.0).unwrap();
    let [head, body] = [0, 1].map(|i| consilium_secagg::sum::from_bytes(&setup.state.update_chunk(&name, i).unwrap()));
    let weight = ring.decode_weights(head[0], 1).unwrap();
    let mut mean = [0f32];
    ring.decode_mean(&body, weight, &mut mean).unwrap();
    assert!((mean[0] - 0.7).abs() < 1e-4, "{mean:?}");
}

/// `deliver` must neither wait for ever for a trainer that died nor give up on one that still works.
#[tokio::test]
async fn deliver_waits_for_the_trainer_and_notices_its_end() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.0; 3]);
    fs::remove_file(setup.out().join("MANIFEST")).unwrap();
    fs::write(setup.out().join("progress.json"), br#"{"step": 12, "of": 40}"#).unwrap();
    let waiting = {
        let args = setup.args.clone();
        tokio::spawn(async move { deliver(&args, &PACE).await })
    };
    while setup.desk.progress(TASK).is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(setup.desk.progress(TASK).unwrap().step, 12);
    // The end of an earlier try says nothing of this one.
    setup.know(TaskKind::Train, Some(2));
    assert!(!waiting.is_finished());
    setup.know(TaskKind::Train, Some(3));
    assert!(matches!(waiting.await.unwrap(), Err(CourierError::NoResult)));
    assert!(setup.out().join("FAILED").exists(), "the evaluator waits for this");
}

/// A damaged result must be made again and not be delivered or waited for.
#[tokio::test]
async fn a_damaged_result_is_not_delivered() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.0; 3]);
    fs::write(setup.out().join("update.safetensors"), b"cut").unwrap();
    assert!(matches!(deliver(&setup.args, &PACE).await, Err(CourierError::Damaged { .. })));
    assert!(!setup.out().join("MANIFEST").exists());
}

/// An agent that restarts costs a pod some seconds: it knows nothing of the task at first.
#[tokio::test]
async fn a_courier_outlives_an_agent_that_has_just_started() {
    let setup = setup(TaskKind::Train).await;
    setup.trained([0.5, 0.5, 0.5]);
    let entry = setup.desk.task(TASK).unwrap();
    setup.desk.set_tasks(BTreeMap::new());
    let waiting = {
        let args = setup.args.clone();
        tokio::spawn(async move { deliver(&args, &PACE).await })
    };
    tokio::task::yield_now().await;
    setup.desk.set_tasks(BTreeMap::from([(TASK.to_owned(), entry)]));
    waiting.await.unwrap().unwrap();
    assert!(setup.state.update(ROUND).unwrap().is_some());
}
