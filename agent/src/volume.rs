//! Whether the agent's volume can be used, asked again and again: a full, broken or hanging one is told, and what
//! needs it is begun anew. What stops things does not need it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::{Context, Metrics, StateError};

/// How often the volume is tried.
const TRY: Duration = Duration::from_secs(15);
/// A write that takes longer is told; it cannot be given up.
const SLOW: Duration = Duration::from_secs(20);
/// What is written to try it.
const BLOB: &str = "volume/tried";

/// Why the parts that need the volume do not run, or not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// CamelCase, for conditions.
    pub reason: &'static str,
    /// What was seen, and what to do.
    pub message: String,
    /// It is the volume; else it is something that the parts need beside it.
    pub volume: bool,
    /// It is the ledger on it.
    pub ledger: bool,
}

impl Trouble {
    /// The volume has not been opened yet.
    pub fn starting() -> Self {
        let message = "the volume is being opened and its ledger verified".to_owned();
        Self { reason: "Starting", message, volume: false, ledger: false }
    }

    /// What an error of the parts says of the volume.
    pub fn of(error: &anyhow::Error) -> Self {
        let message = format!("{error:#}");
        let (reason, volume, ledger) = match error.chain().find_map(|cause| cause.downcast_ref::<StateError>()) {
            Some(StateError::Ledger { .. }) => ("LedgerBroken", true, true),
            Some(StateError::Damaged { .. }) => ("StateDamaged", true, false),
            Some(StateError::InUse(_)) => ("VolumeInUse", true, false),
            Some(_) => ("VolumeUnusable", true, false),
            None => ("BegunAnew", false, false),
        };
        Self { reason, message, volume, ledger }
    }

    fn slow() -> Self {
        let message =
            format!("a write to the volume has taken {} s and has not come back; look at its storage", SLOW.as_secs());
        Self { reason: "VolumeSlow", message, volume: true, ledger: false }
    }
}

/// Says what the trouble is, or that there is none.
pub fn tell(metrics: &Metrics, told: &watch::Sender<Option<Trouble>>, trouble: Option<Trouble>) {
    let of = |what: fn(&Trouble) -> bool| i64::from(!trouble.as_ref().is_some_and(what));
    metrics.volume_usable.set(of(|trouble| trouble.volume));
    metrics.ledger_intact.set(of(|trouble| trouble.ledger));
    told.send_if_modified(|known| {
        let changed = *known != trouble;
        *known = trouble;
        changed
    });
}

/// Tries the volume until shutdown, and writes what the ledger lacks. Fails when the volume does: a database that has
/// failed once has to be opened anew.
pub async fn watch(ctx: Arc<Context>, told: watch::Sender<Option<Trouble>>) -> anyhow::Result<()> {
    loop {
        let trying = Arc::clone(&ctx);
        let mut tried = tokio::task::spawn_blocking(move || try_once(&trying));
        let result = match tokio::time::timeout(SLOW, &mut tried).await {
            Ok(result) => result,
            Err(_) => {
                tell(&ctx.metrics, &told, Some(Trouble::slow()));
                tokio::select! {
                    () = ctx.shutdown.cancelled() => return Ok(()),
                    result = tried => result,
                }
            }
        };
        result??;
        tell(&ctx.metrics, &told, None);
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = ctx.unrecorded.news() => {}
            () = tokio::time::sleep(TRY) => {}
        }
    }
}

fn try_once(ctx: &Context) -> Result<(), StateError> {
    let (folder, now) = (&ctx.config.state, ctx.now());
    let space = rustix::fs::statvfs(folder).map_err(|error| StateError::io(folder)(error.into()))?;
    ctx.metrics.volume_bytes.set(space.f_blocks.saturating_mul(space.f_frsize) as f64);
    ctx.metrics.volume_free_bytes.set(space.f_bavail.saturating_mul(space.f_frsize) as f64);
    let written = ctx.unrecorded.write(&ctx.state, now);
    ctx.metrics.unrecorded.set(ctx.unrecorded.len());
    written?;
    ctx.state.put_blob(BLOB, now.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is woken at night must read at once whether to free space, to restore a volume, or to keep it as evidence.
    #[test]
    fn trouble_is_told_by_what_has_to_be_done() {
        let broken = StateError::Ledger { seq: 3, why: "w".into() };
        let full = StateError::io("/x")(std::io::Error::from(std::io::ErrorKind::StorageFull));
        for (error, reason, volume, ledger) in [
            (anyhow::Error::from(broken).context("link"), "LedgerBroken", true, true),
            (full.into(), "VolumeUnusable", true, false),
            (StateError::InUse("/x".into()).into(), "VolumeInUse", true, false),
            (anyhow::anyhow!("no certificate"), "BegunAnew", false, false),
        ] {
            let trouble = Trouble::of(&error);
            assert_eq!((trouble.reason, trouble.volume, trouble.ledger), (reason, volume, ledger));
        }
    }
}
