//! A release on disk, checked against the digests it was allowed under before a byte of it is used.
//!
//! The folder holds what the agent hands out: `release.json` (the ModelRelease's spec as canonical JSON), `manifest.json`
//! (the model's manifest) and `model.safetensors`. The chain is: the agent names the release's digest and the model's →
//! `release.json` has the first and names the second → `manifest.json` has the second and lists the chunks → the weights
//! have the chunks' digests.

use std::fs;
use std::path::{Path, PathBuf};

use consilium_federation::digest::Digest;
use consilium_federation::model::{ModelError, ModelManifest, parse_safetensors_header};
use consilium_federation::output::{OutputKind, OutputSpec};
use consilium_imaging::frame::Frame;
use consilium_imaging::place::Axes;
use consilium_imaging::preprocess::divisible;
use consilium_imaging::torch::{Network, Segmenter, UNet3d, WeightsError, load_weights};
use serde::Deserialize;
use tch::{Device, TchError, nn};

/// A release that is not served. All of these are permanent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// A file is missing or unreadable.
    #[error("{}: cannot be read: {reason}; the pod's fetch container must have run", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// `release.json` is not the release that was allowed.
    #[error(
        "release.json has the digest {found}, this server was told to serve {expected}; it was changed or belongs to another release and is not served"
    )]
    WrongRelease {
        /// The digest it has.
        found: Digest,
        /// The digest that was allowed.
        expected: Digest,
    },
    /// The release names another model.
    #[error("release.json names the model {found}, this server was told to serve {expected}; nothing is served")]
    WrongModel {
        /// The model it names.
        found: Digest,
        /// The model that was allowed.
        expected: Digest,
    },
    /// `release.json` cannot be used.
    #[error("release.json: {0}; nothing is served")]
    BadRelease(String),
    /// The manifest or the weights differ.
    #[error("{}: {source}; nothing is served", file.display())]
    BadModel {
        /// The file.
        file: PathBuf,
        /// What differs.
        source: ModelError,
    },
    /// The weights do not fit the network that the release names.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// What a server was told to serve.
#[derive(Debug, Clone)]
pub struct Allowed {
    /// Folder of the three files.
    pub root: PathBuf,
    /// Digest of `release.json`.
    pub release: Digest,
    /// Digest of the model.
    pub model: Digest,
}

/// The part of a release's spec that a server needs; the rest is lineage and evidence.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// The study, `namespace/name`.
    pub study: String,
    /// The round.
    pub round: u32,
    /// Digest of the model's manifest.
    pub model: Digest,
    /// The trainer's configuration.
    config: Config,
    /// What the model answers, if its study said it.
    #[serde(default)]
    pub output: Option<OutputSpec>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Config {
    network: Network,
    /// What the model was trained and judged with, unless `output.shape` says it.
    #[serde(default)]
    shape: Option<[usize; 3]>,
}

impl Release {
    /// The network that the model is for.
    pub fn network(&self) -> &Network {
        &self.config.network
    }

    /// Shape x, y, z of a tile.
    ///
    /// # Errors
    /// A release that says none is not served, since another than the one that the model was judged with would be a guess.
    pub fn tile(&self) -> Result<[usize; 3], ReleaseError> {
        let said = self.output.as_ref().and_then(|output| output.shape);
        said.map(|shape| shape.map(|side| side as usize))
            .or(self.config.shape)
            .ok_or_else(|| ReleaseError::BadRelease("it has neither output.shape nor config.shape".into()))
    }

    /// How scans have to lie: what its output says, and `RAS` where that names no orientation.
    pub fn frame(&self) -> Result<Frame, ReleaseError> {
        let Some(output) = &self.output else { return Ok(Frame::default()) };
        let axes = output.orientation.as_ref().map(|orientation| orientation.as_str().parse::<Axes>()).transpose();
        let axes = axes.map_err(|e| ReleaseError::BadRelease(format!("output.{e}")))?;
        Ok(Frame::new(axes, output.spacing_mm().map(|sides| sides.map(|side| side as f32))))
    }

    /// The network must answer what the release says.
    fn agrees(&self) -> Result<(), String> {
        let Some(output) = &self.output else { return Ok(()) };
        output.check()?;
        let classes = usize::from(self.network().unet().classes);
        if output.kind != OutputKind::Segmentation || output.values() != classes {
            return Err(format!(
                "output is {:?} with {} classes, and config.network makes masks of {classes} values, the background among them",
                output.kind,
                output.classes.len()
            ));
        }
        Ok(())
    }
}

/// Checks the whole chain of digests and gives the release. Nothing of the model is interpreted before its digest holds.
pub fn verify(allowed: &Allowed) -> Result<Release, ReleaseError> {
    let bytes = read(&allowed.root.join("release.json"))?;
    let found = Digest::of(&bytes);
    if found != allowed.release {
        return Err(ReleaseError::WrongRelease { found, expected: allowed.release });
    }
    let release: Release = serde_json::from_slice(&bytes).map_err(|e| ReleaseError::BadRelease(e.to_string()))?;
    if release.model != allowed.model {
        return Err(ReleaseError::WrongModel { found: release.model, expected: allowed.model });
    }
    release.network().check().map_err(ReleaseError::BadRelease)?;
    release.agrees().map_err(ReleaseError::BadRelease)?;
    let tile = release.tile()?;
    if !divisible(tile, release.network().unet().levels) {
        return Err(ReleaseError::BadRelease(format!("the shape {tile:?} cannot be halved")));
    }
    let file = allowed.root.join("manifest.json");
    let manifest =
        ModelManifest::parse(&read(&file)?, allowed.model).map_err(|source| ReleaseError::BadModel { file, source })?;
    let file = weights_file(&allowed.root);
    verify_weights(&manifest, &read(&file)?).map_err(|source| ReleaseError::BadModel { file, source })?;
    Ok(release)
}

/// The weights' payload and its tensors must be the manifest's: a header that names the same numbers differently would
/// make another model of them.
fn verify_weights(manifest: &ModelManifest, bytes: &[u8]) -> Result<(), ModelError> {
    let (schema, payload) = parse_safetensors_header(bytes)?;
    if schema != manifest.tensors {
        return Err(ModelError::Manifest("its tensors are not those of the manifest".into()));
    }
    manifest.verify(&bytes[payload..])
}

/// Builds the network of a verified release and loads the weights; up to `tiles` tiles go through it at once.
pub fn load(allowed: &Allowed, release: &Release, device: Device, tiles: usize) -> Result<Segmenter, ReleaseError> {
    let store = nn::VarStore::new(device);
    let net = UNet3d::new(&store.root(), release.network().unet())?;
    load_weights(&store, &weights_file(&allowed.root))?;
    Ok(Segmenter::new(net, release.network(), device, release.tile()?, tiles)?)
}

fn weights_file(root: &Path) -> PathBuf {
    root.join("model.safetensors")
}

fn read(file: &Path) -> Result<Vec<u8>, ReleaseError> {
    fs::read(file).map_err(|e| ReleaseError::Unreadable { file: file.to_owned(), reason: e.to_string() })
}
