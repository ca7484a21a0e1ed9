//! A federation on clusters that run: installed as a platform team would, driven as its users would.
//!
//! The demo and the end-to-end tests go through the same doors: Helm charts, Secrets, `kubectl apply`, the
//! `kubectl-consilium` plugin, and the inference service of each hospital. Nothing is applied behind their back.

pub mod data;
pub mod install;
pub mod pki;
pub mod promote;
pub mod roster;
pub mod study;
pub mod view;
pub mod wait;

use crate::{
    cluster::Cluster,
    error::{Error, Result},
    images::Image,
};

/// Hub namespace of the operator.
pub const SYSTEM: &str = "consilium-system";
/// Hospital namespace of the agent.
pub const AGENT: &str = "consilium-agent";
/// Hospital namespace of tasks and models.
pub const TASKS: &str = "consilium-tasks";
/// Hub namespace of the demo's studies.
pub const RESEARCH: &str = "research";

/// A hub, its hospitals, and the images that they run.
pub struct Federation {
    /// The hub's cluster.
    pub hub: Cluster,
    /// The hospitals' clusters.
    pub sites: Vec<Cluster>,
    /// Images by digest, loaded into every cluster.
    pub images: Vec<Image>,
}

impl Federation {
    /// From what `cluster::up` returned: the hub first.
    pub fn new(mut clusters: Vec<Cluster>, images: Vec<Image>) -> Result<Self> {
        if clusters.is_empty() {
            return Err(Error::NotUp { name: "hub".into() });
        }
        let hub = clusters.remove(0);
        Ok(Self { hub, sites: clusters, images })
    }

    /// The full reference of an image.
    pub fn image(&self, name: &str) -> Result<String> {
        let found = self.images.iter().find(|image| image.name == name).map(Image::reference);
        found.ok_or_else(|| Error::Malformed { path: name.into(), problem: "this image was not built".into() })
    }

    /// A hospital by name.
    pub fn site(&self, name: &str) -> Result<&Cluster> {
        self.sites.iter().find(|site| site.name == name).ok_or_else(|| Error::NotUp { name: name.into() })
    }
}
