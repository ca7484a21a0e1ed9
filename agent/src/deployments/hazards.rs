//! The hospital's hazards in its cluster: read, kept on the volume, and made again where somebody deleted an open one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consilium_crds::{ModelHazard, ModelHazardSpec};
use futures::FutureExt as _;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt as _};
use tokio::sync::Notify;

use crate::Context;
use crate::tasks::{MANAGER, follow};

/// Where the open ones are kept on the volume.
const BLOB: &str = "hazards";
/// And those that could not be read.
const UNREAD: &str = "hazards-unread";
/// How long the objects are waited for at the start. Then models go on, on Shadow until they are read.
const PATIENCE: Duration = Duration::from_secs(30);

/// What keeps the hazards.
pub(super) struct Hazards {
    ctx: Arc<Context>,
    store: Store<ModelHazard>,
    api: Api<ModelHazard>,
    /// What the volume has.
    kept: Mutex<BTreeMap<&'static str, Vec<u8>>>,
}

impl Hazards {
    pub(super) fn follow(ctx: Arc<Context>, news: Arc<Notify>) -> Self {
        let (client, namespace) = (ctx.kube.clone(), ctx.config.namespace.as_str());
        let store = follow(Api::namespaced(client.clone(), namespace), "", news, ctx.shutdown.clone());
        Self { store, api: Api::namespaced(client, namespace), kept: Mutex::default(), ctx }
    }

    /// Takes up what the volume has, and waits a little for the objects.
    pub(super) async fn begin(&self) -> anyhow::Result<()> {
        for (name, unread) in [(BLOB, false), (UNREAD, true)] {
            let Some(kept) = self.ctx.state.blob(name)? else { continue };
            let hazards = &self.ctx.hazards;
            let taken = if unread { hazards.take_up_unread(&kept) } else { hazards.take_up(&kept) };
            if let Err(error) = taken {
                tracing::error!(%error, name, "the hazards on the volume cannot be read; those of the cluster count");
            }
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name, kept);
        }
        if tokio::time::timeout(PATIENCE, self.store.wait_until_ready()).await.is_err() {
            tracing::error!(
                "the hazards cannot be read, so every model counts as if one were open: see whether this \
                             cluster has the kind ModelHazard and the agent may list and watch it"
            );
        }
        Ok(())
    }

    /// Takes what the objects say, keeps it, and makes again what is missing. What fails is tried at the next turn.
    pub(super) async fn turn(&self) {
        if self.store.wait_until_ready().now_or_never().is_none() {
            return;
        }
        let objects = self.store.state();
        self.ctx.hazards.take(&objects);
        let hazards = self.ctx.hazards.known();
        let kept = [(BLOB, hazards.to_bytes()), (UNREAD, hazards.unread_to_bytes())];
        if let Err(error) = kept.into_iter().try_for_each(|(name, bytes)| self.keep(name, bytes)) {
            tracing::error!(%error, "the open hazards could not be written to the volume; it is tried again");
        }
        let there: BTreeSet<String> = objects.iter().map(|object| object.name_any()).collect();
        for (name, spec) in hazards.missing(&there) {
            self.restore(name, spec).await;
        }
    }

    fn keep(&self, name: &'static str, bytes: Vec<u8>) -> Result<(), crate::state::StateError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.get(name) != Some(&bytes) {
            self.ctx.state.put_blob(name, &bytes)?;
            kept.insert(name, bytes);
        }
        Ok(())
    }

    async fn restore(&self, name: &str, spec: &ModelHazardSpec) {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let object = ModelHazard { metadata, spec: spec.clone() };
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        match self.api.create(&params, &object).await {
            Ok(_) => tracing::warn!(name, "an open hazard was deleted and is made again: it ends by being closed"),
            // The watch is behind.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                tracing::warn!(name, %error, "an open hazard is gone and could not be made again; it lowers all the same")
            }
        }
    }
}
