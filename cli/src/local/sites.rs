//! The hospitals of a study as seen from the first process: their keys, their processes, where their tasks are.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use consilium_agent::{Entropy, State};
use consilium_crds::RoundTask;
use consilium_crds::roster::{RosterDocument, RosterSite, key_text};
use consilium_federation::SiteName;
use consilium_federation::round::SiteReason;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::roster::SignedRoster;
use tokio::process::Child;

use super::events::{Event, Events};
use super::hospital::HOSPITAL;
use super::pki::Authority;
use super::setup::{FEDERATION, Plan, Setup};
use super::{Failure, Result, files, process, secret};

/// The governance's key.
fn governor(plan: &Plan) -> Result<SiteKey> {
    Ok(SiteKey::from_seed(&secret(&plan.out.join("governance.key"))?))
}

/// The roster of the hospitals' keys, which each of them makes on its own volume.
pub(super) fn roster(plan: &Plan) -> Result<SignedRoster> {
    let (file, failed) =
        (plan.out.join("roster.json"), |e: &dyn std::fmt::Display| Failure::Part(format!("the roster: {e}")));
    let document = match files::get::<RosterDocument>(&file)? {
        Some(known) => known,
        None => {
            let mut sites = Vec::new();
            for name in &plan.sites {
                let entropy = Entropy::system();
                let state = State::open(&plan.hospital(name).join("state"), entropy.bytes32());
                let key = state.and_then(|state| state.site_key(&entropy)).map_err(|e| failed(&e))?;
                sites.push(RosterSite { public_key: key_text(&key.public()), name: name.clone() });
            }
            let document = RosterDocument { federation: FEDERATION.into(), version: 1, sites, signatures: vec![] };
            let mut signed = document.signed().map_err(|e| failed(&e))?;
            signed.sign(&governor(plan)?);
            let document = RosterDocument::of(&signed);
            files::put(&file, &document)?;
            document
        }
    };
    document.signed().map_err(|e| failed(&e))
}

/// New certificates for this run.
pub(super) fn certificates(plan: &Plan) -> Result<()> {
    let (gateways, callers) = (Authority::new("gateway")?, Authority::new("hospitals")?);
    gateways.gateway(&plan.out.join("gateway"), &callers)?;
    plan.sites.iter().try_for_each(|site| callers.site(&plan.hospital(site).join("tls"), site, &gateways))
}

/// A hospital that ends sooner does not run at all.
const SOON: Duration = Duration::from_secs(10);
/// How often in a row that may be.
const CHANCES: u32 = 5;

struct Hospital {
    child: Child,
    since: Instant,
    /// How often in a row it ended soon.
    soon: u32,
}

/// The hospitals' processes; they end when this goes.
pub(super) struct Hospitals<'a> {
    plan: &'a Plan,
    children: BTreeMap<SiteName, Hospital>,
    told: BTreeMap<(SiteName, String), (Option<SiteReason>, Option<String>)>,
}

impl<'a> Hospitals<'a> {
    /// Starts each with its scans.
    pub(super) fn start(plan: &'a Plan, data: &[PathBuf], gateway: &str) -> Result<Self> {
        let policy = plan.policy(&governor(plan)?)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let evaluator = plan.builtin.as_ref().map(|path| vec![path.to_string_lossy().into_owned()]);
        let mut children = BTreeMap::new();
        for (site, data) in plan.sites.iter().zip(data) {
            let setup = Setup {
                site: site.clone(),
                gateway: gateway.to_owned(),
                policy: policy.clone(),
                trainer: plan.trainer.clone(),
                evaluator: evaluator.clone(),
                data: data.clone(),
                threads: (cores / plan.sites.len()).max(1),
            };
            files::put(&plan.hospital(site).join("hospital.json"), &setup)?;
            let hospital = Hospital { child: spawn(plan, site)?, since: Instant::now(), soon: 0 };
            children.insert(site.clone(), hospital);
        }
        Ok(Self { plan, children, told: BTreeMap::new() })
    }

    /// Their names.
    pub(super) fn names(&self) -> impl Iterator<Item = &SiteName> {
        self.plan.sites.iter()
    }

    /// Starts again what has ended, and tells where tasks are.
    pub(super) fn look(&mut self, events: &Events) -> Result<()> {
        for (site, hospital) in &mut self.children {
            let folder = self.plan.hospital(site);
            if let Some(status) = hospital.child.try_wait().map_err(Failure::file(&folder))? {
                hospital.soon = if hospital.since.elapsed() < SOON { hospital.soon + 1 } else { 0 };
                let log = folder.join("log");
                if hospital.soon >= CHANCES {
                    let why = format!("{site} ended {CHANCES} times in a row: {status}; see {}", log.display());
                    return Err(Failure::Part(why));
                }
                events.tell(&Event::Restarted { site: site.clone(), why: format!("it ended with {status}") });
                (hospital.child, hospital.since) = (spawn(self.plan, site)?, Instant::now());
            }
            for task in files::all::<RoundTask>(&folder.join("tasks"))? {
                let name = task.metadata.name.clone().unwrap_or_default();
                let Some(status) = &task.status else { continue };
                let key = (status.reason, status.progress.clone());
                if self.told.get(&(site.clone(), name.clone())) == Some(&key) {
                    continue;
                }
                self.told.insert((site.clone(), name), key);
                let Some(reason) = status.reason else { continue };
                let words = status.conditions.iter().find(|c| c.status != "True" && !c.message.is_empty());
                events.tell(&Event::Task {
                    site: site.clone(),
                    round: task.spec.round,
                    kind: task.spec.kind,
                    reason,
                    progress: status.progress.clone(),
                    message: words.map(|c| c.message.clone()),
                });
            }
        }
        Ok(())
    }

    /// Ends them all.
    pub(super) fn end(&mut self) {
        self.children.values_mut().for_each(|hospital| process::kill(&mut hospital.child));
    }
}

fn spawn(plan: &Plan, site: &SiteName) -> Result<Child> {
    let folder = plan.hospital(site);
    let program = std::env::current_exe().map_err(Failure::file(&folder))?;
    let file = folder.join("log");
    let log = File::options().create(true).append(true).open(&file).map_err(Failure::file(&file))?;
    let errors = log.try_clone().map_err(Failure::file(&file))?;
    let mut command = process::command(&[program.as_os_str(), HOSPITAL.as_ref(), folder.as_os_str()])?;
    command.stdout(log).stderr(errors).spawn().map_err(Failure::file(&folder))
}
