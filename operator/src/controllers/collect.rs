//! Which objects of the store the API still names; the rest is taken away after its time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use consilium_crds::{FederatedStudy, ModelPromotion, ModelRelease, TrainingRound};
use consilium_federation::Digest;
use futures::AsyncReadExt as _;
use kube::Resource;
use kube::api::ListParams;
use kube::core::Request;
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::Error;
use crate::store::{Collected, Names};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(600);
/// With less room than this, what nothing names is kept for [`WHEN_FULL`] at most.
const SHORT: u64 = 1 << 30;
/// See [`SHORT`]. Also the least that is waited, whatever is asked: from a model's manifest to its name in a status.
const WHEN_FULL: Duration = Duration::from_secs(3600);

/// Runs until shutdown.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match collect(&context).await {
            Ok(Collected { objects: 0, .. }) => {}
            Ok(Collected { objects, bytes }) => {
                tracing::info!(objects, bytes, "models that nothing names were taken out of the store");
                context.metrics.collected(bytes);
            }
            Err(error) => tracing::warn!(%error, "nothing was taken out of the store; it is tried again"),
        }
    }
}

/// Takes away what nothing has named for its time.
///
/// # Errors
/// When the API does not say what it names, or the volume fails; then all or more than needed stays.
pub async fn collect(context: &Context) -> Result<Collected, Error> {
    let store = context.hub.store();
    let (free, promised) = store.space().map_err(Error::store("measuring the store"))?;
    // Before it is asked what is named: what is put meanwhile is younger.
    let before = before(context.now().into(), context.settings.unnamed_for, free.saturating_sub(promised));
    let mut named = named(context).await?;
    // Delivered, and in no status yet: its study is suspended, or waits for a hospital.
    named.extend(context.delivered.models());
    store.collect(&named, before).await.map_err(Error::store("taking away what nothing names"))
}

/// What was put before this may go; `room` is what is neither taken nor promised, bytes.
fn before(now: SystemTime, unnamed_for: Duration, room: u64) -> SystemTime {
    let age = if room < SHORT { WHEN_FULL } else { unnamed_for.max(WHEN_FULL) };
    now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Every digest that stands in an object of ours.
async fn named(context: &Context) -> Result<BTreeSet<Digest>, Error> {
    let mut names = Names::default();
    let kinds = [
        FederatedStudy::url_path(&(), None),
        TrainingRound::url_path(&(), None),
        ModelRelease::url_path(&(), None),
        ModelPromotion::url_path(&(), None),
    ];
    for path in kinds {
        read(context, &path, &mut names).await?;
    }
    Ok(names.found)
}

/// Reads a list as it comes: it may be large, and an object in it need not be one that this version understands.
async fn read(context: &Context, path: &str, names: &mut Names) -> Result<(), Error> {
    let what = || format!("listing {path} for the digests in it");
    let request = Request::new(path).list(&ListParams::default());
    let request = request.map_err(|error| Error::Bug(error.to_string()))?;
    let answer = context.client.request_stream(request).await.map_err(Error::kube(what()))?;
    let (mut answer, mut buffer, mut last) = (std::pin::pin!(answer), vec![0; 64 << 10], b' ');
    loop {
        let read =
            answer.read(&mut buffer).await.map_err(|error| Error::kube(what())(kube::Error::Service(error.into())))?;
        if read == 0 {
            break;
        }
        names.read(&buffer[..read]);
        last = buffer[..read].iter().rev().find(|byte| !byte.is_ascii_whitespace()).copied().unwrap_or(last);
    }
    // Half a list names half of what is needed.
    if last == b'}' { Ok(()) } else { Err(Error::kube(what())(kube::Error::Service("the answer ended early".into()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A day is kept for people who want an old round's model; a volume that is full cannot wait that long.
    #[test]
    fn a_full_volume_waits_an_hour_and_nothing_waits_less() {
        let (now, hour) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30), Duration::from_secs(3600));
        for (asked, room, age) in [(24, SHORT, 24 * hour), (24, SHORT - 1, hour), (0, SHORT, hour), (0, 0, hour)] {
            assert_eq!(before(now, asked * hour, room), now - age, "{asked} {room}");
        }
    }
}
