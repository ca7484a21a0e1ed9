//! What the share exchange of a large roster costs the hub. The complete graph's shares grow with the square of the
//! hospitals, and what each gets of the others', headers included, with the cube when all of it is held at once.

use consilium_crds::roster::site_id;
use consilium_secagg::client::{Client, Floors, Guard};
use consilium_secagg::history::History;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::roster::{Governance, Roster, RosterEntry, SignedRoster};
use consilium_secagg::spec::{Purpose, RoundSpec, Weighting};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

/// Megabytes of this process: what `/proc/self/status` says under this name.
fn megabytes(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// From now on the peak is counted anew.
fn forget_the_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

struct Federation {
    sites: Vec<SiteName>,
    keys: Vec<SiteKey>,
    plan: Plan,
}

fn federation(n: usize) -> Federation {
    let sites: Vec<SiteName> = (0..n).map(|i| format!("site-{i:03}").parse().unwrap()).collect();
    let keys: Vec<SiteKey> = (0..n).map(|i| SiteKey::from_seed(&[i as u8; 32])).collect();
    let entry = |(site, key): (&SiteName, &SiteKey)| RosterEntry { site: site_id(site), key: key.public() };
    let entries = sites.iter().zip(&keys).map(entry).collect();
    let governor = SiteKey::from_seed(&[255; 32]);
    let mut signed = SignedRoster::new(Roster { federation: "north".into(), version: 1, entries });
    signed.sign(&governor);
    let pinned = Governance { federation: "north".into(), keys: vec![governor.public()], required: 1 };
    let roster = pinned.verify(&signed).unwrap();
    let digest = |text: &[u8]| ChunkDigest(*Digest::of(text).as_bytes());
    let round = RoundSpec {
        federation: "north".into(),
        study: "research/hippocampus@u-1".into(),
        round: 1,
        purpose: Purpose::Train,
        subject: digest(b"model"),
        plan: digest(b"spec"),
        schema: digest(b"schema"),
        roster: roster.digest(),
        capacity: n as u16,
        clip: 10.0,
        weighting: Weighting::Examples { cap: 1 << 16 },
        statistics: vec![],
        body: 10,
        colluders: 1,
        min_contributors: 3,
    };
    let plan = Plan {
        round_uid: "r-1".into(),
        attempt: AttemptSpec { round, attempt: 1 },
        roster,
        step: ProtocolStep::Advertise,
        advertised: sites.clone(),
        dealt: sites.clone(),
        survivors: vec![],
    };
    Federation { sites, keys, plan }
}

/// The hub's journal after all have dealt their shares.
async fn dealt(store: &BlobStore, federation: &mut Federation) {
    let attempts = Attempts::default();
    let (floors, history) = (Floors { min_contributors: 3, colluders: 1 }, History::default());
    let roster = federation.plan.roster.clone();
    let guard = || Guard { roster: &roster, floors: &floors, history: &history };
    let mut rng = StdRng::seed_from_u64(1);
    let mut clients = Vec::new();
    for (site, key) in federation.sites.iter().zip(&federation.keys) {
        let opened = Client::open(federation.plan.attempt.clone(), site_id(site), key, guard(), &mut rng);
        let client = opened.unwrap();
        let advert = client.advert().to_bytes();
        store.put_message(&federation.plan.key(site), ProtocolStep::Advertise, &advert).await.unwrap();
        clients.push(client);
    }
    federation.plan.step = ProtocolStep::Share;
    let Inputs::Same(list) = attempts.follow(store, &federation.plan).await.unwrap() else { panic!() };
    let list = Message::from_bytes(&store.get_object(list).await.unwrap()).unwrap();
    for ((site, key), client) in federation.sites.iter().zip(&federation.keys).zip(&mut clients) {
        let shares = client.adverts(&list, key, guard(), &mut rng).unwrap().to_bytes();
        store.put_message(&federation.plan.key(site), ProtocolStep::Share, &shares).await.unwrap();
    }
    federation.plan.step = ProtocolStep::Upload;
}

/// Says to the process that this test starts what it is to measure: the store's folder and how many hospitals.
const MEASURE: &str = "CONSILIUM_SCALE";

/// What opening the step after the shares, and what all hospitals fetch then, adds to a fresh hub.
async fn measure(folder: &std::path::Path, n: usize) -> f64 {
    let store = BlobStore::open(folder).await.unwrap();
    let federation = federation(n);
    let plan = Plan { step: ProtocolStep::Upload, ..federation.plan };
    let attempts = Attempts::default();
    let before = megabytes("VmRSS");
    forget_the_peak();
    let inputs = attempts.follow(&store, &plan).await.unwrap();
    for site in &federation.sites {
        let digest = inputs.of(site).unwrap();
        let bundle = attempts.made(&plan.key(site), digest).await.unwrap();
        assert_eq!(Digest::of(&bundle), digest);
    }
    megabytes("VmHWM") - before
}

/// A hub at its limit of memory would end in the middle of every round of a large federation.
#[tokio::test]
#[ignore = "takes a minute or two, and starts itself anew to measure a fresh process"]
async fn the_share_exchange_of_two_hundred_hospitals_stays_small() {
    if let Ok(asked) = std::env::var(MEASURE) {
        let (folder, n) = asked.rsplit_once(' ').unwrap();
        println!("MEASURED {}", measure(std::path::Path::new(folder), n.parse().unwrap()).await);
        return;
    }
    for (n, most) in [(50, 15.0), (120, 60.0), (200, 150.0)] {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        dealt(&store, &mut federation(n)).await;
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--nocapture", "--exact"])
            .arg("attempts::scale_tests::the_share_exchange_of_two_hundred_hospitals_stays_small")
            .env(MEASURE, format!("{} {n}", folder.path().display()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = text.lines().find_map(|line| line.split_once("MEASURED ")).map(|(_, mb)| mb.trim().parse::<f64>());
        let found = found.unwrap_or_else(|| panic!("{text}")).unwrap();
        println!("{n} hospitals: {found:.0} MB");
        assert!(found < most, "{n} hospitals: {found:.0} MB");
    }
}
