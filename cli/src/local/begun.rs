//! What a folder was begun with. A folder without this word is not ours, and nothing in it is touched.

use std::path::Path;

use consilium_federation::{Digest, SiteName};
use serde::{Deserialize, Serialize};

use super::setup::Plan;
use super::{Arguments, Failure, LOCK, Result, files};

/// Its name in the folder.
const FILE: &str = "begun.json";
/// What a process that was killed before it wrote [`FILE`] leaves.
const BEFORE: [&str; 2] = [LOCK, "begun.json.part"];

/// All that the result depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Begun {
    study: String,
    spec: Digest,
    hospitals: Vec<SiteName>,
    scans: String,
    trainer: Option<String>,
}

impl Begun {
    fn with(plan: &Plan, arguments: &Arguments) -> Result<Self> {
        let absolute = |path: &Path| std::fs::canonicalize(path).map_err(Failure::file(path));
        let scans = match (&arguments.shards, &arguments.data) {
            (Some(shards), _) => format!("--shards {}", absolute(shards)?.display()),
            (None, Some(data)) => format!("--data {}", absolute(data)?.display()),
            (None, None) => format!("{} phantoms each", arguments.cases),
        };
        let (hospitals, trainer) = (plan.sites.clone(), arguments.trainer.clone());
        Ok(Self { study: plan.key.to_string(), spec: plan.digest, hospitals, scans, trainer })
    }

    /// What differs: how it was begun, how it goes on now, and which arguments say so.
    fn differs(&self, now: &Self) -> Option<(String, String, &'static str)> {
        let study = |begun: &Self| format!("study {} with the spec {}", begun.study, begun.spec);
        let hospitals = |begun: &Self| {
            let names: Vec<&str> = begun.hospitals.iter().map(SiteName::as_str).collect();
            format!("the hospitals {}", names.join(", "))
        };
        let trainer =
            |begun: &Self| begun.trainer.clone().map_or("our own trainer".into(), |t| format!("--trainer {t}"));
        if (&self.study, self.spec) != (&now.study, now.spec) {
            Some((study(self), study(now), "the study"))
        } else if self.hospitals != now.hospitals {
            Some((hospitals(self), hospitals(now), "--hospitals"))
        } else if self.scans != now.scans {
            Some((self.scans.clone(), now.scans.clone(), "--data, --shards and --cases"))
        } else if self.trainer != now.trainer {
            Some((trainer(self), trainer(now), "--trainer"))
        } else {
            None
        }
    }
}

/// Takes the folder, which is locked, for this study; whether the study was begun there before.
///
/// # Errors
/// When it holds anything of somebody else, or was begun with other arguments.
pub(super) fn claim(plan: &Plan, arguments: &Arguments) -> Result<bool> {
    let (out, asked) = (&plan.out, Begun::with(plan, arguments)?);
    let known = files::get::<Begun>(&out.join(FILE))?;
    match known.as_ref().map(|known| known.differs(&asked)) {
        Some(Some((begun, now, arguments))) => {
            return Err(Failure::Refused(format!(
                "{} was begun with {begun} and now gets {now}: leave {arguments} as it was, or name another folder by \
                 --out",
                out.display()
            )));
        }
        Some(None) => {}
        None => {
            if let Some(name) = foreign(out)? {
                files::remove(&out.join(LOCK))?;
                return Err(Failure::Refused(format!(
                    "--out {} holds {name:?}, which is not of `consilium local`: name a folder that is empty or not there",
                    out.display()
                )));
            }
            files::put(&out.join(FILE), &asked)?;
        }
    }
    // It holds scans and keys: for nobody else on this machine, and in no repository.
    files::for_owner_alone(out)?;
    files::put_bytes(&out.join(".gitignore"), b"*\n")?;
    Ok(known.is_some())
}

/// The first thing in the folder that nobody here made.
fn foreign(out: &Path) -> Result<Option<String>> {
    for entry in std::fs::read_dir(out).map_err(Failure::file(out))? {
        let name = entry.map_err(Failure::file(out))?.file_name().to_string_lossy().into_owned();
        if !BEFORE.contains(&name.as_str()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
