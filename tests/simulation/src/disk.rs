//! The hub's volume: in memory, and out of order when the schedule says so.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::mutant::Mutant;
use crate::schedule::Write;

/// A volume as one process of the hub has it: when that is killed, it does nothing more.
#[derive(Clone, Debug)]
pub struct Disk {
    objects: Arc<InMemory>,
    inner: Arc<Inner>,
    mutant: Option<Mutant>,
}

#[derive(Debug, Default)]
struct Inner {
    dead: AtomicBool,
    full: Arc<AtomicBool>,
    /// How many writes from now on, and what comes of that one.
    fate: Mutex<Option<(u8, Write)>>,
}

impl Disk {
    /// A volume with these objects; `full` is everybody's.
    pub fn new(objects: Arc<InMemory>, full: Arc<AtomicBool>, mutant: Option<Mutant>) -> Self {
        Self { objects, mutant, inner: Arc::new(Inner { full, ..Inner::default() }) }
    }

    /// The n-th write from now on comes to this.
    pub fn arm(&self, n: u8, fate: Write) {
        *self.inner.fate.lock().unwrap_or_else(PoisonError::into_inner) = Some((n, fate));
    }

    /// Whether the process was killed in a write.
    pub fn is_dead(&self) -> bool {
        self.inner.dead.load(Ordering::SeqCst)
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() { Err(broken("the process was killed")) } else { Ok(()) }
    }

    fn due(&self) -> Option<Write> {
        let mut fate = self.inner.fate.lock().unwrap_or_else(PoisonError::into_inner);
        match fate.as_mut() {
            Some((0, now)) => {
                let now = *now;
                *fate = None;
                Some(now)
            }
            Some((n, _)) => {
                *n -= 1;
                None
            }
            None => None,
        }
    }

    fn die(&self) {
        self.inner.dead.store(true, Ordering::SeqCst);
    }
}

fn broken(why: &'static str) -> Error {
    Error::Generic { store: "simulation", source: why.into() }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a simulated volume")
    }
}

#[tonic::async_trait]
impl ObjectStore for Disk {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.alive()?;
        if self.inner.full.load(Ordering::SeqCst) {
            return Err(broken("no space left on device"));
        }
        let fate = self.due();
        if fate == Some(Write::CrashBefore) {
            self.die();
            return Err(broken("killed before a write"));
        }
        if self.mutant == Some(Mutant::SkippedJournal) && location.as_ref().contains("/share/") {
            return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
        }
        let put = self.objects.put_opts(location, payload, options).await;
        if fate == Some(Write::CrashAfter) {
            self.die();
            return Err(broken("killed after a write"));
        }
        put
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.alive()?;
        self.objects.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive()?;
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if self.is_dead() {
            return Box::pin(futures::stream::once(async { Err(broken("the process was killed")) }));
        }
        if self.mutant == Some(Mutant::NothingDeleted) {
            return locations;
        }
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.alive()?;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.alive()?;
        self.objects.copy_opts(from, to, options).await
    }
}
