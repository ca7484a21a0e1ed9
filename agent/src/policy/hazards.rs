//! The hazards that this hospital has seen: what its objects say, and what they said before somebody deleted one.
//!
//! A hazard ends by being closed. One whose object is gone stays here and goes on lowering, and is to be made again; so
//! nothing rises because an object was deleted, pruned or forgotten in a restore.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consilium_clinical::hazards::{HazardLog, MAX_HAZARDS, Origin};
use consilium_clinical::plan::Fall;
use consilium_clinical::values::Name;
use consilium_crds::{ModelHazard, ModelHazardSpec};
use kube::ResourceExt as _;

/// Bytes of the hazards that are kept beside the objects, as JSON.
const MAX_BYTES: usize = 4 << 20;

/// What has been seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hazards {
    log: HazardLog,
    /// The objects were read; before that only what the volume kept is known.
    whole: bool,
    /// What each of the log says, to make its object again.
    specs: BTreeMap<String, ModelHazardSpec>,
    /// Objects that cannot be read or break the rules of the log: each lowers every model, how far.
    unread: BTreeMap<String, Fall>,
}

impl Hazards {
    /// The log.
    pub fn log(&self) -> &HazardLog {
        &self.log
    }

    /// Whether the objects were read.
    pub fn whole(&self) -> bool {
        self.whole
    }

    /// How far what cannot be read lowers every model, and which objects that are.
    pub fn unread(&self) -> impl Iterator<Item = (&str, Fall)> {
        self.unread.iter().map(|(name, fall)| (name.as_str(), *fall))
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.log.all().filter(|(_, _, hazard)| hazard.closed.is_none()).count()
            + self.unread.len()
            + usize::from(!self.whole)
    }

    /// Takes what the objects say; answers what is refused of it, in words. What was refused before and is now well is
    /// forgotten; what is no longer there stays.
    pub fn take<'a>(&mut self, objects: impl IntoIterator<Item = &'a ModelHazard>) -> Vec<String> {
        self.whole = true;
        let mut refused = Vec::new();
        for object in objects {
            let name = object.name_any();
            if let Err(why) = self.take_one(&name, &object.spec) {
                refused.push(format!("ModelHazard {name}: {why}"));
                // What the log has of it goes on as it was. What it has nothing of, or what is another one under an old name,
                // counts for every model while it is open.
                let same = |known: &ModelHazardSpec| (&known.of, known.opened) == (&object.spec.of, object.spec.opened);
                let known = self.specs.get(&name);
                let over = known.is_some() && object.spec.closed.is_some();
                if !known.is_some_and(same) && !over {
                    self.unread.insert(name, object.spec.lowers.max(Fall::Shadow));
                }
            }
        }
        refused
    }

    fn take_one(&mut self, name: &str, spec: &ModelHazardSpec) -> Result<(), String> {
        if self.specs.get(name) == Some(spec) {
            self.unread.remove(name);
            return Ok(());
        }
        let id: Name = name.parse().map_err(|e| format!("metadata.name: {e}"))?;
        let hazard = spec.hazard().ok_or_else(|| spec.hazard.clone())?;
        self.log.take(Origin::Hospital, &id, hazard).map_err(|e| e.to_string())?;
        self.specs.insert(name.to_owned(), spec.clone());
        self.unread.remove(name);
        Ok(())
    }

    /// The open ones of which there is no object.
    pub fn missing(&self, there: &BTreeSet<String>) -> Vec<(&str, &ModelHazardSpec)> {
        let open = self.specs.iter().filter(|(_, spec)| spec.closed.is_none());
        open.filter(|(name, _)| !there.contains(*name)).map(|(name, spec)| (name.as_str(), spec)).collect()
    }

    /// What is kept on the volume: the open ones, as far as there is room. A closed one stands in its object alone.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut room = MAX_BYTES;
        let mut kept = BTreeMap::new();
        for (name, spec) in self.specs.iter().filter(|(_, spec)| spec.closed.is_none()) {
            let size = serde_json::to_vec(spec).map_or(usize::MAX, |json| json.len() + name.len());
            let Some(left) = room.checked_sub(size) else { continue };
            room = left;
            kept.insert(name, spec);
        }
        serde_json::to_vec(&kept).unwrap_or_default()
    }

    /// What is kept on the volume of those that cannot be read: how far each lowers, by name.
    pub fn unread_to_bytes(&self) -> Vec<u8> {
        let kept: BTreeMap<&String, &Fall> = self.unread.iter().take(MAX_HAZARDS).collect();
        serde_json::to_vec(&kept).unwrap_or_default()
    }

    /// Takes up those that could not be read. One that the objects have said meanwhile, and that was read, is known better.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take_up_unread(&mut self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        let kept: BTreeMap<String, Fall> = serde_json::from_slice(bytes)?;
        let unknown = kept.into_iter().filter(|(name, _)| !self.whole || !self.specs.contains_key(name));
        for (name, fall) in unknown.collect::<Vec<_>>() {
            self.unread.entry(name).or_insert(fall);
        }
        Ok(())
    }

    /// Takes up what was kept. What the objects said meanwhile counts before it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take_up(&mut self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        let kept: BTreeMap<String, ModelHazardSpec> = serde_json::from_slice(bytes)?;
        for (name, spec) in kept {
            if !self.specs.contains_key(&name) && self.take_one(&name, &spec).is_err() {
                self.unread.insert(name, spec.lowers.max(Fall::Shadow));
            }
        }
        Ok(())
    }
}

/// The hazards, shared by the guard and the controller of models.
#[derive(Clone, Debug, Default)]
pub struct SeenHazards(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    refused: Vec<String>,
    hazards: Arc<Hazards>,
}

impl SeenHazards {
    /// Takes what all the objects say, and logs what is refused of it, once.
    pub fn take(&self, objects: &[Arc<ModelHazard>]) {
        let mut seen = self.lock();
        let refused = Arc::make_mut(&mut seen.hazards).take(objects.iter().map(|object| &**object));
        for why in refused.iter().filter(|why| !seen.refused.contains(why)) {
            tracing::error!(why, "a hazard is not taken as it stands; it lowers as before, or every model");
        }
        seen.refused = refused;
    }

    /// Takes up what was kept on the volume.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take_up(&self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        Arc::make_mut(&mut self.lock().hazards).take_up(bytes)
    }

    /// Takes up what was kept of those that could not be read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn take_up_unread(&self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        Arc::make_mut(&mut self.lock().hazards).take_up_unread(bytes)
    }

    /// The hazards as far as they are known: those that the volume kept lower from the start.
    pub fn known(&self) -> Arc<Hazards> {
        Arc::clone(&self.lock().hazards)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // What a thread that panicked has left is whole: each hazard is taken or not.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "hazards_tests.rs"]
pub(crate) mod tests;
