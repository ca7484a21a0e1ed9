//! Container images without a container engine: OCI layouts in the cache, brought into a cluster's containerd under the
//! name that a pod asks for, `registry.consilium.local/NAME@sha256:…`, as a hospital's mirror would serve it.

pub mod cli;

mod load;
mod oci;
mod programs;
mod rootfs;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use load::{load, load_all};

use self::oci::{Content, Entry, RunConfig, Store};
use crate::{
    cache,
    cargo::{self, Profile},
    error::Result,
    libtorch,
    tools::Tools,
};

/// The name under which images are known in the clusters. Nothing answers there: every image is brought in.
pub const REGISTRY: &str = "registry.consilium.local";

/// Manifest annotation: the CUDA compute capabilities that an image's libtorch was compiled for, comma-separated; `none`
/// when it runs on the CPU only.
pub const CAPABILITIES: &str = "health.consilium.compute-capabilities";

/// Which libtorch the trainer and the inference server get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variant {
    /// No GPU.
    Cpu,
    /// CUDA 12.6, the last that runs on Volta (sm_70, the DGX-2's V100) and the T4 both.
    Cu126 {
        /// The torch wheel, which is not on PyPI.
        wheel: PathBuf,
    },
}

impl Variant {
    fn suffix(&self) -> &'static str {
        match self {
            Self::Cpu => "",
            Self::Cu126 { .. } => "-cu126",
        }
    }

    fn capabilities(&self) -> &'static str {
        match self {
            Self::Cpu => "none",
            Self::Cu126 { .. } => "7.0,7.5,8.0,8.6,9.0",
        }
    }

    fn libtorch(&self) -> Result<PathBuf> {
        match self {
            Self::Cpu => libtorch::ensure(),
            Self::Cu126 { wheel } => libtorch::ensure_cuda(wheel),
        }
    }
}

/// An image that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name, without registry.
    pub name: String,
    /// Digest of its manifest, with `sha256:`.
    pub digest: String,
    /// Its OCI layout.
    pub layout: PathBuf,
}

impl Image {
    /// What a pod asks for.
    pub fn reference(&self) -> String {
        reference(&self.name, &self.digest)
    }
}

fn reference(name: &str, digest: &str) -> String {
    format!("{REGISTRY}/{name}@{digest}")
}

/// What an image of ours is made of.
struct Recipe {
    name: &'static str,
    /// The cargo package.
    package: &'static str,
    /// Its programs; the first is the entry point.
    programs: &'static [&'static str],
    torch: bool,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "consilium-operator",
        package: "consilium-operator",
        programs: &["consilium-operator"],
        torch: false,
    },
    Recipe {
        name: "consilium-agent",
        package: "consilium-agent",
        programs: &["consilium-agent", "consilium-courier"],
        torch: false,
    },
    Recipe { name: "consilium-trainer", package: "consilium-trainer", programs: &["consilium-trainer"], torch: true },
    Recipe {
        name: "consilium-inference",
        package: "consilium-inference",
        programs: &["consilium-inference"],
        torch: true,
    },
];

/// The names that [`build`] knows.
pub fn names() -> Vec<&'static str> {
    RECIPES.iter().map(|recipe| recipe.name).collect()
}

/// Builds the programs and the images named, all of them if `only` is empty. Those with libtorch carry the
/// variant's name behind theirs, unless it is the CPU's.
pub fn build(variant: &Variant, profile: Profile, only: &[String]) -> Result<Vec<Image>> {
    let wanted: Vec<&Recipe> =
        RECIPES.iter().filter(|recipe| only.is_empty() || only.iter().any(|name| name == recipe.name)).collect();
    let libtorch = variant.libtorch()?;
    let packages: Vec<&str> = wanted.iter().map(|recipe| recipe.package).collect();
    let built = programs::build(&packages, &libtorch, variant, profile)?;
    let store = store()?;
    let _lock = lock()?;
    let mut images = Vec::new();
    for recipe in wanted {
        let programs = recipe.programs.iter().map(|name| cargo::find(&built, name)).collect::<Result<Vec<_>>>()?;
        let torch = recipe.torch.then_some(&*libtorch);
        let name = format!("{}{}", recipe.name, if recipe.torch { variant.suffix() } else { "" });
        let capabilities = recipe.torch.then(|| variant.capabilities());
        images.push(dynamic(&store, &name, &programs, torch, capabilities)?);
    }
    store.prune()?;
    Ok(images)
}

/// The images that every cluster needs to run at all: the pods' pause process and DNS.
pub fn system(tools: &Tools) -> Result<Vec<Image>> {
    let store = store()?;
    let _lock = lock()?;
    ["pause", "coredns"].into_iter().map(|name| single(&store, name, &tools.program(name))).collect()
}

/// The image of `tests/cluster/probe`: what tests run in a pod to see what it can reach.
pub fn probe(tools: &Tools) -> Result<Image> {
    let _lock = lock()?;
    single(&store()?, "probe", &tools.program("probe"))
}

fn store() -> Result<Store> {
    Store::new(cache::sub("images")?)
}

fn lock() -> Result<cache::Lock> {
    cache::Lock::wait(&cache::sub("images")?.join(".lock"))
}

/// An image of one program that needs no libraries.
fn single(store: &Store, name: &str, program: &Path) -> Result<Image> {
    let mut entries = rootfs::skeleton();
    entries.push(Entry { path: name.to_owned(), mode: 0o755, content: Content::File(program.to_owned()) });
    let layer = store.layer(&entries)?;
    let run = RunConfig { entrypoint: vec![format!("/{name}")], environment: vec![], annotations: vec![] };
    let digest = store.image(name, &[layer], &run, |digest| reference(name, digest))?;
    Ok(Image { name: name.to_owned(), digest, layout: store.layout(name) })
}

/// An image of programs with their libraries: what changes least in the lowest layer, so that images share it.
fn dynamic(
    store: &Store,
    name: &str,
    programs: &[PathBuf],
    libtorch: Option<&Path>,
    capabilities: Option<&str>,
) -> Result<Image> {
    let mut libraries = rootfs::Libraries::default();
    let mut binaries = BTreeMap::new();
    for program in programs {
        let found = rootfs::Libraries::of(program, libtorch)?;
        libraries.system.extend(found.system);
        libraries.libtorch.extend(found.libtorch);
        let file = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        binaries.insert(format!("usr/local/bin/{file}"), programs::stripped(program)?);
    }
    let mut base = rootfs::skeleton();
    base.extend(rootfs::files(&libraries.system));
    let mut layers = vec![store.layer(&base)?];
    let mut environment = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
    if !libraries.libtorch.is_empty() {
        layers.push(store.layer(&rootfs::files(&libraries.libtorch))?);
        environment.push(format!("LD_LIBRARY_PATH=/{}", rootfs::LIBTORCH));
    }
    layers.push(store.layer(&rootfs::files(&binaries))?);
    let entry = programs.first().and_then(|program| program.file_name()).unwrap_or_default().to_string_lossy();
    let run = RunConfig {
        entrypoint: vec![format!("/usr/local/bin/{entry}")],
        environment,
        annotations: capabilities.map(|value| (CAPABILITIES, value.to_owned())).into_iter().collect(),
    };
    let digest = store.image(name, &layers, &run, |digest| reference(name, digest))?;
    Ok(Image { name: name.to_owned(), digest, layout: store.layout(name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{self, Spec},
        error::IoContext,
    };

    /// The loader, the libraries, the user and the name by digest, all at once: a program of ours runs in a pod.
    #[test]
    #[ignore = "starts clusters: needs root"]
    fn an_image_of_this_program_runs_by_its_digest() -> Result<()> {
        let program = std::env::current_exe().at("find", "this program")?;
        let image = dynamic(&store()?, "self", &[program], None, None)?;
        let clusters = cluster::up(&Spec { hospitals: vec!["alder".to_owned()] })?;
        let hub = &clusters[0];
        load(hub, std::slice::from_ref(&image))?;
        hub.kubectl(&["delete", "pod", "self", "--ignore-not-found"])?;
        let reference = format!("--image={}", image.reference());
        hub.kubectl(&[
            "run",
            "self",
            &reference,
            "--restart=Never",
            "--image-pull-policy=IfNotPresent",
            "--",
            "--list",
        ])?;
        hub.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/self", "--timeout=60s"])?;
        assert!(hub.kubectl(&["logs", "self"])?.contains("an_image_of_this_program_runs_by_its_digest"));
        hub.kubectl(&["delete", "pod", "self"])?;
        std::fs::remove_dir_all(&image.layout).at("remove", &image.layout)
    }
}
