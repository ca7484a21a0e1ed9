//! A hospital: the agent's link, state and protocol, with an update on its disk for whatever round it is asked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consilium_agent::link::{Dialer, Link};
use consilium_agent::site::KubeAnnounce;
use consilium_agent::state::UpdateMeta;
use consilium_agent::tasks::encode::{EncodeSpec, encode, weight_of_examples};
use consilium_agent::{Clock, Context, Enforcement, Entropy, Facts, Metrics, ObjectCache, State, tasks};
use consilium_crds::round_task::{RoundTask, RoundTaskSpec};
use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::{FederatedStudySpec, SitePolicy};
use consilium_federation::SiteName;
use consilium_federation::assignment::{ItemState, RoundWork, Work};
use consilium_federation::model::ModelManifest;
use consilium_federation::report::RoundReport;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Training examples that each hospital speaks of.
const EXAMPLES: u64 = 100;

/// What a hospital's process is told, in `hospital.json` of its folder.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) site: SiteName,
    pub(crate) gateway: String,
    pub(crate) namespace: String,
    /// The file that every round's trainer would have written.
    pub(crate) update: PathBuf,
    pub(crate) policy: SitePolicySpec,
}

pub(crate) fn run(folder: &Path) {
    rustls::crypto::ring::default_provider().install_default().expect("the first provider");
    let text = fs::read_to_string(folder.join("hospital.json")).expect("hospital.json");
    let setup: Setup = serde_json::from_str(&text).expect("a setup");
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(folder, setup));
}

async fn serve(folder: &Path, setup: Setup) {
    let kube = Client::try_default().await.expect("the API server");
    let dialer = Dialer::new(&setup.gateway, folder.join("tls"), None, None).expect("a gateway");
    let state = State::open(&folder.join("state"), Entropy::system().bytes32()).expect("a volume");
    let metrics = Metrics::new().expect("metrics");
    let link = Link::new(dialer, state.assignment().expect("readable"));
    let cache = folder.join("objects");
    let objects = ObjectCache::new(cache, 1 << 30, link.object_source(), metrics.clone()).expect("a cache");
    // Nothing is ever written to the channel, and it must stay open.
    let (_policy, policy) = watch::channel(Some(Arc::new(SitePolicy::new("default", setup.policy.clone()))));
    let images = ["--courier-image", "c", "--evaluator-image", "e", "--inference-image", "i"];
    let config = clap::Parser::parse_from(["agent", "--gateway", &setup.gateway].into_iter().chain(images));
    let ctx = Arc::new(Context {
        config,
        site: setup.site.clone(),
        state,
        facts: Facts::default(),
        desired: link.desired(),
        policy,
        objects,
        kube: kube.clone(),
        metrics,
        desk: tasks::Desk::default(),
        enforcement: watch::Sender::new(Enforcement::Enforced),
        unrecorded: consilium_agent::state::Unrecorded::default(),
        hazards: consilium_agent::policy::SeenHazards::default(),
        clock: Clock::system(),
        entropy: Entropy::system(),
        shutdown: CancellationToken::new(),
    });
    let announce = Arc::new(KubeAnnounce::new(kube.clone(), &setup.namespace));
    let run = tokio::spawn(link.run(ctx.clone(), announce));
    tokio::select! {
        ended = run => panic!("the link ended: {ended:?}"),
        () = work(&ctx, &setup, Api::namespaced(kube, &setup.namespace)) => {}
    }
}

/// Has a result for each round as soon as it is offered, and forgets it when the hub does.
async fn work(ctx: &Arc<Context>, setup: &Setup, tasks: Api<RoundTask>) {
    let mut desired = ctx.desired.clone();
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        let assignment = desired.borrow_and_update().clone();
        let active: Vec<(&String, &RoundWork)> = assignment
            .items
            .iter()
            .filter(|item| item.state == ItemState::Active)
            .filter_map(|item| match &item.work {
                Work::Round(work) => Some((&item.uid, work)),
                Work::Deploy(_) => None,
            })
            .collect();
        for uid in known.clone() {
            if active.iter().all(|(active, _)| **active != uid) {
                ctx.state.delete_update(&uid).expect("a volume");
                ctx.facts.drop_round(&uid, TaskKind::Train);
                known.remove(&uid);
            }
        }
        for (uid, work) in active {
            if known.insert(uid.clone()) {
                deliver(ctx, setup, &tasks, uid, work).await;
            }
        }
        if desired.changed().await.is_err() {
            return;
        }
    }
}

async fn deliver(ctx: &Arc<Context>, setup: &Setup, tasks: &Api<RoundTask>, uid: &str, work: &RoundWork) {
    let spec = ctx.objects.study_spec(work.spec_digest).await.expect("the study's spec");
    let manifest = ctx.objects.manifest(work.model).await.expect("the model's manifest");
    let name = format!("round-{}", work.round);
    let task = RoundTask::new(
        &name,
        RoundTaskSpec {
            study: work.study.clone(),
            study_uid: work.study_uid.clone(),
            spec_digest: work.spec_digest,
            round_uid: uid.to_owned(),
            round: work.round,
            kind: work.kind,
            model: work.model,
            image: spec.trainer.image.clone(),
            gpus: spec.trainer.gpus,
            deadline: work.deadline,
        },
    );
    tasks.create(&PostParams::default(), &task).await.expect("a RoundTask");
    let (ctx, work, update) = (ctx.clone(), work.clone(), setup.update.clone());
    let round = uid.to_owned();
    tokio::task::spawn_blocking(move || store(&ctx, &round, &name, &work, &spec, &manifest, &update))
        .await
        .expect("stored");
}

/// What the task port does with a delivered update, and the task controller after it.
fn store(
    ctx: &Context,
    round: &str,
    task: &str,
    work: &RoundWork,
    spec: &FederatedStudySpec,
    manifest: &ModelManifest,
    update: &Path,
) {
    let weight = weight_of_examples(EXAMPLES, 1).expect("a weight");
    let clip = spec.clip().expect("a bound");
    let how = EncodeSpec { schema: &manifest.tensors, roster_size: work.roster_size, clip, weight };
    let mut file = File::open(update).expect("the update");
    let mut writer = ctx.state.begin_update(round).expect("a volume");
    let encoded = encode(&mut file, &how, |bytes| {
        writer.put_chunk(bytes).map_err(std::io::Error::other)?;
        Ok(())
    })
    .expect("an update");
    let meta = UpdateMeta {
        task_uid: task.to_owned(),
        task_name: task.to_owned(),
        study: work.study.clone(),
        spec_digest: work.spec_digest,
        round: work.round,
        base: work.model,
        roster_size: work.roster_size,
        examples: EXAMPLES,
        norm: format!("{:.6}", encoded.norm),
        clipped: encoded.clipped,
        delivered: ctx.now(),
    };
    writer.finish(meta).expect("a volume");
    let (uid, kind, reason) = (round.to_owned(), TaskKind::Train, SiteReason::Ready);
    ctx.facts.set_round(RoundReport { uid, kind, reason, message: None, evaluation: None });
}
