//! The hospitals' scans: phantoms, one folder cut by person, or a folder for each.

use std::path::{Path, PathBuf};

use super::setup::Plan;
use super::{Arguments, Failure, Result, files, process};

/// Parts of a hospital's folder.
const PARTS: [&str; 3] = ["train", "eval", "labels"];

/// Sees that every hospital has its scans; answers each one's folder, in the order of the plan.
pub(super) async fn prepare(plan: &Plan, arguments: &Arguments) -> Result<Vec<PathBuf>> {
    if let Some(shards) = &arguments.shards {
        return given(plan, shards);
    }
    let folder = plan.out.join("data");
    let all = || plan.sites.iter().map(|site| folder.join(site.as_str())).collect();
    // There is all of it or nothing: it gets its name when it is done.
    if folder.exists() {
        return Ok(all());
    }
    let fresh = plan.out.join("data.new");
    files::remove(&fresh)?;
    let names = plan.sites.iter().map(|site| site.as_str()).collect::<Vec<_>>().join(",");
    let cases = arguments.cases.to_string();
    let shape = shape(plan);
    let out = fresh.to_string_lossy().into_owned();
    let mut words = match &arguments.data {
        Some(data) => vec!["shard", "--data", path(data)?],
        None => vec!["phantom", "--cases", &cases, "--shape", &shape],
    };
    words.extend(["--out", &out, "--names", &names]);
    trainer(plan, &words).await?;
    std::fs::rename(&fresh, &folder).map_err(Failure::file(&folder))?;
    Ok(all())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Failure::Refused(format!("{} is no UTF-8", path.display())))
}

/// Phantoms of the size that the study's networks work on, where its config says one.
fn shape(plan: &Plan) -> String {
    let sides = plan.study.spec.trainer.config.get("shape").and_then(|shape| shape.as_array());
    let sides = sides.map(|sides| sides.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
    sides.unwrap_or_else(|| "32,40,32".into())
}

async fn trainer(plan: &Plan, words: &[&str]) -> Result<()> {
    let Some(builtin) = &plan.builtin else {
        return Err(Failure::Refused(
            "making scans needs consilium-trainer, which was not found; name a folder of scans for each hospital by --shards"
                .into(),
        ));
    };
    // It ends with this process: one that went on would write among the scans of the next run.
    let run = process::command(&[builtin])?.args(words).output().await.map_err(Failure::file(builtin))?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr).trim().to_owned();
    Err(Failure::Refused(format!("consilium-trainer {}: {said}", words.join(" "))))
}

/// Folders that are there already: named as the hospitals are, or taken in their order.
fn given(plan: &Plan, shards: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(shards).map_err(Failure::file(shards))? {
        let path = entry.map_err(Failure::file(shards))?.path();
        if path.join(PARTS[0]).is_dir() {
            found.push(path);
        }
    }
    found.sort();
    let named: Vec<PathBuf> = plan.sites.iter().map(|site| shards.join(site.as_str())).collect();
    let folders = if named.iter().all(|folder| folder.is_dir()) { named } else { found };
    if folders.len() < plan.sites.len() {
        return Err(Failure::Refused(format!(
            "--shards {}: {} folders with train, eval and labels in them, and {} hospitals; make one for each, as \
             `consilium-trainer shard` does",
            shards.display(),
            folders.len(),
            plan.sites.len()
        )));
    }
    let needed = if plan.study.spec.gate.is_some() { &PARTS[..] } else { &PARTS[..1] };
    for folder in folders.iter().take(plan.sites.len()) {
        if let Some(missing) = needed.iter().find(|part| !folder.join(part).is_dir()) {
            return Err(Failure::Refused(format!("{} lacks the folder {missing}", folder.display())));
        }
    }
    let absolute = |folder: PathBuf| std::fs::canonicalize(&folder).map_err(Failure::file(&folder));
    folders.into_iter().take(plan.sites.len()).map(absolute).collect()
}
