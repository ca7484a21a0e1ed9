//! The controller over a hospital that names how long anything is kept, and a hub that names a round for ever.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use consilium_crds::{FederatedStudySpec, RoundTask, RoundTaskSpec, RoundTaskStatus, SitePolicy};
use consilium_federation::Digest;
use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::digest::canonical_json;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::controller::Controller;
use super::decide::TaskSeen;
use super::error::ControlError;
use super::job::Mode;
use super::read::Started;
use super::runner::{Runner, Sight};
use crate::link::{ObjectError, ObjectSource};
use crate::policy::tests::{policy, spec, work};
use crate::state::{Entry, State, Unrecorded, UpdateMeta};
use crate::{Clock, Context, Enforcement, Entropy, Facts, Metrics, ObjectCache};

const START: i64 = 1_800_000_000;

/// A runner that has tasks and starts nothing.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<Arc<RoundTask>>>>);

impl Sight for Vec<Arc<RoundTask>> {
    fn tasks(&self) -> &[Arc<RoundTask>] {
        self
    }
    fn see(&self, _: &RoundTask, _: Option<Started>, _: Timestamp) -> TaskSeen {
        TaskSeen { tries: vec![], last_try: 0, ended: None, deleting: false }
    }
    fn has_try(&self, _: &str) -> bool {
        false
    }
}

#[tonic::async_trait]
impl Runner for Tasks {
    fn look(&self) -> Box<dyn Sight> {
        Box::new(self.0.lock().unwrap().clone())
    }
    async fn create_task(&self, name: &str, spec: RoundTaskSpec) -> Result<(), ControlError> {
        let mut task = RoundTask::new(name, spec);
        task.metadata.uid = Some(format!("uid-of-{name}"));
        task.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(START).unwrap()));
        self.0.lock().unwrap().push(Arc::new(task));
        Ok(())
    }
    async fn start_try(
        &self,
        _: &RoundTask,
        _: &FederatedStudySpec,
        _: (u32, Mode),
        _: &str,
    ) -> Result<(), ControlError> {
        Ok(())
    }
    async fn stop_try(&self, _: &str) -> Result<(), ControlError> {
        Ok(())
    }
    async fn delete_task(&self, name: &str) -> Result<(), ControlError> {
        self.0.lock().unwrap().retain(|task| task.name_any() != name);
        Ok(())
    }
    async fn status(&self, _: &RoundTask, _: &RoundTaskStatus) -> Result<(), ControlError> {
        Ok(())
    }
    async fn clean(&self, _: Timestamp) -> Result<(), ControlError> {
        Ok(())
    }
}

struct Hub;

impl ObjectSource for Hub {
    fn fetch(&self, _: Digest) -> crate::link::Answer<'_, Result<Bytes, ObjectError>> {
        Box::pin(async { Ok(canonical_json(&spec()).into()) })
    }
}

struct World {
    _dir: tempfile::TempDir,
    hour: Arc<AtomicI64>,
    ctx: Arc<Context>,
    tasks: Tasks,
    controller: Controller,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
    desired: watch::Sender<Arc<Assignment>>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (desired, of_hub) =
            watch::channel(Arc::new(Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items: vec![] }));
        let (policy, of_hospital) = watch::channel(None);
        let (hour, metrics) = (Arc::new(AtomicI64::new(0)), Metrics::new().unwrap());
        let shown = Arc::clone(&hour);
        let objects = ObjectCache::new(dir.path().join("objects"), 1 << 20, Arc::new(Hub), metrics.clone());
        let words =
            ["a", "--gateway", "https://h", "--courier-image", "c", "--evaluator-image", "e", "--inference-image", "i"];
        let service = tower::service_fn(|_: tonic::codegen::http::Request<kube::client::Body>| async {
            Err::<tonic::codegen::http::Response<kube::client::Body>, _>(std::io::Error::other("no cluster"))
        });
        let ctx = Arc::new(Context {
            config: clap::Parser::parse_from(words),
            site: "alder".parse().unwrap(),
            state: State::open(&dir.path().join("state"), [1; 32]).unwrap(),
            facts: Facts::default(),
            desired: of_hub,
            policy: of_hospital,
            objects: objects.unwrap(),
            kube: kube::Client::new(service, "default"),
            metrics,
            desk: super::Desk::default(),
            enforcement: watch::Sender::new(Enforcement::Enforced),
            unrecorded: Unrecorded::default(),
            hazards: crate::policy::SeenHazards::default(),
            clock: Clock::from_fn(move || Timestamp::from_second(START + 3600 * shown.load(Ordering::SeqCst)).unwrap()),
            entropy: Entropy::from_fn(|bytes| bytes.fill(0)),
            shutdown: CancellationToken::new(),
        });
        let tasks = Tasks::default();
        let controller = Controller::new(Arc::clone(&ctx), Arc::new(tasks.clone()));
        Self { _dir: dir, hour, ctx, tasks, controller, policy, desired }
    }

    fn allows(&self, approval: &str) {
        let changes = [
            ("/studies/0/approval", json!(approval)),
            ("/aggregation/allowPlaintextUpdates", json!(true)),
            ("/retention", json!({"erasedWithin": "24h"})),
            ("/limits", json!({"taskDuration": "48h"})),
        ];
        self.policy.send_replace(Some(Arc::new(SitePolicy::new("default", policy(&changes)))));
    }

    /// The hub names the round, until this hour; or nothing.
    fn names(&self, until: Option<i64>) {
        let deadline = |hour| Timestamp::from_second(START + 3600 * hour).unwrap();
        let item = |hour| {
            let work = RoundWork { deadline: deadline(hour), attempt: 0, step: None, ..work() };
            Item { uid: "round".into(), state: ItemState::Active, work: Work::Round(work) }
        };
        let items = until.map(item).into_iter().collect();
        self.desired.send_modify(|known| {
            *known = Arc::new(Assignment { revision: known.revision + 1, items, ..Assignment::clone(known) });
        });
    }

    /// The hospital has trained.
    fn trained(&self) {
        let mut writer = self.ctx.state.begin_update("round").unwrap();
        writer.put_chunk(b"unmasked").unwrap();
        let task = self.tasks.0.lock().unwrap()[0].clone();
        let meta = UpdateMeta {
            task_uid: task.uid().unwrap(),
            task_name: task.name_any(),
            study: work().study,
            spec_digest: work().spec_digest,
            round: work().round,
            base: work().model,
            roster_size: 4,
            examples: 12,
            norm: "0.5".into(),
            clipped: false,
            delivered: self.ctx.now(),
        };
        writer.finish(meta).unwrap();
    }

    /// Whether a RoundTask and an update are there after a turn at this hour.
    async fn at(&mut self, hour: i64) -> (bool, bool) {
        self.hour.store(hour, Ordering::SeqCst);
        self.controller.turn().await;
        (!self.tasks.0.lock().unwrap().is_empty(), self.ctx.state.update("round").unwrap().is_some())
    }

    fn reason(&self) -> Option<SiteReason> {
        self.ctx.facts.round("round", TaskKind::Train).map(|round| round.reason)
    }

    fn erasures(&self) -> usize {
        let records = self.ctx.state.ledger(1, 1000).unwrap();
        records.iter().filter(|record| matches!(record.entry, Entry::Erased { .. })).count()
    }
}

async fn trained() -> World {
    let mut world = World::new();
    world.allows("Automatic");
    world.names(Some(1000));
    assert_eq!(world.at(0).await, (true, false));
    world.trained();
    assert_eq!(world.at(1).await, (true, true));
    world
}

/// The hospital says no, and the hub goes on naming the round: the unmasked update, the task and with it the folders go in
/// half of the time that the hospital named; and a no that is taken back in time costs nothing.
#[tokio::test]
async fn what_is_refused_is_erased_in_time_whatever_the_hub_names() {
    let mut world = trained().await;
    world.allows("Denied");
    assert_eq!(world.at(2).await, (true, true));
    assert_eq!(world.at(13).await, (true, true));
    world.allows("Automatic");
    world.at(14).await;
    world.allows("Denied");
    assert_eq!((world.at(20).await, world.at(31).await), ((true, true), (true, true)));
    assert_eq!(world.at(32).await, (false, false));
    assert_eq!(
        (world.at(33).await, world.reason(), world.erasures()),
        ((false, false), Some(SiteReason::DeniedByPolicy), 1)
    );
}

/// The round's time is over by the hospital's own limit, and the hub names ever later deadlines: all goes, and is not made
/// again.
#[tokio::test]
async fn what_is_over_is_erased_and_not_made_again() {
    let mut world = trained().await;
    assert_eq!((world.at(48).await, world.at(59).await), ((true, true), (true, true)));
    assert_eq!(world.at(60).await, (false, false));
    world.names(Some(5000));
    assert_eq!((world.at(61).await, world.reason(), world.erasures()), ((false, false), Some(SiteReason::Failed), 1));
    // The hub takes it back: nothing is remembered of it.
    world.names(None);
    world.at(62).await;
    assert!(world.ctx.state.blobs("tasks/spent/").unwrap().is_empty());
}

/// The hub falls silent, or forgets the round: nothing is kept for it.
#[tokio::test]
async fn what_no_hub_names_any_more_is_erased() {
    let mut world = trained().await;
    world.names(None);
    assert_eq!((world.at(2).await, world.at(59).await), ((true, true), (true, true)));
    // The task was made at hour 0, the update delivered at hour 0.
    assert_eq!((world.at(60).await, world.erasures()), ((false, false), 1));
}
