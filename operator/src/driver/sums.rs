//! Sums under way, at most one for each attempt of a round. A sum that is lost with the process is made again: it
//! is a function of what lies in the store, and its result has the same digest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_federation::round::Summed;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::Wake;
use super::book::Owner;
use super::decide::SumOutcome;
use super::error::back_off;
use crate::aggregation::{SumJob, aggregate};
use crate::store::BlobStore;

/// Sums that run at once: each is bound by hashing and the disk, not by how many there are.
const AT_ONCE: usize = 2;

/// Sums under way and done; a clone is the same set.
#[derive(Clone, Debug)]
pub struct Sums(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    entries: Mutex<HashMap<(String, u32), Entry>>,
    permits: Semaphore,
}

#[derive(Debug)]
struct Entry {
    task: AbortHandle,
    result: Option<Result<Summed, String>>,
    trouble: Option<String>,
}

impl Default for Sums {
    fn default() -> Self {
        Self(Arc::new(Inner { entries: Mutex::default(), permits: Semaphore::new(AT_ONCE) }))
    }
}

impl Sums {
    fn entries(&self) -> MutexGuard<'_, HashMap<(String, u32), Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the sum of this attempt ended, if it has.
    pub fn outcome(&self, uid: &str, attempt: u32) -> Option<SumOutcome> {
        let result = self.entries().get(&(uid.to_owned(), attempt))?.result.clone()?;
        Some(SumOutcome { attempt, result })
    }

    /// What keeps the sum of this attempt from ending, if anything does.
    pub fn trouble(&self, uid: &str, attempt: u32) -> Option<String> {
        self.entries().get(&(uid.to_owned(), attempt))?.trouble.clone()
    }

    /// Stops and forgets all sums of a round.
    pub fn forget(&self, uid: &str) {
        self.entries().retain(|(round, _), entry| {
            if round == uid {
                entry.task.abort();
            }
            round != uid
        });
    }

    /// Starts the sum of an attempt unless it runs or has ended; wakes the round's owner when it ends.
    pub fn start(&self, store: &BlobStore, (wake, owner): (&Wake, Owner), job: SumJob) {
        let key = (job.round_uid.clone(), job.attempt);
        let mut entries = self.entries();
        if entries.contains_key(&key) {
            return;
        }
        let (sums, store, wake) = (self.clone(), store.clone(), wake.clone());
        let task = tokio::spawn({
            let key = key.clone();
            async move {
                let result = sums.sum(&store, &key, &job, || wake(&owner)).await;
                sums.settle(&key, |entry| {
                    entry.result = Some(result);
                    entry.trouble = None;
                });
                wake(&owner);
            }
        });
        entries.insert(key, Entry { task: task.abort_handle(), result: None, trouble: None });
    }

    /// Sums until there is a result; a store that does not answer is asked again.
    async fn sum(
        &self,
        store: &BlobStore,
        key: &(String, u32),
        job: &SumJob,
        wake: impl Fn(),
    ) -> Result<Summed, String> {
        let mut failures = 0;
        loop {
            // The semaphore is never closed; without a permit the sum would only be less polite. It is not held while one
            // waits to try again: a volume that is full for one round must not keep the sums of all others.
            let permit = self.0.permits.acquire().await.ok();
            let result = aggregate(store, job).await;
            drop(permit);
            match result {
                Ok(summed) => return Ok(summed),
                Err(error) if error.is_transient() => {
                    tracing::warn!(round = job.round_uid, attempt = job.attempt, %error, "the sum is tried again");
                    self.settle(key, |entry| entry.trouble = Some(error.to_string()));
                    wake();
                    tokio::time::sleep(back_off(failures, rand::random())).await;
                    failures += 1;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn settle(&self, key: &(String, u32), change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries().get_mut(key) {
            change(entry);
        }
    }
}
