//! A small federation for tests; compiled for tests only.
use crate::advert::{AdvertList, Seeds};
use crate::identity::SiteKey;
use crate::ids::{Digest, SiteId};
use crate::ring::Statistic;
use crate::roster::{Governance, Roster, RosterEntry, SignedRoster, VerifiedRoster};
use crate::spec::{AttemptSpec, Purpose, RoundSpec, Weighting};
use crate::wire::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A deterministic random source.
pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub(crate) fn site(i: usize) -> SiteId {
    SiteId::new(format!("site-{i:03}")).unwrap()
}

pub(crate) fn round_spec(n: usize, body: u64) -> RoundSpec {
    RoundSpec {
        federation: "f".into(),
        study: "research/hippocampus/uid-1".into(),
        round: 1,
        purpose: Purpose::Train,
        subject: Digest([1; 32]),
        plan: Digest([2; 32]),
        schema: Digest([3; 32]),
        roster: Digest([4; 32]),
        capacity: n as u16,
        clip: 10.0,
        weighting: Weighting::Examples { cap: 1000 },
        statistics: vec![Statistic::Count { max: 100_000 }, Statistic::Real { bound: 100.0 }],
        body,
        colluders: 0,
        min_contributors: 3,
    }
}

/// Hospitals with keys, a signed roster and an attempt among all of them.
pub(crate) struct Federation {
    pub(crate) sites: Vec<SiteId>,
    pub(crate) keys: Vec<SiteKey>,
    pub(crate) roster: VerifiedRoster,
    pub(crate) attempt: AttemptSpec,
}

impl Federation {
    pub(crate) fn new(n: usize, body: u64) -> Self {
        let sites: Vec<_> = (0..n).map(site).collect();
        let keys: Vec<_> = (0..n).map(|i| SiteKey::generate(&mut rng(1000 + i as u64))).collect();
        let entries = sites.iter().zip(&keys).map(|(s, k)| RosterEntry { site: s.clone(), key: k.public() }).collect();
        let governor = SiteKey::generate(&mut rng(1));
        let mut signed = SignedRoster::new(Roster { federation: "f".into(), version: 1, entries });
        signed.sign(&governor);
        let governance = Governance { federation: "f".into(), keys: vec![governor.public()], required: 1 };
        let roster = governance.verify(&signed).unwrap();
        let mut round = round_spec(n, body);
        round.roster = roster.digest();
        Self { sites, keys, roster, attempt: AttemptSpec { round, attempt: 1 } }
    }

    /// Everyone's advert for an attempt, and the seeds behind them.
    pub(crate) fn adverts(&self, attempt: &AttemptSpec) -> (AdvertList, Vec<Seeds>) {
        let digest = attempt.digest();
        let (mut adverts, mut seeds) = (Vec::new(), Vec::new());
        for (i, (site, key)) in self.sites.iter().zip(&self.keys).enumerate() {
            let mut rng = rng(2000 + i as u64);
            let own = Seeds::random(&mut rng);
            adverts.push(own.advertise(&digest, site, key, &mut rng));
            seeds.push(own);
        }
        (AdvertList { adverts }, seeds)
    }
}
