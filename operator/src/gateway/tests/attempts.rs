//! An attempt of the masking protocol through the gateway: real hospitals (`secagg` clients) over mutual TLS, the hub's
//! own machine, journal and sum, and only the round's state made by hand.

use std::collections::BTreeMap;

use bytes::Bytes;
use consilium_crds::roster::site_id;
use consilium_federation::assignment::{Item, Work};
use consilium_federation::round::{ProtocolStep, Summed};
use consilium_federation::strategy::Rule;
use consilium_federation::{Digest, SiteName};
use consilium_proto::v1;
use consilium_proto::v1::hub_client::HubClient;
use consilium_secagg::client::{Client, Floors, Guard};
use consilium_secagg::history::{DifferenceRule, History};
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ring::encode_head;
use consilium_secagg::roster::{Governance, Roster, RosterEntry, SignedRoster, VerifiedRoster};
use consilium_secagg::spec::{AttemptSpec, Purpose, RoundSpec, Weighting};
use consilium_secagg::sum::to_bytes;
use consilium_secagg::upload::chunk_digest;
use consilium_secagg::weight::Weight;
use consilium_secagg::wire::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tonic::Code;
use tonic::transport::Channel;

use super::rig::{BODY, Rig, round_item};
use crate::aggregation::{Subject, SumJob, aggregate};
use crate::attempts::{AttemptError, Inputs, Plan};

const SITES: [&str; 4] = ["alder", "birch", "cedar", "damson"];
const ROUND: &str = "r-1";
const CLIP: f64 = 10.0;

fn name(site: &str) -> SiteName {
    site.parse().unwrap()
}

/// One honest hospital.
struct Hospital {
    name: SiteName,
    key: SiteKey,
    client: Option<Client>,
    history: History,
    plain: Vec<Vec<u8>>,
    masked: Vec<Vec<u8>>,
    rng: StdRng,
}

impl Hospital {
    fn new(index: usize, roster_size: usize) -> Self {
        let ring = consilium_secagg::ring::RingParams::new(roster_size, CLIP).unwrap();
        let weight = Weight::from_examples(10 * (index as u64 + 1), 1 << 16, 1).unwrap();
        let update: Vec<f32> = (0..BODY).map(|i| (i as f32 - index as f32) * 0.1).collect();
        let (mut head, mut body) = (vec![0; 16], vec![0; BODY]);
        encode_head(&ring, weight, &[], &mut head).unwrap();
        ring.encode(weight, &update, &mut body).unwrap();
        Self {
            name: name(SITES[index]),
            key: SiteKey::from_seed(&[index as u8 + 1; 32]),
            client: None,
            history: History::default(),
            plain: vec![to_bytes(&head), to_bytes(&body)],
            masked: Vec::new(),
            rng: StdRng::seed_from_u64(index as u64),
        }
    }

    /// Does the step that its item asks for and answers what it sends.
    fn act(&mut self, world: &World, step: ProtocolStep, input: Option<&[u8]>) -> Vec<u8> {
        let floors = Floors { min_contributors: 3, colluders: 1 };
        let guard = Guard { roster: &world.roster, floors: &floors, history: &self.history };
        let input = input.unwrap_or_default();
        if step == ProtocolStep::Advertise {
            let opened = Client::open(world.attempt.clone(), site_id(&self.name), &self.key, guard, &mut self.rng);
            return self.client.insert(opened.unwrap()).advert().to_bytes();
        }
        let client = self.client.as_mut().unwrap();
        match step {
            ProtocolStep::Advertise | ProtocolStep::Sum => unreachable!("handled above, and never asked for"),
            ProtocolStep::Share => {
                let list = Message::from_bytes(input).unwrap();
                client.adverts(&list, &self.key, guard, &mut self.rng).unwrap().to_bytes()
            }
            ProtocolStep::Upload => {
                client.bundle(&Message::from_bytes(input).unwrap()).unwrap();
                client.bind_update(self.plain.iter().map(|c| chunk_digest(c)).collect()).unwrap();
                let masker = client.masker().unwrap();
                self.masked = self.plain.clone();
                let digests = (0..).zip(&mut self.masked).map(|(i, chunk)| masker.mask(i, chunk).unwrap()).collect();
                client.finish_upload(digests, &self.key).unwrap().to_bytes()
            }
            ProtocolStep::Agree => {
                let statement = Message::from_bytes(input).unwrap();
                let rule = DifferenceRule::Allow;
                client.survivors(&statement, &self.key, &self.history, rule).unwrap().to_bytes()
            }
            ProtocolStep::Unmask => {
                let proof = Message::from_bytes(input).unwrap();
                client.proof(&proof, &self.key, &self.history).unwrap().to_bytes()
            }
        }
    }
}

/// What a round's state would say, made by hand.
struct World {
    rig: Rig,
    model: Digest,
    roster: VerifiedRoster,
    attempt: AttemptSpec,
    inputs: Inputs,
    step: ProtocolStep,
    /// Who did each step.
    did: BTreeMap<&'static str, Vec<SiteName>>,
}

impl World {
    async fn new(hospitals: &[Hospital]) -> Self {
        let rig = Rig::start().await;
        rig.accept(&SITES);
        let model = rig.model(1).await;
        let entries = hospitals.iter().map(|h| RosterEntry { site: site_id(&h.name), key: h.key.public() }).collect();
        let governor = SiteKey::from_seed(&[99; 32]);
        let mut signed = SignedRoster::new(Roster { federation: "north".into(), version: 1, entries });
        signed.sign(&governor);
        let pinned = Governance { federation: "north".into(), keys: vec![governor.public()], required: 1 };
        let roster = pinned.verify(&signed).unwrap();
        let digest = |d: Digest| consilium_secagg::ids::Digest(*d.as_bytes());
        let round = RoundSpec {
            federation: "north".into(),
            study: "research/hippocampus@u-1".into(),
            round: 1,
            purpose: Purpose::Train,
            subject: digest(model),
            plan: digest(Digest::of(b"spec")),
            schema: digest(Digest::of(b"schema")),
            roster: roster.digest(),
            capacity: 4,
            clip: CLIP,
            weighting: Weighting::Examples { cap: 1 << 16 },
            statistics: vec![],
            body: BODY as u64,
            colluders: 1,
            min_contributors: 3,
        };
        let attempt = AttemptSpec { round, attempt: 1 };
        let (inputs, step) = (Inputs::Nothing, ProtocolStep::Advertise);
        Self { rig, model, roster, attempt, inputs, step, did: BTreeMap::new() }
    }

    fn plan(&self) -> Plan {
        let did = |step: &str| self.did.get(step).cloned().unwrap_or_default();
        Plan {
            round_uid: ROUND.into(),
            attempt: self.attempt.clone(),
            roster: self.roster.clone(),
            step: self.step,
            advertised: did("Advertise"),
            dealt: did("Share"),
            survivors: did("Upload"),
        }
    }

    /// What the round controller does when a step opens: the machine first, then the items.
    async fn open(&mut self, step: ProtocolStep) {
        self.step = step;
        self.inputs = self.rig.hub.attempts().follow(self.rig.hub.store(), &self.plan()).await.unwrap();
        for site in SITES {
            let mut item = round_item(ROUND, self.model, Some(step));
            let Work::Round(work) = &mut item.work else { unreachable!("a round's item") };
            work.roster = Some(Digest::from_bytes(self.roster.digest().0));
            work.inputs = self.inputs.of(&name(site));
            self.rig.hub.publish(&name(site), vec![item]);
        }
    }

    /// The hub is killed and comes back with its volume alone.
    async fn restart(&mut self) {
        self.rig.restart().await;
        self.rig.accept(&SITES);
        self.open(self.step).await;
    }

    fn input_of(&self, site: &SiteName) -> Option<Digest> {
        let assignment = self.rig.hub.assignment(site)?;
        let [Item { work: Work::Round(work), .. }] = &assignment.items[..] else { return None };
        work.inputs
    }

    async fn fetch(&self, client: &mut HubClient<Channel>, site: &SiteName) -> Option<Bytes> {
        let digest = self.input_of(site)?.to_string();
        Some(client.get_object(v1::GetObjectRequest { digest }).await.unwrap().into_inner().content)
    }

    /// One hospital's part in the open step, through the gateway.
    async fn act(&mut self, hospital: &mut Hospital) -> Bytes {
        let mut client = self.rig.site(hospital.name.as_str());
        let input = self.fetch(&mut client, &hospital.name).await;
        let sent: Bytes = hospital.act(self, self.step, input.as_deref()).into();
        self.send(&mut client, hospital, sent.clone()).await.unwrap();
        self.did.entry(step_name(self.step)).or_default().push(hospital.name.clone());
        sent
    }

    async fn send(
        &self,
        client: &mut HubClient<Channel>,
        hospital: &Hospital,
        content: Bytes,
    ) -> Result<(), tonic::Status> {
        if self.step != ProtocolStep::Upload {
            let step = step_name(self.step).to_owned();
            let message = v1::PutMessageRequest { round_uid: ROUND.into(), attempt: 1, step, content };
            return client.put_message(message).await.map(drop);
        }
        let chunks = hospital.masked.iter().map(|c| Bytes::copy_from_slice(&chunk_digest(c).0)).collect();
        let begin = v1::BeginUploadRequest { round_uid: ROUND.into(), attempt: 1, chunks, manifest: content };
        for index in client.begin_upload(begin).await?.into_inner().missing {
            let content = hospital.masked[index as usize].clone().into();
            client.put_chunk(v1::PutChunkRequest { round_uid: ROUND.into(), attempt: 1, index, content }).await?;
        }
        Ok(())
    }

    async fn sum(&self) -> Vec<f32> {
        let masks = self.rig.hub.attempts().masks(self.rig.hub.store(), &self.plan()).await.unwrap();
        let job = SumJob {
            round_uid: ROUND.into(),
            attempt: 1,
            contributors: self.plan().survivors,
            subject: Subject::Updates { base_model: self.model, clip: CLIP, rule: Rule::Average, moments: vec![] },
            roster_size: 4,
            masks: Some(masks),
        };
        let store = self.rig.hub.store();
        let Summed::Model(new) = aggregate(store, &job).await.unwrap() else { panic!("no model") };
        let manifest = store.get_manifest(new.model).await.unwrap();
        let bytes = store.get_object(manifest.chunks[0]).await.unwrap();
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

const fn step_name(step: ProtocolStep) -> &'static str {
    match step {
        ProtocolStep::Advertise => "Advertise",
        ProtocolStep::Share => "Share",
        ProtocolStep::Upload => "Upload",
        ProtocolStep::Agree => "Agree",
        ProtocolStep::Unmask => "Unmask",
        ProtocolStep::Sum => "Sum",
    }
}

const STEPS: [ProtocolStep; 5] =
    [ProtocolStep::Advertise, ProtocolStep::Share, ProtocolStep::Upload, ProtocolStep::Agree, ProtocolStep::Unmask];

fn hospitals() -> Vec<Hospital> {
    (0..SITES.len()).map(|i| Hospital::new(i, SITES.len())).collect()
}

/// base + Σ w·u / Σ w over these hospitals; the base is i + 1, the updates as `Hospital::new` makes them.
fn expected(of: &[usize]) -> Vec<f64> {
    let total: f64 = of.iter().map(|i| (i + 1) as f64).sum();
    let mean = |j: usize| of.iter().map(|i| (i + 1) as f64 * (j as f64 - *i as f64) * 0.1).sum::<f64>() / total;
    (0..BODY).map(|j| j as f64 + 1.0 + mean(j)).collect()
}

fn assert_close(found: &[f32], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-3, "{found} {expected}");
    }
}

/// The model must be the plain weighted mean of those in the sum, whoever drops out at which step, with a hub that is
/// killed and restarted in the middle of every step.
#[tokio::test(flavor = "multi_thread")]
async fn drop_outs_at_any_step_and_a_killed_hub_leave_the_plain_mean() {
    // (the step from which one hospital is gone, who is in the sum)
    let cases: [(Option<ProtocolStep>, &[usize]); 6] = [
        (None, &[0, 1, 2, 3]),
        (Some(ProtocolStep::Advertise), &[0, 1, 2]),
        (Some(ProtocolStep::Share), &[0, 1, 2]),
        (Some(ProtocolStep::Upload), &[0, 1, 2]),
        (Some(ProtocolStep::Agree), &[0, 1, 2, 3]),
        (Some(ProtocolStep::Unmask), &[0, 1, 2, 3]),
    ];
    for (gone, in_sum) in cases {
        let mut hospitals = hospitals();
        let mut world = World::new(&hospitals).await;
        for step in STEPS {
            world.open(step).await;
            for (i, hospital) in hospitals.iter_mut().enumerate() {
                if i == 3 && gone.is_some_and(|gone| step >= gone) {
                    continue;
                }
                let sent = world.act(hospital).await;
                if i == 1 {
                    world.restart().await;
                    // The answer was lost with the hub: the same again is fine.
                    let mut client = world.rig.site(hospital.name.as_str());
                    world.send(&mut client, hospital, sent).await.unwrap();
                }
            }
            let heard = world.rig.hub.attempts().heard(ROUND, 1, step).await;
            assert_eq!(heard, world.did[step_name(step)].iter().cloned().collect(), "{gone:?} {step:?}");
        }
        world.open(ProtocolStep::Sum).await;
        assert_close(&world.sum().await, &expected(in_sum));
        world.restart().await;
        assert_close(&world.sum().await, &expected(in_sum));
    }
}

/// Whatever one hospital sends in another's name, for another step or instead of its first word is refused at the
/// door, and the attempt goes on without it.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_do_not_fit_are_refused_and_the_others_go_on() {
    let mut hospitals = hospitals();
    let mut world = World::new(&hospitals).await;
    world.open(ProtocolStep::Advertise).await;
    let theirs = world.act(&mut hospitals[1]).await;
    let mut alder = world.rig.site("alder");
    let put = |step: &str, content: Bytes| v1::PutMessageRequest {
        round_uid: ROUND.into(),
        attempt: 1,
        step: step.into(),
        content,
    };
    for (request, code) in [
        (put("Advertise", theirs.clone()), Code::InvalidArgument),
        (put("Advertise", Bytes::from_static(b"noise")), Code::InvalidArgument),
        (put("Share", theirs.clone()), Code::FailedPrecondition),
        (put("Upload", theirs.clone()), Code::InvalidArgument),
        (v1::PutMessageRequest { attempt: 2, ..put("Advertise", theirs.clone()) }, Code::FailedPrecondition),
    ] {
        let status = alder.put_message(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{request:?}: {status}");
    }
    world.act(&mut hospitals[0]).await;
    let mut again = Hospital::new(0, 4);
    again.rng = StdRng::seed_from_u64(77);
    let other = again.act(&world, ProtocolStep::Advertise, None);
    let status = alder.put_message(put("Advertise", other.into())).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    world.act(&mut hospitals[2]).await;
    world.open(ProtocolStep::Share).await;
    // Not a member: its item asks for the step, but there is no place for it in the session.
    let mut damson = world.rig.site("damson");
    assert_eq!(damson.put_message(put("Share", theirs)).await.unwrap_err().code(), Code::InvalidArgument);
    for hospital in &mut hospitals[..3] {
        world.act(hospital).await;
    }
}

/// An attempt of all hospitals whose upload step is open.
async fn at_upload() -> (World, Vec<Hospital>) {
    let mut hospitals = hospitals();
    let mut world = World::new(&hospitals).await;
    for step in [ProtocolStep::Advertise, ProtocolStep::Share] {
        world.open(step).await;
        for hospital in &mut hospitals {
            world.act(hospital).await;
        }
    }
    world.open(ProtocolStep::Upload).await;
    (world, hospitals)
}

/// A bundle holds shares for one hospital's eyes; another's work does not lead to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_for_its_hospital_alone() {
    let (world, _) = at_upload().await;
    let digest = world.input_of(&name("birch")).unwrap().to_string();
    let request = v1::GetObjectRequest { digest };
    assert_eq!(world.rig.site("alder").get_object(request.clone()).await.unwrap_err().code(), Code::NotFound);
    world.rig.site("birch").get_object(request).await.unwrap();
}

/// Under masks an upload without a signed manifest, or with other chunks than it lists, never reaches the journal.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_under_masks_is_what_its_manifest_says() {
    let (world, mut hospitals) = at_upload().await;
    let mut alder = world.rig.site("alder");
    let input = world.fetch(&mut alder, &name("alder")).await;
    let manifest: Bytes = hospitals[0].act(&world, ProtocolStep::Upload, input.as_deref()).into();
    let chunks = |of: &[Vec<u8>]| of.iter().map(|c| Bytes::copy_from_slice(&chunk_digest(c).0)).collect::<Vec<_>>();
    let begin = |chunks, manifest| v1::BeginUploadRequest { round_uid: ROUND.into(), attempt: 1, chunks, manifest };
    let bare = alder.begin_upload(begin(chunks(&hospitals[0].masked), Bytes::new())).await.unwrap_err();
    assert!(bare.code() == Code::InvalidArgument && bare.message().contains("manifest"), "{bare}");
    let plain = alder.begin_upload(begin(chunks(&hospitals[0].plain), manifest.clone())).await.unwrap_err();
    assert!(plain.code() == Code::InvalidArgument && plain.message().contains("manifest lists"), "{plain}");
    alder.begin_upload(begin(chunks(&hospitals[0].masked), manifest)).await.unwrap();
}

/// With fewer answers than the threshold no mask comes off: the hub says so, sums nothing, and goes on when one more comes.
#[tokio::test(flavor = "multi_thread")]
async fn below_the_threshold_nothing_is_unmasked() {
    let (mut world, mut hospitals) = at_upload().await;
    for hospital in &mut hospitals {
        world.act(hospital).await;
    }
    for (step, answers) in [(ProtocolStep::Agree, 4), (ProtocolStep::Unmask, 2)] {
        world.open(step).await;
        for hospital in &mut hospitals[..answers] {
            world.act(hospital).await;
        }
    }
    world.step = ProtocolStep::Sum;
    let (hub, plan) = (world.rig.hub.clone(), world.plan());
    let error = hub.attempts().follow(hub.store(), &plan).await.unwrap_err();
    assert!(matches!(error, AttemptError::Protocol(_)), "{error}");
    assert!(hub.attempts().masks(hub.store(), &plan).await.is_err());
    world.step = ProtocolStep::Unmask;
    world.act(&mut hospitals[3]).await;
    world.open(ProtocolStep::Sum).await;
    assert_close(&world.sum().await, &expected(&[0, 1, 2, 3]));
}
