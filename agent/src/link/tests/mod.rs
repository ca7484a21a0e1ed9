//! The link against a hub over real mutual TLS on the loopback.

mod clocks;
mod ending;
mod hub;
mod proof;
mod secure;
mod secure_hub;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use consilium_crds::SitePolicy;
use consilium_crds::round_task::Irreversible;
use consilium_federation::Digest;
use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::digest::canonical_json;
use consilium_federation::report::{LedgerEnd, RoundReport};
use consilium_federation::round::{ProtocolStep, SiteReason};
use consilium_federation::task::TaskKind;
use hub::{FakeHub, Fault, Pki, TinyProxy};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::facts::UploadFact;
use crate::policy::tests::{policy, spec, work};
use crate::state::{Entry, State, UpdateMeta};
use crate::{Clock, Enforcement, Entropy, Facts, Metrics, words};

const LIMIT: Duration = Duration::from_secs(20);
const CHUNKS: [&[u8]; 6] = [b"head", b"one", b"two", b"three", b"four", b"five"];

/// What the hospital's API server would hold.
#[derive(Default)]
struct Shown {
    act: Mutex<Option<Irreversible>>,
    version: AtomicU64,
    events: Arc<Mutex<Vec<String>>>,
    /// What happens at the hospital whenever the agent looks at what is shown.
    meanwhile: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl Announce for Shown {
    fn recall<'a>(&'a self, _: &'a str) -> Answer<'a, Result<Recalled, AnnounceError>> {
        Box::pin(async {
            if let Some(happens) = &*self.meanwhile.lock().unwrap() {
                happens();
            }
            let act = self.act.lock().unwrap();
            Ok(Recalled { act: act.clone(), version: self.version.load(Ordering::SeqCst).to_string() })
        })
    }
    fn announce<'a>(
        &'a self,
        task: &'a str,
        act: &'a Irreversible,
        over: &'a str,
    ) -> Answer<'a, Result<(), AnnounceError>> {
        Box::pin(async move {
            let mut shown = self.act.lock().unwrap();
            let found = self.version.load(Ordering::SeqCst);
            if over != found.to_string() {
                return Err(AnnounceError::Changed(task.to_owned()));
            }
            self.version.store(found + 1, Ordering::SeqCst);
            self.events.lock().unwrap().push(format!("announce {task} {}", act.attempt));
            *shown = Some(act.clone());
            Ok(())
        })
    }
}

/// A hospital's volume and certificate, and a hub that it can reach.
struct World {
    dir: TempDir,
    hub: Arc<FakeHub>,
    address: std::net::SocketAddr,
    shown: Arc<Shown>,
    policy: watch::Sender<Option<Arc<SitePolicy>>>,
}

/// A running agent; dropping it is a kill.
struct Agent {
    ctx: Arc<Context>,
    status: watch::Receiver<LinkStatus>,
    run: JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    /// As a power cut would: nothing is finished, nothing is said.
    async fn kill(self) {
        self.run.abort();
        let _ = self.run.await;
        // Uploads run in tasks of the aborted future and end with it.
        while Arc::strong_count(&self.ctx) > 1 || self.ctx.state.handles() > 1 {
            tokio::task::yield_now().await;
        }
    }
}

fn site_policy(allow_plaintext: bool) -> Option<Arc<SitePolicy>> {
    let change = ("/aggregation/allowPlaintextUpdates", serde_json::json!(allow_plaintext));
    Some(Arc::new(SitePolicy::new("default", policy(&[change]))))
}

impl World {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pki = Pki::new();
        let dir = TempDir::new().unwrap();
        pki.site_folder(&dir.path().join("tls"), "alder");
        let (hub, address) = FakeHub::start(&pki).await;
        hub.objects.lock().unwrap().insert(spec().digest(), canonical_json(&spec()).into());
        let shown = Arc::new(Shown { events: hub.events.clone(), ..Shown::default() });
        Self { dir, hub, address, shown, policy: watch::Sender::new(site_policy(true)) }
    }

    fn agent(&self, proxy: Option<std::net::SocketAddr>) -> Agent {
        let (folder, shown) = (self.dir.path(), self.shown.clone());
        let entropy = Entropy::from_fn(|bytes| bytes.fill(0));
        start("alder", folder, &folder.join("state"), self.address, proxy, self.policy.subscribe(), shown, entropy)
    }

    fn publish(&self, revision: u64, items: Vec<Item>) {
        self.hub.desired.send_replace(Some(Assignment { hub_epoch: "e".into(), revision, rosters: vec![], items }));
    }

    /// Puts a trained update on the volume, as the task port does, and says so.
    fn trained(&self, agent: &Agent) {
        let mut writer = agent.ctx.state.begin_update("round").unwrap();
        for chunk in CHUNKS {
            writer.put_chunk(chunk).unwrap();
        }
        let meta = UpdateMeta {
            task_uid: "task".into(),
            task_name: "hippocampus-r3-train".into(),
            study: work().study,
            spec_digest: work().spec_digest,
            round: 3,
            base: work().model,
            roster_size: 4,
            examples: 10,
            norm: "1".into(),
            clipped: false,
            delivered: agent.ctx.now(),
        };
        writer.finish(meta).unwrap();
        self.ready(agent);
    }

    fn ready(&self, agent: &Agent) {
        let (uid, kind, reason) = ("round".to_owned(), TaskKind::Train, SiteReason::Ready);
        agent.ctx.facts.set_round(RoundReport { uid, kind, reason, message: None, evaluation: None });
    }
}

/// Starts an agent; `folder` holds its certificate and its cache, `volume` its state.
#[allow(clippy::too_many_arguments)]
fn start(
    site: &str,
    folder: &Path,
    volume: &Path,
    address: std::net::SocketAddr,
    proxy: Option<std::net::SocketAddr>,
    policy: watch::Receiver<Option<Arc<SitePolicy>>>,
    shown: Arc<Shown>,
    entropy: Entropy,
) -> Agent {
    let gateway = format!("https://localhost:{}", address.port());
    let proxy = proxy.map(|address| format!("http://{address}"));
    let dialer = Dialer::new(&gateway, folder.join("tls"), proxy.as_deref(), None).unwrap();
    let state = State::open(volume, [1; 32]).unwrap();
    let metrics = Metrics::new().unwrap();
    let link = Link::new(dialer, state.assignment().unwrap());
    let cache = folder.join("objects");
    let objects = ObjectCache::new(cache, 1 << 20, link.object_source(), metrics.clone()).unwrap();
    let arguments =
        ["agent", "--gateway", &gateway, "--courier-image", "c", "--evaluator-image", "e", "--inference-image", "i"];
    let ctx = Arc::new(Context {
        config: clap::Parser::parse_from(arguments),
        site: site.parse().unwrap(),
        state,
        facts: Facts::default(),
        desired: link.desired(),
        policy,
        objects,
        kube: no_cluster(),
        metrics,
        desk: crate::tasks::Desk::default(),
        enforcement: watch::Sender::new(Enforcement::Enforced),
        unrecorded: crate::state::Unrecorded::default(),
        hazards: crate::policy::SeenHazards::default(),
        clock: Clock::from_fn(|| "2026-01-01T00:00:00Z".parse().unwrap()),
        entropy,
        shutdown: CancellationToken::new(),
    });
    let status = link.status();
    let run = tokio::spawn(link.run(ctx.clone(), shown));
    Agent { ctx, status, run }
}

fn no_cluster() -> kube::Client {
    let service = tower::service_fn(|_: tonic::codegen::http::Request<kube::client::Body>| async {
        Err::<tonic::codegen::http::Response<kube::client::Body>, _>(std::io::Error::other("no cluster in this test"))
    });
    kube::Client::new(service, "consilium-agent")
}

fn asked(attempt: u32) -> Item {
    let work = RoundWork { attempt, step: Some(ProtocolStep::Upload), ..work() };
    Item { uid: "round".into(), state: ItemState::Active, work: Work::Round(work) }
}

async fn until<T>(what: &str, mut receiver: watch::Receiver<T>, holds: impl FnMut(&T) -> bool) {
    let found = tokio::time::timeout(LIMIT, receiver.wait_for(holds)).await;
    assert!(matches!(found, Ok(Ok(_))), "waited in vain for {what}");
}

async fn until_reason(agent: &Agent, reason: SiteReason) {
    let facts = agent.ctx.facts.clone();
    let holds = move |_: &u64| facts.round("round", TaskKind::Train).is_some_and(|r| r.reason == reason);
    until(&format!("{reason:?}"), agent.ctx.facts.changed(), holds).await;
}

/// What the ledger holds, but for what is said of policy, hub and reports.
fn ledger(agent: &Agent) -> Vec<Entry> {
    let around =
        |entry: &Entry| matches!(entry, Entry::PolicyInForce { .. } | Entry::HubDialed { .. } | Entry::Reported(_));
    let records = agent.ctx.state.ledger(1, 1000).unwrap().into_iter();
    records.map(|record| record.entry).filter(|entry| !around(entry)).collect()
}

/// A hub that was set back must not set the hospital back; one that goes on is followed.
#[tokio::test]
async fn the_desired_state_only_goes_forward() {
    let world = World::new().await;
    let agent = world.agent(None);
    for revision in [5, 4, 6] {
        world.publish(revision, vec![]);
        let counted = |verdict| agent.ctx.metrics.assignments.with_label_values(&[verdict]).get();
        let (sent, mut reports) = ([5, 4, 6].iter().position(|r| *r == revision).unwrap() as u64 + 1, 0);
        while counted("taken") + counted("stale") < sent {
            tokio::task::yield_now().await;
            reports += 1;
            assert!(reports < 50_000_000, "revision {revision} never came");
        }
        assert_ne!(agent.ctx.desired.borrow().revision, 4);
    }
    assert_eq!(agent.ctx.desired.borrow().revision, 6);
    assert_eq!(agent.ctx.metrics.assignments.with_label_values(&["stale"]).get(), 1);
    assert_eq!(agent.ctx.state.assignment().unwrap().unwrap().revision, 6);
}

/// The hub learns of a change at once, with the revision that this hospital works from.
#[tokio::test]
async fn facts_are_reported_whole_after_each_change() {
    let world = World::new().await;
    let agent = world.agent(None);
    world.publish(5, vec![]);
    world.ready(&agent);
    until("the report", world.hub.reports.subscribe(), |reports| {
        reports.last().is_some_and(|r| r.revision == 5 && r.hub_epoch == "e" && r.rounds.len() == 1)
    })
    .await;
    agent.ctx.facts.drop_round("round", TaskKind::Train);
    until("its absence", world.hub.reports.subscribe(), |r| r.last().is_some_and(|r| r.rounds.is_empty())).await;
}

/// The order is the promise: ledger and RoundTask first, then bytes, and `Submitted` only when the hub has all.
#[tokio::test]
async fn an_upload_is_announced_before_the_first_byte_leaves() {
    let world = World::new().await;
    let agent = world.agent(None);
    world.trained(&agent);
    world.publish(1, vec![asked(1)]);
    until_reason(&agent, SiteReason::Submitted).await;
    assert_eq!(world.hub.chunks.borrow().values().map(|c| c.to_vec()).collect::<Vec<_>>(), CHUNKS.map(<[u8]>::to_vec));
    let events = world.hub.events.lock().unwrap().clone();
    assert_eq!(events[..3], ["announce hippocampus-r3-train 1", "begin", "chunk"]);
    let act = world.shown.act.lock().unwrap().clone().unwrap();
    assert!(agent.ctx.state.had_head(act.ledger_head).unwrap());
    let bytes = CHUNKS.iter().map(|c| c.len() as u64).sum();
    let ended = Entry::UploadEnded { round_uid: "round".into(), attempt: 1, chunks: 6, bytes, complete: true };
    assert!(
        matches!(&ledger(&agent)[..], [Entry::Decision { .. }, Entry::UploadBegins { .. }, last] if *last == ended)
    );
}

/// A line that breaks costs the chunks that were under way, not the update.
#[tokio::test]
async fn an_upload_goes_on_after_the_connection_broke() {
    let world = World::new().await;
    let proxy = TinyProxy::start(world.address).await;
    let agent = world.agent(Some(proxy.address));
    *world.hub.fault.lock().unwrap() = Fault::HangAt(2);
    world.trained(&agent);
    world.publish(1, vec![asked(1)]);
    until("the third chunk", world.hub.arrivals.subscribe(), |seen| seen.len() >= 3).await;
    let held = world.hub.chunks.borrow().len();
    *world.hub.fault.lock().unwrap() = Fault::None;
    let before = world.hub.arrivals.borrow().len();
    proxy.cut();
    until_reason(&agent, SiteReason::Submitted).await;
    assert_eq!(world.hub.chunks.borrow().len(), CHUNKS.len());
    let again = world.hub.arrivals.borrow().len() - before;
    assert!(held >= 1 && again <= CHUNKS.len() - held + 2, "{held} were there and {again} more came");
    assert!(proxy.seen.borrow().iter().all(|line| line.starts_with("CONNECT localhost:")), "{:?}", proxy.seen.borrow());
    let begins = ledger(&agent).iter().filter(|e| matches!(e, Entry::UploadBegins { .. })).count();
    assert_eq!(begins, 1);
}

/// Nobody trains again because an agent died: the next one goes on with what the hub lacks.
#[tokio::test]
async fn a_killed_agent_goes_on_with_the_stored_update() {
    let world = World::new().await;
    let agent = world.agent(None);
    *world.hub.fault.lock().unwrap() = Fault::HangAt(2);
    world.trained(&agent);
    world.publish(1, vec![asked(1)]);
    until("the third chunk", world.hub.arrivals.subscribe(), |seen| seen.len() >= 3).await;
    agent.kill().await;
    let held: Vec<u32> = world.hub.chunks.borrow().keys().copied().collect();
    assert!(!held.is_empty() && held.len() < CHUNKS.len());
    *world.hub.fault.lock().unwrap() = Fault::None;
    world.hub.arrivals.send_replace(Vec::new());
    let agent = world.agent(None);
    world.ready(&agent);
    until_reason(&agent, SiteReason::Submitted).await;
    assert!(world.hub.arrivals.borrow().iter().all(|index| !held.contains(index)));
    // And once more: what is complete is known as such at once, and no byte leaves again.
    agent.kill().await;
    world.hub.arrivals.send_replace(Vec::new());
    let agent = world.agent(None);
    world.ready(&agent);
    until_reason(&agent, SiteReason::Submitted).await;
    until("the connection", agent.status.clone(), |status| *status == LinkStatus::Connected).await;
    assert!(world.hub.arrivals.borrow().is_empty());
}

/// The hub holds other bytes under this attempt: sending more of these would end in a wrong sum.
#[tokio::test]
async fn a_conflict_is_reported_as_rejected_until_another_attempt_opens() {
    let world = World::new().await;
    let agent = world.agent(None);
    *world.hub.fault.lock().unwrap() = Fault::Conflict;
    world.trained(&agent);
    world.publish(1, vec![asked(1)]);
    until_reason(&agent, SiteReason::Rejected).await;
    let report = agent.ctx.facts.round("round", TaskKind::Train).unwrap();
    assert_eq!(report.message.as_deref(), Some(words::STEP_REFUSED), "the hub is not told what was said here");
    let why = agent.ctx.facts.upload("round", TaskKind::Train);
    assert!(matches!(why, Some(UploadFact::Rejected(why)) if why.contains("another update")));
    *world.hub.fault.lock().unwrap() = Fault::None;
    world.publish(2, vec![asked(2)]);
    until_reason(&agent, SiteReason::Submitted).await;
}

/// The hospital's last word counts until the first byte has left, and nothing of the update has by then.
#[tokio::test]
async fn a_veto_at_the_last_barrier_holds_until_it_is_taken_back() {
    let world = World::new().await;
    world.policy.send_replace(site_policy(false));
    let agent = world.agent(None);
    world.trained(&agent);
    world.publish(1, vec![asked(1)]);
    let decided = |entries: &[Entry]| matches!(entries, [Entry::Decision { allowed: false, .. }]);
    while !decided(&ledger(&agent)) {
        tokio::task::yield_now().await;
    }
    assert!(world.hub.events.lock().unwrap().is_empty());
    world.policy.send_replace(site_policy(true));
    until_reason(&agent, SiteReason::Submitted).await;
}

/// A volume from a backup has forgotten what it sent: under the same attempt it must not send again.
#[tokio::test]
async fn a_restored_volume_burns_the_attempt() {
    let world = World::new().await;
    let ledger_head = Digest::of(b"from after the backup");
    *world.shown.act.lock().unwrap() = Some(Irreversible { attempt: 1, step: "Upload".into(), ledger_head });
    let agent = world.agent(None);
    world.trained(&agent);
    world.publish(1, vec![asked(1)]);
    while !agent.ctx.state.is_burned("round", 1).unwrap() {
        tokio::task::yield_now().await;
    }
    assert!(world.hub.events.lock().unwrap().is_empty());
}

/// The hub has seen more of this hospital's ledger than the volume holds: the volume is older than that, whatever the
/// hospital's own cluster remembers.
#[tokio::test]
async fn a_hub_that_remembers_more_of_the_ledger_shows_that_the_volume_was_set_back() {
    let world = World::new().await;
    let agent = world.agent(None);
    until("the first report", world.hub.reports.subscribe(), |r| r.last().is_some_and(|r| r.ledger.is_some())).await;
    assert!(agent.ctx.state.hub_claim().unwrap().is_none());
    let ahead = consilium_proto::v1::LedgerEnd { entries: 99, head: Digest::of(b"from after the backup").to_string() };
    *world.hub.ledger.lock().unwrap() = Some(ahead);
    world.ready(&agent);
    let claim = || agent.ctx.state.hub_claim().unwrap();
    while claim().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(claim().is_some_and(|claim| claim.stands && claim.why.contains("99 entries")));
    assert_eq!(agent.ctx.state.rolled_back().unwrap(), None, "on the hub's word alone no study is closed");

    // It was mistaken, and says so: nothing of it stays in the hospital's way.
    let LedgerEnd { entries, head } = agent.ctx.state.ledger_end().unwrap();
    let known = consilium_proto::v1::LedgerEnd { entries, head: head.to_string() };
    *world.hub.ledger.lock().unwrap() = Some(known);
    agent.ctx.facts.drop_round("round", TaskKind::Train);
    while claim().is_some_and(|claim| claim.stands) {
        tokio::task::yield_now().await;
    }
}

async fn reason_of(status: watch::Receiver<LinkStatus>, expected: &str) {
    until(expected, status, |status| matches!(status, LinkStatus::Disconnected { reason, .. } if *reason == expected))
        .await;
}

/// The hospital's network team must learn from the condition what to change.
#[tokio::test]
async fn a_proxy_that_breaks_tls_open_is_named() {
    let world = World::new().await;
    let (_, impostor) = FakeHub::start(&Pki::new()).await;
    let proxy = TinyProxy::start(impostor).await;
    let agent = world.agent(Some(proxy.address));
    reason_of(agent.status.clone(), "ProxyIntercepts").await;
    agent.kill().await;
    let straight = World { address: impostor, ..world };
    reason_of(straight.agent(None).status.clone(), "UntrustedGateway").await;
}

#[tokio::test]
async fn objects_come_through_the_link_and_stay_when_it_is_gone() {
    let world = World::new().await;
    let agent = world.agent(None);
    let digest = Digest::of(b"content");
    world.hub.objects.lock().unwrap().insert(digest, Bytes::from_static(b"content"));
    assert_eq!(&agent.ctx.objects.get(digest).await.unwrap()[..], b"content");
    world.hub.objects.lock().unwrap().clear();
    assert_eq!(&agent.ctx.objects.get(digest).await.unwrap()[..], b"content");
    // Damage on the volume is noticed, and the object asked for again.
    std::fs::write(world.dir.path().join("objects").join(digest.hex()), b"damaged").unwrap();
    assert!(agent.ctx.objects.get(digest).await.unwrap_err().is_transient());
    world.hub.objects.lock().unwrap().insert(digest, Bytes::from_static(b"replaced"));
    let error = agent.ctx.objects.get(digest).await.unwrap_err();
    assert!(matches!(error, ObjectError::Digest { .. }) && !error.is_transient());
}
